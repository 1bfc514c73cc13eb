"""Statistics of a linear layer's input, summed over calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class InputStatistics:
    """Sums over ``tokens`` tokens, without padding.

    ``squares`` (in,) float32 is Σ x_j²; ``gram`` (in, in) float32, symmetric, is Σ x xᵀ, and ``sums`` (in,) float64 is
    Σ x. The last two are None where no method needs them.
    """

    tokens: int
    squares: torch.Tensor
    gram: torch.Tensor | None = None
    sums: torch.Tensor | None = None
