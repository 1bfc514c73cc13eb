"""Recovery: what stays of a model is trained to do what the dense model does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN = ("finetune", "elsa")
"""What trains a whole model on its own loss alone."""
LIBRARIES = ("transformers", "tokenizers", "accelerate")
"""What the training of a whole model calculates with beside torch."""
DENSE = "dense"
"""The teacher that every model has: what its recipe began with."""
SEVERAL = ("the states of several encoders have no mean", "one `teacher`")
PREDICTS = ("an encoder is distilled by its states, which are no predictions", "alpha: 1, without `alpha_schedule`")
"""Why an encoder is refused, and the way out."""


def teachers(own: Mapping[str, Any]) -> list[str]:
    """Who teaches, by the settings of a training."""
    named = own.get("teacher", DENSE)
    return [named] if isinstance(named, str) else list(named)
