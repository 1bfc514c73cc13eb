"""What passes between the sweep and a method: layers with what they read in, scores or pruned weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sparsebench.models.inputs import Inputs
    from sparsebench.models.quantized import Codes
    from sparsebench.steps.quantize.grid import Quantize


@dataclass(frozen=True)
class Target:
    """One version to make.

    ``granularity`` is what weights compete with (global, layer or row), ``pattern`` unstructured, N:M or RxC blocks,
    ``allocation`` how the sparsity is spread over the transformer blocks (uniform or owl).
    """

    method: str
    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    allocation: str = "uniform"


@dataclass(frozen=True)
class Quota:
    """What one matrix must lose: ``sparsity`` of it, compared within ``granularity`` (layer or row), in ``pattern``.

    ``quantize`` asks a solver that can (sparsegpt) to round what stays in the same sweep; with a sparsity of 0 it is GPTQ, and
    weights that are zero stay zero.
    """

    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    quantize: Quantize | None = None


@dataclass(frozen=True)
class Layer:
    """One linear layer: ``weights`` (out, in) in the checkpoint's dtype, never modified, and what it reads.

    ``inputs`` is None for methods that need no calibration; layers that read the same share one object.
    """

    name: str
    weights: torch.Tensor
    seed: int = 0
    inputs: Inputs | None = None


@dataclass(frozen=True)
class Solution:
    """Pruned weights (out, in) in the layer's dtype, removed entries exactly zero; ``notes`` say what a reader must know.

    Of a quota that quantizes ``codes`` are what the weights are made of, ``removed`` how many were set to zero (the others of
    the zeros were rounded to it).
    """

    weights: torch.Tensor
    notes: tuple[str, ...] = ()
    codes: Codes | None = None
    removed: int = 0


Score = Callable[[Layer], "torch.Tensor"]
"""Layer → scores of its weights' shape, float or int32, never negative; the lowest are removed.

Scores keep the order exact: never rounded to fewer bits than what they are computed from.
"""

Solve = Callable[[Sequence[Layer], Sequence[Quota]], list[list[Solution]]]
"""Layers that read the same inputs → for each layer, for each quota, a solution. May overwrite ``inputs.gram``."""


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
    sweep's, shared by its ``sweep_size`` versions; ``peak_rss_bytes`` is the process's. ``note`` says what a reader must
    know. ``calibration_tokens`` (padding left out) and ``calibration_sha256`` (of the token ids) tell what was read, if anything.
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
    calibration_tokens: int = 0
    calibration_sha256: str = ""
