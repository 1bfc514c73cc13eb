"""Checks the arguments of the notebook's functions by their annotations, before a function does anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from numbers import Integral
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from sparsebench.errors import UserError, of_system
from sparsebench.sources import Cache

P = ParamSpec("P")
T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function``, which now raises UserError, naming the argument, where a call does not fit its annotations.

    What the system refuses while the function works is also raised as an error of ours.
    """
    name, parameters = function.__name__, signature(function)
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {key: (hints[key], parameter.default) for key, parameter in parameters.parameters.items()}
    arguments = create_model(name, __config__=STRICT, **fields)

    @wraps(function)
    def wrapper(*positional: P.args, **keywords: P.kwargs) -> T:
        try:
            values = parameters.bind(*positional, **keywords).arguments
            validated = arguments.model_validate({key: _python_int(value) for key, value in values.items()})
        except TypeError as error:
            raise UserError(f"{name}: {error}", f"see help(sparsebench.{name})") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{name}: {first['loc'][0]}: {first['msg']}", f"see help(sparsebench.{name})") from error
        checked_values: dict[str, Any] = {key: getattr(validated, key) for key in values}
        try:
            return function(**checked_values)  # type: ignore[call-arg]
        except OSError as error:
            raise of_system(error, Cache().root) from error

    return wrapper


def _python_int(value: Any) -> Any:
    """Return NumPy's whole numbers as Python's."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
