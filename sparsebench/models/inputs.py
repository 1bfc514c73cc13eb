"""What a linear layer reads, summed over calibration tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class InputStatistics:
    """Sums over ``tokens`` tokens, padding left out.

    ``squares`` (in,) float32 is Σ x_j²; ``gram`` (in, in) float32, symmetric, is Σ x xᵀ, and ``sums`` (in,) float64 is Σ x,
    each None where no method asked.
    """

    tokens: int
    squares: torch.Tensor
    gram: torch.Tensor | None = None
    sums: torch.Tensor | None = None
