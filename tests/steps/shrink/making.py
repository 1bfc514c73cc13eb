"""Smaller models of small models, made as a run makes them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import SparsebenchError
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import single
from sparsebench.steps.shrink import scores
from sparsebench.steps.shrink.whole import WholeModel, module_of
from tests.making import make
from tests.models.model_zoo import small
from tests.models.replaying import batch, written

BLOCKS = "num_hidden_layers num_layers num_decoder_layers encoder_layers decoder_layers n_layer n_layers".split()
"""Every name that a type has for the number of its blocks."""


def four_blocks(kind: str, folder: Path, **changes: Any) -> tuple[Path, Any]:
    """A small model with four blocks a stack, and its family."""
    known = dict.fromkeys({*BLOCKS} & small(kind.partition(":")[0]).keys(), 4)
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


def taylor_sums(model: Any, axis: Any, even: bool = False) -> torch.Tensor:
    """After a backward pass, of each element |Σ W·∂L| of what reads it, and of a neuron's own rows where widths stay even."""
    sums = {}
    for cut in axis.cuts:
        module, name = cut.tensor.rpartition(".")[::2]
        values = getattr(module_of(model, module), name)
        both, dim = cut.part_of((values * values.grad).double().detach())
        both = both.movedim(dim, 0).reshape(both.shape[dim], -1).sum(1)
        sums[cut] = both[cut.offset : cut.offset + axis.units * cut.size].reshape(axis.units, -1).sum(1)
    read = torch.stack([sums.pop(cut).abs() for cut in axis.outputs]).sum(0)
    return read + torch.stack([*sums.values()]).sum(0).abs() if even and axis.kind == "neurons" else read


def slow_taylor(slow: WholeModel, axes: Iterable[Any], labels: str, even: bool) -> dict[Any, torch.Tensor]:
    """Every element's score by autograd, batch by batch."""
    slow.model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    expected = {axis: torch.zeros(axis.units, dtype=torch.float64) for axis in axes}
    for rows in slow.groups(scores.TOKENS):
        slow.model.zero_grad()
        scores._group_loss(slow, rows, labels, generator, {}).backward()
        for axis in expected:
            expected[axis] += taylor_sums(slow.model, axis, even)
    return expected
