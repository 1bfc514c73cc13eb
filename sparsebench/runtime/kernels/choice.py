"""Which layout a matrix gets, and how several tokens at once are multiplied: by what was faster here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sparsebench.runtime.kernels.matrix import MOST, WIDEST, Nonzeros

if TYPE_CHECKING:
    import torch

    from sparsebench.runtime.kernels.speeds import Speeds

DENSE_ABOVE = 0.8
"""Density from which zeros are too few to pay: at 20% of them a bitmask saves an eighth of the bytes."""
TRIALS = 3


def layout_for(found: Nonzeros, speeds: Speeds) -> str:
    """``dense``, or the layout that suits one token and the matrix's density best, of those that reach its columns."""
    if found.density > DENSE_ABOVE or found.total > MOST:
        return "dense"
    return speeds.best(found.density, [layout for layout, widest in WIDEST.items() if found.cols <= widest])


class Choices:
    """What was found faster, by kind of layer and number of tokens; one for all layers of a process.

    Both ways are timed once, on the first tokens that come, which is in warming up. They agree to within rounding.
    """

    def __init__(self) -> None:
        self.faster: dict[tuple[Any, ...], str] = {}

    def pick(self, kind: tuple[Any, ...], ways: dict[str, Callable[[], torch.Tensor]]) -> str:
        """The name of the faster of ``ways`` for layers of this ``kind``."""
        if kind not in self.faster:
            self.faster[kind] = min(ways, key=lambda name: _seconds(ways[name]))
        return self.faster[kind]


def bucket(number: float) -> int:
    """Numbers within a factor of two of each other share a bucket."""
    return round(math.log2(number)) if number > 0 else -99


def _seconds(act: Callable[[], object]) -> float:
    """The best of a few."""
    best = float("inf")
    for _ in range(TRIALS):
        start = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - start)
    return best
