"""Smaller models of small models, made as a run makes them."""

from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from tests.making import make
from tests.models.model_zoo import small
from tests.models.replaying import batch, written

FOUR = dict.fromkeys(
    (
        "num_hidden_layers",
        "num_layers",
        "num_decoder_layers",
        "encoder_layers",
        "decoder_layers",
        "n_layer",
        "n_layers",
    ),
    4,
)
"""Four blocks under every name that a type has for their number, and those that it does not know."""


def four_blocks(kind: str, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A small model with four blocks a stack, and its family."""
    own = small(kind.partition(":")[0])
    known = {key: value for key, value in FOUR.items() if key in own}
    return written(kind, folder, **known, **changes)


def text(family: str, samples: int = 5) -> Calibrated:
    """Random tokens as calibration text."""
    given = batch(family, samples)
    return Calibrated(given, "sha", "text", int(given.attention_mask.sum()), ())


def shrunk(
    parent: Path, family: Any, folder: Path, name: str, seed: int = 0, **settings: Any
) -> tuple[Path, StepReport]:
    """One setting's folder, and what came of it; what it fails with is raised."""
    step = single("shrink", name, **settings)
    return folder, make(parent, family, {step: folder}, text(family), seed=seed)[step]


def refused(parent: Path, family: Any, folder: Path, name: str, **settings: Any) -> SparsebenchError:
    """Why one setting is not made."""
    with pytest.raises(SparsebenchError) as caught:
        shrunk(parent, family, folder, name, **settings)
    assert not folder.exists()
    return caught.value
