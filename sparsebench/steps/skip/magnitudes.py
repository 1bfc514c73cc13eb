"""Histograms of the magnitudes of a block's inputs or activations, counted over calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

BINS = 1 << 15
"""The number of magnitudes of bfloat16. A threshold is one of these, so that it is the same number in float32."""
NEAR = 0.01
"""Values up to this share of the root mean square count as near zero."""


@dataclass
class Magnitudes:
    """A histogram of values over the magnitudes of bfloat16: ``counts`` (BINS,) int64, ``squares`` the values' Σ x².

    Values are counted on their own device, and the counts kept on the CPU.
    """

    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    squares: float = 0.0

    def add(self, values: torch.Tensor) -> None:
        """Count finite values of any shape, each at the smallest magnitude of bfloat16 that is not below it."""
        bits = values.detach().float().abs().reshape(-1).view(torch.int32)
        self.counts += torch.bincount((bits + 0xFFFF) >> 16, minlength=BINS).cpu()
        self.squares += float(values.double().square().sum())

    def threshold(self, share: float) -> tuple[float, float]:
        """Return the magnitude up to which about ``share`` of the values are, and the share that really is.

        For a ``share`` of 0 the magnitude is 0.
        """
        reached = self.counts.cumsum(0).double() / max(1, int(self.counts.sum()))
        position = int((reached - share).abs().argmin()) if share else 0
        magnitude = torch.tensor([position << 16], dtype=torch.int32).view(torch.float32)
        return float(magnitude), float(reached[position])

    @property
    def near_zero(self) -> float:
        """The share of the values up to ``NEAR`` of their root mean square."""
        total = int(self.counts.sum())
        limit = torch.tensor(NEAR * (self.squares / max(1, total)) ** 0.5).view(torch.int32)
        return float(self.counts[: (int(limit) >> 16) + 1].sum()) / max(1, total)


@dataclass(frozen=True)
class SkipSite:
    """A module whose values are skipped, at ``path`` in block ``layer`` of a ``stack``.

    ``weights`` is the number of weights that are multiplied with the values, ``nonzeros`` how many of these are not
    zero.
    """

    path: str
    weights: int
    nonzeros: int
    magnitudes: Magnitudes
    stack: str
    layer: int
