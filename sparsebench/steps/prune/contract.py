"""What passes between the sweep and a method: layers with what they read in, scores or pruned weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from sparsebench.errors import SparsebenchError
    from sparsebench.models.inputs import InputStatistics
    from sparsebench.models.quantized import Codes
    from sparsebench.steps.prune.settings import Prune
    from sparsebench.steps.quantize.grid import Quantize

T = TypeVar("T", bound="Prune")


@dataclass(frozen=True)
class Target:
    """One version to make.

    ``granularity`` is what weights compete with (global, layer or row), ``pattern`` unstructured, N:M, RxC blocks, or whole
    rows, columns, neurons or heads. ``allocation`` is how the sparsity is spread over the transformer blocks (uniform or
    owl), ``options`` are what the method alone has settings for. ``keep_zeros``: what is zero already stays so, and
    ``sparsity`` is a share of the rest.
    """

    method: str
    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    allocation: str = "uniform"
    options: tuple[tuple[str, Any], ...] = ()
    keep_zeros: bool = False

    def quota(self, sparsity: float) -> Quota:
        """What one matrix must lose, where its share is ``sparsity``."""
        return Quota(sparsity, self.granularity, self.pattern, self.options, keep_zeros=self.keep_zeros)


@dataclass(frozen=True)
class Quota:
    """What one matrix must lose: ``sparsity`` of it, compared within ``granularity`` (layer or row), in ``pattern``.

    ``options`` are the method's own settings. With ``keep_zeros`` the weights that are zero stay zero, and ``sparsity`` is a
    share of the others. ``quantize`` asks a solver that can (sparsegpt) to round what stays in the same
    sweep; with a sparsity of 0 it is GPTQ, and weights that are zero stay zero.
    """

    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    options: tuple[tuple[str, Any], ...] = ()
    quantize: Quantize | None = None
    keep_zeros: bool = False

    def read(self, settings: type[T]) -> T:
        """The method's own settings, the published ones where nothing else was asked for."""
        return settings(sparsity=self.sparsity, **dict(self.options))


@dataclass(frozen=True)
class Layer:
    """One linear layer: ``weights`` (out, in) in the checkpoint's dtype, never modified, and what it reads.

    ``inputs`` is None for methods that need no calibration; layers that read the same share one object.
    """

    name: str
    weights: torch.Tensor
    seed: int = 0
    inputs: InputStatistics | None = None


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

Solve = Callable[[Sequence[Layer], Sequence[Quota]], "list[list[Solution]] | list[list[Solution | SparsebenchError]]"]
"""Layers that read the same inputs → for each layer, for each quota, a solution, or why that quota alone has none.

May overwrite ``inputs.gram``.
"""
