"""The linear layer that holds a sparse matrix, in place of ``nn.Linear`` or of GPT-2's ``Conv1D``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sparsebench.environment import emulated
from sparsebench.errors import MeasureError
from sparsebench.runtime.kernels.matrix import LEVELS, TILE, TYPES, Kernels, SparseMatrix

TILE_BYTES = 2 << 20
"""Bytes of dense rows expanded at a time: few enough to be read back from the cache."""
CODES = {torch.float32: TYPES["torch.float32"], torch.bfloat16: TYPES["torch.bfloat16"]}
TOKENS = 128
"""The most tokens that the kernel gets at once (its scratch stays small), and that the two ways are timed with."""


TRIALS = 3


class Choices:
    """The faster way by kind of layer and number of tokens; all layers of a process share one object.

    Both ways are timed once, on the first tokens, which come during warm-up. Their results agree to within rounding.
    """

    def __init__(self) -> None:
        self.faster: dict[tuple[Any, ...], str] = {}

    def pick(self, kind: tuple[Any, ...], ways: dict[str, Callable[[], torch.Tensor]]) -> str:
        """Return the name of the fastest of ``ways`` for layers of this ``kind``; the first call times them."""
        if kind not in self.faster:
            self.faster[kind] = min(ways, key=lambda name: _seconds(ways[name]))
        return self.faster[kind]


def bucket(number: float) -> int:
    """Return the power of two nearest to ``number`` (in logarithms), as its exponent; -99 for zero and below."""
    return round(math.log2(number)) if number > 0 else -99


def _seconds(act: Callable[[], object]) -> float:
    """Return the shortest of TRIALS times."""
    best = float("inf")
    for _ in range(TRIALS):
        start = time.perf_counter()
        act()
        best = min(best, time.perf_counter() - start)
    return best


class SparseLinear(nn.Module):
    """y = x Wᵀ + b for x (…, in) in bfloat16 or float32; y (…, out) has x's dtype, the values may have another.

    Sums are kept in float32 and rounded once. One token is multiplied by the sparse kernel. Several are multiplied by
    it or by dense products with rows expanded tile by tile, whichever ``choices`` finds faster. No gradients.
    """

    data: torch.Tensor
    weight: torch.Tensor
    """Only the shape and the dtype to run in, on the meta device: some models ask a layer for them."""
    bias: nn.Parameter | None

    def __init__(
        self,
        kernels: Kernels,
        matrix: SparseMatrix,
        bias: nn.Parameter | None,
        choices: Choices,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.layout, self.nonzeros, self.dtype = matrix.layout, matrix.nonzeros, matrix.dtype
        self.kernels, self.choices, self.multiply = kernels, choices, kernels.library.sparse_multiply
        self.kind = (matrix.layout, matrix.rows, matrix.cols, str(matrix.dtype), bucket(matrix.nonzeros))
        self.register_buffer("data", matrix.data, persistent=False)
        self.register_parameter("bias", bias)
        self.weight = torch.empty((matrix.rows, matrix.cols), dtype=dtype or matrix.dtype, device="meta")
        rows = TILE_BYTES // (matrix.cols * matrix.dtype.itemsize)
        self.tile = max(TILE, rows // TILE * TILE)

    @property
    def instructions(self) -> str:
        """The instruction set of the kernel for vectors of the dtype that the layer runs in."""
        return LEVELS[self.kernels.library.sparse_needs(self.data.data_ptr(), CODES[self.weight.dtype])]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out) in x's dtype: bfloat16 or float32 on a CPU. Raises MeasureError otherwise."""
        if x.dtype not in CODES or x.shape[-1] != self.in_features or x.device.type != "cpu":
            raise MeasureError(
                f"a sparse layer of {self.in_features} inputs was given {x.dtype} {tuple(x.shape)} on {x.device}",
                "measure in bfloat16 or float32",
            )
        if x.numel() <= self.in_features:
            return self.by_kernel(x)
        flat = x.reshape(-1, self.in_features)
        some = flat[:TOKENS]
        kind = (*self.kind, str(x.dtype), bucket(len(some)), torch.get_num_threads())
        ways: dict[str, Any] = {"sparse": lambda: self.by_kernel(some), "dense": lambda: self.by_tiles(some)}
        found = self.by_kernel(flat) if self.choices.pick(kind, ways) == "sparse" else self.by_tiles(flat)
        return found.reshape(*x.shape[:-1], self.out_features)

    def by_kernel(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out) with the sparse kernel, at most TOKENS tokens a call.

        The code is short because Python's share of the time counts for one token.
        """
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=x.dtype)
        tokens, size, x = y.numel() // self.out_features, x.dtype.itemsize, x.contiguous()
        bias: torch.Tensor | None = self._parameters["bias"]
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        for first in range(0, tokens, TOKENS):
            self.multiply(
                self._buffers["data"].data_ptr(),  # type: ignore[union-attr]
                x.data_ptr() + first * self.in_features * size,
                y.data_ptr() + first * self.out_features * size,
                None if bias is None else bias.data_ptr(),
                min(TOKENS, tokens - first),
                CODES[x.dtype],
                torch.get_num_threads(),
            )
        return y

    def by_tiles(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (tokens, in) to (tokens, out) by dense products, with one tile of rows at a time."""
        y = torch.empty((x.shape[0], self.out_features), dtype=x.dtype)
        # Neither side is rounded to the other's dtype, nor multiplied in a dtype that this CPU emulates.
        alike = x.dtype == self.dtype and not emulated(str(x.dtype).removeprefix("torch."))
        common = x.dtype if alike else torch.float32
        x, bias = x.to(common), None if self.bias is None else self.bias.to(common)
        room = torch.empty((min(self.tile, self.out_features), self.in_features), dtype=self.dtype)
        for first in range(0, self.out_features, self.tile):
            last = min(first + self.tile, self.out_features)
            rows = self.expanded(first, last, room[: last - first]).to(common)
            y[:, first:last] = nn.functional.linear(x, rows, None if bias is None else bias[first:last])
        return y

    def expanded(self, first: int, last: int, out: torch.Tensor) -> torch.Tensor:
        """Write rows ``first`` up to ``last`` densely into ``out`` and return it; ``first`` is a multiple of TILE."""
        self.kernels.library.sparse_expand(self.data.data_ptr(), first, last, out.data_ptr(), torch.get_num_threads())
        return out

    def extra_repr(self) -> str:
        """Return the description of the layer in ``print(model)``."""
        return f"{self.in_features}, {self.out_features}, {self.layout}, nonzeros={self.nonzeros}"
