"""Models that skip weights, made as a run makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import SparsebenchError
from sparsebench.models.modules.load import load_model
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.registry import kinds
from tests.steps.shrink.making import text


def made(parent: Path, family: Any, targets: dict[Step, Path], seed: int = 0) -> dict[Step, StepReport]:
    """What came of the steps, which share a pass."""
    found: dict[Step, Any] = {}
    context = Context(family, seed, "auto", lambda: text(family, 8))
    kinds()[next(iter(targets)).verb].load()(parent, targets, context, found.__setitem__)
    failed = [one for one in found.values() if isinstance(one, SparsebenchError)]
    if failed:
        raise failed[0]
    return found


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
