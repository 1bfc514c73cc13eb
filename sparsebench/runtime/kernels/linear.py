"""The linear layer on our kernels, in place of ``nn.Linear`` or of GPT-2's ``Conv1D``."""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sparsebench.errors import MeasureError
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.processor import is_emulated
from sparsebench.runtime.kernels.matrix import LEVELS, TYPES, Kernels, Matrix, MatrixFields

TILE_BYTES = 4 << 20
"""Bytes of dense rows expanded at a time for torch: few enough to be read back from the third-level cache."""
DTYPE_CODES = {torch.float32: TYPES["float32"], torch.bfloat16: TYPES["bfloat16"]}
TOKENS_PER_CALL = 512
"""The most tokens that the library gets at once: its scratch stays small."""
TIMED_TOKENS = 2048
"""The most tokens that algorithms are timed with."""
MAX_DECODE_TOKENS = 8
"""Tokens up to which rows are expanded in registers for each four tokens; more are multiplied by the fastest algorithm."""
TILING_LEVELS = LEVELS[LEVELS.index("avx512-bf16") :]
"""The instruction sets with tiles of bfloat16."""
TRIALS = 3
ONE_BY_ONE, TILES, NONZEROS, BLOCKS = range(4)
"""The library's numbers for its algorithms, which ``native/sparse.cpp`` explains."""


@dataclass(frozen=True)
class Algorithm:
    """How a layer multiplies many tokens: in a result's words, and the library's number, None where torch does it."""

    label: str
    number: int | None = None


ALGORITHMS = {
    "tiles": Algorithm("tiles of bfloat16", TILES),
    "amx": Algorithm("tiles of bfloat16 by AMX", TILES),
    "blocks": Algorithm("blocks of float32", BLOCKS),
    "fours": Algorithm("four at a time", ONE_BY_ONE),
    "nonzeros": Algorithm("each nonzero times all", NONZEROS),
    "torch": Algorithm("tiles by torch"),
    "dense": Algorithm("dense by torch"),
}


class Autotuner:
    """Finds the fastest algorithm by kind of layer and number of tokens; all layers of a process share one object.

    Each is timed on the first tokens, which come during warm-up. Their results agree to within rounding.
    """

    def __init__(self) -> None:
        self.fastest: dict[tuple[Any, ...], str] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8)

    def scratch_tile(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a tile (rows, columns) to write, the same memory each time: new pages cost more than what fills them."""
        size = rows * columns * dtype.itemsize
        if self._scratch.nbytes < size:
            self._scratch = torch.empty(size, dtype=torch.uint8)
        return self._scratch[:size].view(dtype).view(rows, columns)

    def fastest_for(
        self, kind: tuple[Any, ...], algorithms: dict[str, Callable[[], torch.Tensor]], prepare: Callable[[], object]
    ) -> str:
        """Return the name of the fastest of ``algorithms`` for layers of this ``kind``; the first call times them.

        ``prepare`` is called before each trial, and not timed.
        """
        if kind not in self.fastest:
            self.fastest[kind] = min(algorithms, key=lambda name: _seconds(algorithms[name], prepare))
        return self.fastest[kind]


def bucket(number: float) -> int:
    """Return the power of two nearest to ``number`` (in logarithms), as its exponent; -99 for zero and below."""
    return round(math.log2(number)) if number > 0 else -99


def _seconds(act: Callable[[], object], prepare: Callable[[], object]) -> float:
    """Return the shortest of TRIALS times of ``act``: CPU time where one thread acts, because other programs may run."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best = math.inf
    for _ in range(TRIALS):
        prepare()
        start = clock()
        act()
        best = min(best, clock() - start)
    return best


class MatrixHolder(nn.Module):
    """A module that holds the parts of a matrix as buffers."""

    def hold(self, matrix: Matrix) -> None:
        """Keep the parts of ``matrix``, under their names."""
        self.fields_of, self._known = matrix.fields, ([], None)
        for name, part in matrix.tensors.items():
            self.register_buffer(name, part, persistent=False)

    @property
    def pointer(self) -> Any:
        """A pointer to the struct of the library, made anew where a buffer has moved.

        Every address counts: after two moves one part may be where it was before, and the others not.
        """
        addresses = [part.data_ptr() for part in self._buffers.values()]  # type: ignore[union-attr]
        if self._known[0] != addresses:
            self._known = (addresses, ctypes.pointer(self.fields_of(self._buffers)))
        return self._known[1]

    def expanded(self, first: int, last: int, out: torch.Tensor) -> torch.Tensor:
        """Write rows ``first`` up to ``last`` densely into ``out``, bfloat16 or float32, and return it."""
        as_bfloat16 = out.dtype == torch.bfloat16
        self.kernels.library.sparse_expand(
            self.pointer, first, last, out.data_ptr(), as_bfloat16, torch.get_num_threads()
        )
        return out

    kernels: Kernels
    fields_of: Callable[[Any], MatrixFields]
    _known: tuple[list[int], Any]


class KernelLinear(MatrixHolder):
    """y = x Wᵀ + b for x (…, in) in bfloat16 or float32; y (…, out) has x's dtype, the values may have another.

    Sums are in float32 and rounded once. Up to MAX_DECODE_TOKENS tokens are multiplied by the kernels, which round the inputs of
    integers to 8 bits. More take the algorithm that ``tuner`` finds the fastest (see ``by_fastest``). No gradients.
    """

    weight: torch.Tensor
    """Only the shape and the dtype to run in, on the meta device: some models ask a layer for them."""
    bias: nn.Parameter | None

    def __init__(
        self,
        kernels: Kernels,
        matrix: Matrix,
        tuner: Autotuner,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.matrix_type, self.layout, self.nonzeros = matrix.value_type, matrix.layout, matrix.nonzeros
        self.kernels, self.tuner, self.multiply = kernels, tuner, kernels.library.sparse_multiply
        self.kind = (matrix.value_type, matrix.layout, matrix.rows, matrix.cols, bucket(matrix.nonzeros))
        self.hold(matrix)
        self.register_parameter("bias", None)
        held = torch.float32 if matrix.value_type == "float32" else torch.bfloat16
        # Dense weights times many tokens of their own dtype are torch's: there is nothing to unpack that would be ours.
        as_stored = matrix.layout == "dense" and matrix.value_type == dtype_name(held)
        self.dense_dtype = held if as_stored and not is_emulated(matrix.value_type) else None
        self.weight = torch.empty((matrix.rows, matrix.cols), dtype=dtype or held, device="meta")

    @property
    def instructions(self) -> str:
        """The instruction set of the kernel for vectors of the dtype that the layer runs in."""
        return LEVELS[self.kernels.library.sparse_needs(self.pointer, DTYPE_CODES[self.weight.dtype])]

    @property
    def tiled(self) -> bool:
        """Whether our kernel multiplies tiles of bfloat16 for the dtype that the layer runs in."""
        narrow = self.matrix_type != "float32" and self.weight.dtype == torch.bfloat16
        return narrow and self.kernels.level in TILING_LEVELS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out) in x's dtype: bfloat16 or float32 on a CPU. Raises MeasureError otherwise."""
        if x.dtype not in DTYPE_CODES or x.shape[-1] != self.in_features or x.device.type != "cpu":
            raise MeasureError(
                f"a layer of {self.in_features} inputs was given {x.dtype} {tuple(x.shape)} on {x.device}",
                "measure in bfloat16 or float32",
            )
        if x.numel() <= MAX_DECODE_TOKENS * self.in_features:
            return self.by_kernel(x)
        if x.dtype == self.dense_dtype and (self.bias is None or self.bias.dtype == x.dtype):
            self.tuner.fastest[self.kind] = "dense"
            return nn.functional.linear(x, self._buffers["values"].view(x.dtype), self.bias)  # type: ignore[union-attr]
        flat = x.reshape(-1, self.in_features)
        return self.by_fastest(flat).reshape(*x.shape[:-1], self.out_features)

    def by_fastest(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (tokens, in) to (tokens, out) by the fastest algorithm.

        Rows are expanded in tiles for our kernels or for torch; of a bitmask, each nonzero may multiply all tokens instead.
        """
        some = x[:TIMED_TOKENS]
        kind = (*self.kind, x.dtype, self.kernels.level, bucket(len(some)), torch.get_num_threads())
        algorithms: dict[str, Any] = {"torch": lambda: self.by_torch(some)}
        if self.tiled and x.dtype == torch.bfloat16:
            algorithms["amx" if self.kernels.level == "avx512-amx" else "tiles"] = lambda: self.by_kernel(some, TILES)
        else:
            algorithms["blocks"] = lambda: self.by_kernel(some, BLOCKS)
            if self.matrix_type in ("float32", "bfloat16"):  # for integers it would round the inputs to 8 bits
                algorithms["fours"] = lambda: self.by_kernel(some)
        if self.layout == "bitmask":
            algorithms["nonzeros"] = lambda: self.by_kernel(some, NONZEROS)
        algorithm = ALGORITHMS[self.tuner.fastest_for(kind, algorithms, self.flush)]
        return self.by_torch(x) if algorithm.number is None else self.by_kernel(x, algorithm.number)

    def flush(self) -> None:
        """Remove the weights from the caches: in a model those of other layers have displaced them."""
        for part in self.buffers():
            self.kernels.library.sparse_flush(part.data_ptr(), part.nbytes)

    def by_kernel(self, x: torch.Tensor, algorithm: int = ONE_BY_ONE) -> torch.Tensor:
        """Multiply (…, in) to (…, out) with our kernels, at most TOKENS_PER_CALL tokens a call.

        These lines are few because Python's share of the time counts for one token.
        """
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=x.dtype)
        tokens, size, x = x.numel() // self.in_features, x.dtype.itemsize, x.contiguous()
        bias: torch.Tensor | None = self._parameters["bias"]
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        for first in range(0, tokens, TOKENS_PER_CALL):
            self.multiply(
                self.pointer,
                x.data_ptr() + first * self.in_features * size,
                y.data_ptr() + first * self.out_features * size,
                None if bias is None else bias.data_ptr(),
                min(TOKENS_PER_CALL, tokens - first),
                DTYPE_CODES[x.dtype],
                torch.get_num_threads(),
                algorithm,
            )
        return y

    def by_torch(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (tokens, in) to (tokens, out) by torch's dense products, with one tile of rows at a time."""
        # Neither side is rounded to the other's dtype, nor multiplied in a dtype that this CPU emulates.
        narrow = x.dtype == torch.bfloat16 and self.matrix_type != "float32"
        common = torch.bfloat16 if narrow and not is_emulated("bfloat16") else torch.float32
        dtype, x, bias = x.dtype, x.to(common), None if self.bias is None else self.bias.to(common)
        if self.layout == "dense" and self.matrix_type == dtype_name(common):
            stored = self.get_buffer("values").view(common)
            return nn.functional.linear(x, stored, bias).to(dtype)
        tiles = -(-self.out_features * self.in_features * common.itemsize // TILE_BYTES)
        tile = -(-self.out_features // max(1, tiles))
        scratch = self.tuner.scratch_tile(tile, self.in_features, common)
        if tile == self.out_features:
            return nn.functional.linear(x, self.expanded(0, tile, scratch), bias).to(dtype)
        y = torch.empty((x.shape[0], self.out_features), dtype=dtype)
        for first in range(0, self.out_features, tile):
            last = min(first + tile, self.out_features)
            rows = self.expanded(first, last, scratch[: last - first])
            y[:, first:last] = nn.functional.linear(x, rows, None if bias is None else bias[first:last])
        return y
