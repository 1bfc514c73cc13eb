"""What a selection of variants means: a manifest's ``select`` and the command line's ``--only``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from sparsebench.manifest.schema import as_list
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import kinds

Alternatives = Mapping[str, Any]
"""Names by verb and values by setting, each one or a list of alternatives."""


def selects(selection: Alternatives, steps: Sequence[Step]) -> bool:
    """Return whether a recipe of these ``steps`` has every name and setting of a ``selection``.

    A setting counts at the step whose verb is selected too, where a step of the selected names can have it. A setting
    that none of them can have counts at any step.
    """
    names = {key: as_list(value) for key, value in selection.items() if key in kinds()}
    settings = {key: as_list(value) for key, value in selection.items() if key not in names}
    verbs = {key: [verb for verb in names if _can_have(verb, names[verb], key)] for key in settings}

    def have_settings(named: Sequence[Step]) -> bool:
        candidates = {key: [step for step in named if step.verb in verbs[key]] or steps for key in settings}
        return all(_has_setting(candidates[key], key, values) for key, values in settings.items())

    named_steps = [[step for step in steps if step.verb == verb and step.name in names[verb]] for verb in names]
    return any(map(have_settings, product(*named_steps)))


def same_value(left: Any, right: Any) -> bool:
    """Return whether two values of a setting are the same: numbers but for rounding; ``true`` is no number."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    numbers = all(isinstance(value, int | float) for value in (left, right))
    return abs(left - right) < 1e-9 if numbers else bool(left == right)


def _can_have(verb: str, names: Sequence[Any], key: str) -> bool:
    classes = kinds()[verb].classes()
    return any(key in settings.model_fields for name, settings in classes.items() if name in names)


def _has_setting(steps: Sequence[Step], key: str, values: Sequence[Any]) -> bool:
    records = [step.settings.record() for step in steps]
    return any(same_value(record[key], value) for record in records if key in record for value in values)
