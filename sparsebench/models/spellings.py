"""The names by which a model and a checkpoint may call one tensor or module.

A checkpoint of the bare model lacks the prefix, such as ``model.``, that the model with a head has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def spellings(model: PreTrainedModel, name: str) -> tuple[str, str, str]:
    """Return the name as given, with the base model's prefix, and without it."""
    prefix = f"{model.base_model_prefix}."
    return name, prefix + name, name.removeprefix(prefix)


def place_of(model: PreTrainedModel, path: str) -> str | None:
    """Return the name in ``model`` of the module at ``path``, in any of its spellings, or None."""
    names = {name for name, _ in model.named_modules()}
    return next((form for form in spellings(model, path) if form in names), None)
