"""Models that skip weights, made as a run makes them."""

from pathlib import Path
from typing import Any

import torch

from sparsebench.models.modules.load import load_model
from sparsebench.steps.contract import Step, StepReport
from tests.making import make
from tests.steps.shrink.making import text


def made(parent: Path, family: Any, targets: dict[Step, Path], seed: int = 0) -> dict[Step, StepReport]:
    """What came of the steps, which share a pass."""
    return make(parent, family, targets, text(family, 8), seed=seed)


def said(folder: Path, family: Any) -> torch.Tensor:
    """What the loaded model says to the calibration text, padding left out: (tokens, width) float32."""
    return answer(load_model(folder, family), family)


def answer(model: Any, family: Any) -> torch.Tensor:
    """What a model says to the calibration text, padding left out: (tokens, width) float32."""
    given = text(family, 8).batch
    with torch.no_grad():
        out = model(**{name: tensor for name, tensor in vars(given).items() if tensor is not None})
    found = out.logits if hasattr(out, "logits") else out.last_hidden_state
    mask = given.attention_mask if given.decoder_attention_mask is None else given.decoder_attention_mask
    kept: torch.Tensor = found.float()[mask]
    return kept
