"""The interface between the sweep and a method: layers and their inputs in, scores or pruned weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

    from sparsebench.errors import SparsebenchError
    from sparsebench.models.files.quantized import Codes
    from sparsebench.models.replay.gather import InputStatistics
    from sparsebench.steps.grid import Quantize
    from sparsebench.steps.prune.settings import Prune

T = TypeVar("T", bound="Prune")


@dataclass(frozen=True)
class Target:
    """One variant to make.

    ``granularity`` is the group within which weights compete (global, layer or row). ``pattern`` is unstructured, N:M,
    RxC blocks, or whole rows or columns. ``allocation`` is how the sparsity is spread over the
    transformer blocks (uniform or owl). ``options`` are the method's own settings. With ``keep_zeros`` weights that are
    zero stay zero, and ``sparsity`` is a share of the others.
    """

    method: str
    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    allocation: str = "uniform"
    options: tuple[tuple[str, Any], ...] = ()
    keep_zeros: bool = False

    def record(self) -> dict[str, Any]:
        """Return what the variant's folder says of it."""
        return asdict(self)

    def quota(self, sparsity: float) -> Quota:
        """Return the quota of one matrix whose sparsity is to be ``sparsity``."""
        return Quota(sparsity, self.granularity, self.pattern, self.options, keep_zeros=self.keep_zeros)


@dataclass(frozen=True)
class Quota:
    """The weights that one matrix must lose: a share ``sparsity``, compared within ``granularity`` (layer or row).

    They are removed in ``pattern``. ``options`` are the method's own settings. With ``keep_zeros`` the weights that are
    zero stay zero, and ``sparsity`` is a share of the others. With ``quantize``, sparsegpt rounds the weights (GPTQ): the
    sparsity is 0, and weights that are zero stay zero.
    """

    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    options: tuple[tuple[str, Any], ...] = ()
    quantize: Quantize | None = None
    keep_zeros: bool = False

    def read(self, settings: type[T]) -> T:
        """Return the method's own settings, with the published defaults for those that were not asked for."""
        return settings(sparsity=self.sparsity, **dict(self.options))


@dataclass(frozen=True)
class Layer:
    """One linear layer: ``weights`` (out, in) in the checkpoint's dtype, never modified, and statistics of its inputs.

    ``inputs`` is None for methods that need no calibration. Layers that read the same input share one object.
    """

    name: str
    weights: torch.Tensor
    seed: int = 0
    inputs: InputStatistics | None = None


@dataclass(frozen=True)
class Solution:
    """Pruned weights (out, in) in the layer's dtype, removed entries exactly zero; ``notes`` say what a reader must know.

    For a quota that quantizes, ``codes`` are the integers and scales of the weights.
    """

    weights: torch.Tensor
    notes: tuple[str, ...] = ()
    codes: Codes | None = None


Score = Callable[[Layer], "torch.Tensor"]
"""Layer → scores of its weights' shape, float or int32, never negative; the lowest are removed.

Scores keep the exact order: they are not rounded to fewer bits than the numbers that they are computed from.
"""

Solve = Callable[[Sequence[Layer], Sequence[Quota]], "list[list[Solution]] | list[list[Solution | SparsebenchError]]"]
"""Layers that read the same inputs → for each layer and each quota a solution, or the error of that quota alone.

May overwrite ``inputs.gram``.
"""
