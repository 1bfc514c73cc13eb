"""Checks the arguments of the notebook's functions by their annotations, before a function does anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from numbers import Integral
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model

from sparsebench.errors import UserError, system_error
from sparsebench.sources import Cache

P = ParamSpec("P")
T = TypeVar("T")
STRICT = ConfigDict(strict=True, allow_inf_nan=False, revalidate_instances="always")


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Return ``function``, which now raises UserError, naming the argument, where a call does not fit its annotations.

    What the system refuses while the function works is also raised as an error of ours.
    """
    function_name, call_signature = function.__name__, signature(function)
    hints, parameters = get_type_hints(function, include_extras=True), call_signature.parameters
    fields: dict[str, Any] = {name: (hints[name], parameter.default) for name, parameter in parameters.items()}
    argument_model = create_model(function_name, __config__=STRICT, **fields)
    help_hint = f"see help(sparsebench.{function_name})"

    @wraps(function)
    def wrapper(*positional: P.args, **keywords: P.kwargs) -> T:
        try:
            arguments = call_signature.bind(*positional, **keywords).arguments
            validated = argument_model.model_validate({name: _python_int(value) for name, value in arguments.items()})
        except TypeError as error:
            raise UserError(f"{function_name}: {error}", help_hint) from error
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"{function_name}: {first['loc'][0]}: {first['msg']}", help_hint) from error
        checked_arguments: dict[str, Any] = {name: getattr(validated, name) for name in arguments}
        try:
            return function(**checked_arguments)  # type: ignore[call-arg]
        except OSError as error:
            raise system_error(error, Cache().root) from error

    return wrapper


def _python_int(value: Any) -> Any:
    """Return NumPy's whole numbers as Python's."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
