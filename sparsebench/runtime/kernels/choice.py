"""Which layout a matrix gets, and how several tokens at once are multiplied: by what was faster here."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsebench.runtime.kernels.matrix import MOST, WIDEST, Nonzeros

if TYPE_CHECKING:
    import torch

    from sparsebench.runtime.kernels.native import Kernels

DENSE_ABOVE = 0.8
"""Density from which zeros are too few to pay: at 20% of them a bitmask saves an eighth of the bytes."""
STEPS = (0.02, 0.03, 0.05, 0.08, 0.12, 0.17, 0.25, 0.4)
"""Densities at which the layouts may change places: coarse, so that two processes on one machine agree."""
SIDE, SPARSE, COPIES = 2048, 0.1, 64
"""Rows and columns, density and copies of the matrix that decides between them: 90 MB, as a model's layers come from memory."""
TRIALS = 3


def layout_for(found: Nonzeros, csr_below: float) -> str:
    """``dense``, ``bitmask`` or, below a density of ``csr_below``, ``csr16``."""
    if found.density > DENSE_ABOVE or found.total > MOST:
        return "dense"
    return "csr16" if found.density < csr_below and found.cols <= WIDEST else "bitmask"


def csr_below(kernels: Kernels) -> float:
    """The density below which csr16 beats a bitmask for one token, on this machine and by its threads, measured once.

    A bitmask's work does not shrink with its nonzeros, and csr16's does. Where they meet depends on the processor: near
    17% where expanding a mask is slow (Zen 4), near 8% where looking up inputs is (a Xeon of Sapphire Rapids).
    """
    import torch

    return _meeting(kernels, kernels.level, torch.get_num_threads())


@functools.cache
def _meeting(kernels: Kernels, level: str, threads: int) -> float:
    import torch

    from sparsebench.runtime.kernels.linear import SparseLinear
    from sparsebench.runtime.kernels.matrix import from_dense

    draw = torch.Generator().manual_seed(0)
    weight = torch.rand(SIDE, SIDE, generator=draw)
    found = from_dense(kernels, torch.where(weight < SPARSE, weight, 0).bfloat16())
    x = torch.rand(1, SIDE, generator=draw).bfloat16()
    seconds = {}
    for layout in ("bitmask", "csr16"):
        matrix = found.laid_out(kernels, layout)
        copies = [replace(matrix, data=matrix.data.clone()) for _ in range(COPIES)]
        layers = [SparseLinear(kernels, copy, None, Choices()) for copy in copies]
        seconds[layout] = _seconds(lambda layers=layers: [layer(x) for layer in layers])  # type: ignore[misc]
    meeting = SPARSE * seconds["bitmask"] / seconds["csr16"]
    return min(STEPS, key=lambda step: abs(math.log(step / meeting)))


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
