"""What passes between the sweep and a method: a matrix in, scores out; the lowest scores are removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Score = Callable[["torch.Tensor", str, int], "torch.Tensor"]
"""(weights (out, in) of any float dtype, tensor name, seed) → scores of the same shape.

Scores keep the order exact: an unsigned or signed integer or a float tensor, never rounded to fewer bits than the weights.
"""


@dataclass(frozen=True)
class Target:
    """One version to make: ``granularity`` is what weights compete with, ``pattern`` N:M or ``unstructured``."""

    sparsity: float
    granularity: str
    pattern: str = "unstructured"


@dataclass(frozen=True)
class TensorSparsity:
    """What became of one tensor: ``zeros`` of its ``count`` weights are exactly zero in the written file."""

    name: str
    layer: int | None
    side: str
    kind: str
    count: int
    zeros: int


@dataclass(frozen=True)
class SparsifyResult:
    """What was achieved, counted in the written files.

    ``achieved`` is over prunable weights, ``achieved_all`` over all parameters (tied ones once); ``seconds`` is the
    sweep's, shared by its ``sweep_size`` versions; ``peak_rss_bytes`` is the process's. ``note`` says what a reader must know.
    """

    prunable: int
    zeros: int
    parameters: int
    total_zeros: int
    achieved: float
    achieved_all: float
    seconds: float
    sweep_size: int
    peak_rss_bytes: int
    tensors: tuple[TensorSparsity, ...]
    note: str = ""
