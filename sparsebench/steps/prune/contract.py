"""The interface between the sweep and a method: layers and their inputs in, scores or pruned weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebench.errors import SparsebenchError

if TYPE_CHECKING:
    import torch

    from sparsebench.models.files.quantized import Codes, Scheme
    from sparsebench.models.replay.gather import InputStatistics
    from sparsebench.steps.prune.settings import Prune


@dataclass(frozen=True)
class Quota:
    """The weights that one matrix must lose: a share ``sparsity``, compared within ``granularity`` (layer or row).

    They are removed in ``pattern``. With ``keep_zeros`` the weights that are zero stay zero, and ``sparsity`` is a share
    of the others. ``settings`` are those of the step, with the method's own. With ``scheme``, sparsegpt rounds the
    weights (GPTQ): the sparsity is 0, and weights that are zero stay zero.
    """

    sparsity: float
    granularity: str
    pattern: str = "unstructured"
    keep_zeros: bool = False
    settings: Any = None
    scheme: Scheme | None = None

    @classmethod
    def of(cls, settings: Prune, sparsity: float) -> Quota:
        """Return what ``settings`` ask of a matrix whose sparsity is to be ``sparsity``."""
        return cls(sparsity, str(settings.granularity), settings.pattern, settings.keep_zeros, settings)


@dataclass(frozen=True)
class Layer:
    """One linear layer: ``weights`` (out, in) in the checkpoint's dtype, never modified, and statistics of its inputs.

    ``inputs`` is None for methods that need no calibration. Layers that read the same input share one object.
    """

    name: str
    weights: torch.Tensor
    seed: int = 0
    inputs: InputStatistics | None = None

    def statistics(self) -> InputStatistics:
        """Return ``inputs``. Raises ValueError where they were not gathered, as for a method that ``needs`` nothing."""
        if self.inputs is None:
            raise ValueError(f"{self.name}: no statistics of what it reads")
        return self.inputs


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
