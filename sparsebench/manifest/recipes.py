"""How recipes are written: an entry of ``variants`` is a step or a list of steps; a step is a mapping with one verb."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sparsebench.manifest.nodes import KeyPath
from sparsebench.manifest.schema import as_list, wrong


def steps_of(index: int, entry: Any) -> list[tuple[KeyPath, Any]]:
    """Return the steps of the entry at this ``index`` of ``variants``, each with its path in the manifest."""
    return [(("variants", index, number), step) for number, step in enumerate(as_list(entry))]


def verb_and_name(step: Mapping[str, Any], verbs: Collection[str]) -> tuple[str, str]:
    """Return the verb of a step and the name under it: ``prune`` and ``wanda``.

    Raises PydanticCustomError where the step has no verb, or several.
    """
    verbs_named = [key for key in step if key in verbs]
    if len(verbs_named) != 1:
        raise wrong(f"a step with {len(verbs_named)} verbs", f"one of {', '.join(verbs)}, such as `prune: magnitude`")
    return verbs_named[0], step[verbs_named[0]]


def models_of(entry: Any) -> list[str] | None:
    """Return the models that are in every ``models`` list of an entry's steps; None, for all, where no step has one."""
    filters = [as_list(step["models"]) for step in as_list(entry) if step.get("models") is not None]
    return [name for name in filters[0] if all(name in names for names in filters)] if filters else None


def is_for(entry: Any, model: str) -> bool:
    """Whether an entry is for the model of this name."""
    models = models_of(entry)
    return models is None or model in models


def count_variants(entry: Any) -> int:
    """Return how many variants an entry asks for at most: every combination of the values of its lists."""
    settings = [(key, value) for step in as_list(entry) for key, value in step.items()]
    return math.prod(len(value) for key, value in settings if key != "models" and isinstance(value, list))
