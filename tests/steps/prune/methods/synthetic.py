"""Layers with inputs like those of a transformer: correlated, of very different sizes; and what holds for a pruned model."""

from pathlib import Path
from typing import Any

import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.models.shape.topology import parts
from sparsebench.steps.prune.contract import Layer


def activations(columns: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """(tokens, columns) float64 of low rank plus noise, with a few large columns."""
    generator = torch.Generator().manual_seed(seed)
    rank = max(1, columns // 4)
    drawn = torch.randn(tokens, rank, generator=generator, dtype=torch.float64)
    mixed = drawn @ torch.randn(rank, columns, generator=generator, dtype=torch.float64) / rank**0.5
    noise = torch.randn(tokens, columns, generator=generator, dtype=torch.float64)
    sizes = torch.exp(0.7 * torch.randn(columns, generator=generator, dtype=torch.float64))
    return (mixed + 0.3 * noise) * sizes


def inputs_of(read: torch.Tensor) -> InputStatistics:
    """The sums that calibration would gather."""
    return InputStatistics(len(read), read.square().sum(0).float(), (read.T @ read).float())


def weights_of(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1000 + seed)).to(dtype)


def layer_of(weights: torch.Tensor, read: torch.Tensor, name: str = "model.layers.0.q.weight") -> Layer:
    return Layer(name, weights, 0, inputs_of(read))


def layer_error(dense: torch.Tensor, pruned: torch.Tensor, read: torch.Tensor) -> float:
    """‖X (Ŵ − W)ᵀ‖², in float64."""
    return float((read @ (dense.double() - pruned.double()).T).square().sum())


def two_of_four(folder: Path, family: Any) -> None:
    """Each group of four weights of an output has two zeros."""
    model = Checkpoint(folder)
    for name, part in parts(model, family).items():
        for view in part.views:
            assert ((view.to_matrix(model.load(name)).reshape(-1, 4) == 0).sum(1) == 2).all(), name
