"""Recovery: the weights that remain after compression are trained to do what the dense model does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LIBRARIES = ("transformers", "tokenizers", "accelerate")
"""The libraries besides torch that training a whole model uses."""
DENSE = "dense"
"""The default teacher: the dense model that the recipe began with."""
SEVERAL = ("an encoder can have only one teacher", "one `teacher`")
PREDICTS = (
    "an encoder is distilled by its hidden states; `alpha` below 1 or `alpha_schedule` needs a loss on predictions",
    "alpha: 1, without `alpha_schedule`",
)
"""``SEVERAL`` and ``PREDICTS``: why an encoder is refused, and the way out."""


def teachers(own: Mapping[str, Any]) -> list[str]:
    """Return the teachers that a training's settings name; none for a training on the model's own loss alone."""
    named = own.get("teacher", [])
    return [named] if isinstance(named, str) else list(named)
