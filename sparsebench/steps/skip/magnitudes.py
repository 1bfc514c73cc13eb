"""How large the values are that the layers of a block read or make, counted over calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

BINS = 1 << 15
"""The magnitudes of bfloat16. A threshold is one of them, so that it is the same number in float32."""
NEAR = 0.01
"""What counts as near zero: this share of the root mean square."""


@dataclass
class Magnitudes:
    """How many values are no larger than each magnitude that bfloat16 knows; ``counts`` (BINS,) int64, ``squares`` their Σ x².
    They are counted where the values lie, and the counts kept on the CPU."""

    counts: torch.Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.int64))
    squares: float = 0.0

    def add(self, values: torch.Tensor) -> None:
        """Count some values of any shape, each under the smallest magnitude of bfloat16 that is no smaller."""
        bits = values.detach().float().abs().reshape(-1).view(torch.int32)
        self.counts += torch.bincount((bits + 0xFFFF) >> 16, minlength=BINS).cpu()
        self.squares += float(values.double().square().sum())

    def threshold(self, share: float) -> tuple[float, float]:
        """The magnitude up to which about ``share`` of the values lie, and the share that does: 0 for a share of 0."""
        reached = self.counts.cumsum(0).double() / max(1, int(self.counts.sum()))
        place = int((reached - share).abs().argmin()) if share else 0
        return _magnitude(place), float(reached[place])

    @property
    def near_zero(self) -> float:
        """The share of the values that are no larger than ``NEAR`` of their root mean square."""
        total = int(self.counts.sum())
        limit = torch.tensor(NEAR * (self.squares / max(1, total)) ** 0.5).view(torch.int32)
        return float(self.counts[: (int(limit) >> 16) + 1].sum()) / max(1, total)


@dataclass(frozen=True)
class SkipSite:
    """Where values are cut: the module at ``path`` in block ``layer`` of a ``side``, and the number of ``weights`` that meet
    them, ``nonzeros`` of which are not zero."""

    path: str
    weights: int
    nonzeros: int
    magnitudes: Magnitudes
    side: str
    layer: int


def _magnitude(place: int) -> float:
    return float(torch.tensor([place << 16], dtype=torch.int32).view(torch.float32))
