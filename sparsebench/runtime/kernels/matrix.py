"""A matrix without its zeros, one tensor of bytes, and the compiled kernels of ``native/sparse.cpp`` that lay it out so."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, StorageError
from sparsebench.native import Missing, library

if TYPE_CHECKING:
    import torch

LEVELS = ("portable", "avx2", "avx512", "avx512-vbmi2", "avx512-bf16")
"""Instruction sets in rising order; each kernel uses the best one that it has a form for."""
LAYOUTS = ("bitmask", "csr16", "runs")
TYPES = {"torch.float32": 0, "torch.bfloat16": 1}
"""What vectors may be, as the library numbers it."""
ENCODINGS = {"dense": -1, "bitmask": 0, "gaps8": 1, "gaps4": 2}
WIDEST = {"bitmask": math.inf, "csr16": 2**16 - 1, "runs": 2**21}
"""Columns that each layout reaches: 16 bits name one of them, but for the one that stands for none, or a run of 32."""
MOST = 2**32 - 1
"""Nonzeros that 32-bit row pointers reach."""
TILE = 512
"""Rows that are expanded together, or multiples of it: the window in which csr16 sorts its rows; runs take sixteen."""

_P, _L, _I = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SOURCE = [_I, _P, _L, _P, _L, _I, _L, _L, _P]
_SIGNATURES: dict[str, tuple[list[Any], Any]] = {
    "sparse_level": ([], _I),
    "sparse_use": ([_I], _I),
    "sparse_needs": ([_P, _I], _I),
    "sparse_threads": ([_P, _P, _P], None),
    "sparse_count": (_SOURCE, _L),
    "sparse_bytes": ([_I, *_SOURCE], _L),
    "sparse_encode": ([_I, *_SOURCE, _P], _I),
    "sparse_multiply": ([_P, _P, _P, _P, _L, _I, _I], None),
    "sparse_expand": ([_P, _L, _L, _P, _I], None),
    "sparse_skip": ([_P, _I, _I, _P, _P, ctypes.c_float, _I, _L, _L, _L, _P, _P, _I, _P], _L),
}
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")


@dataclass(frozen=True)
class Kernels:
    """The library, its file, and whose threads it uses: torch's own, or (``shared`` false) some started for each call."""

    library: ctypes.CDLL
    path: Path
    shared: bool

    @property
    def level(self) -> str:
        """The instruction set in use."""
        return LEVELS[self.library.sparse_level()]

    def use(self, level: str) -> None:
        """Use ``level``, or the best below it that this CPU has: for tests and for tables."""
        self.library.sparse_use(LEVELS.index(level))


@functools.cache
def kernels() -> Kernels | Missing:
    """The kernels, compiled when nobody has before; or why there are none."""
    import torch  # noqa: F401 - loads the OpenMP runtime that is looked for below

    found = library("sparse", "-pthread")
    if isinstance(found, Missing):
        return found
    for name, (arguments, result) in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    process = ctypes.CDLL(None)
    shared = all(hasattr(process, name) for name in _OPENMP)
    if shared:
        found.sparse_threads(*(ctypes.cast(getattr(process, name), _P) for name in _OPENMP))
    return Kernels(found, Path(found._name), shared)


@dataclass(frozen=True)
class SparseMatrix:
    """A (rows, cols) matrix of ``nonzeros`` values of ``dtype``, in ``layout`` (one of LAYOUTS); ``data`` is uint8."""

    layout: str
    rows: int
    cols: int
    nonzeros: int
    dtype: torch.dtype
    data: torch.Tensor


@dataclass(frozen=True)
class Nonzeros:
    """Where the nonzeros of a (rows, cols) matrix are, before a layout is chosen.

    ``values`` are the words of the dense matrix, or with an ``encoding`` of the packed format the values that ``index``
    (uint8) places; ``counts`` (rows,) int32 are the nonzeros of each row. Zeros among the values, -0.0 too, do not count.
    """

    encoding: str
    index: torch.Tensor
    values: torch.Tensor
    rows: int
    cols: int
    counts: torch.Tensor
    total: int

    @property
    def density(self) -> float:
        """The share of weights that are not zero."""
        return self.total / max(1, self.rows * self.cols)

    def laid_out(self, kernels: Kernels, layout: str) -> SparseMatrix:
        """The matrix in ``layout``; its size is measured first, so nothing is held twice."""
        import torch

        given = (LAYOUTS.index(layout), *_arguments(self), self.counts.data_ptr())
        data = torch.zeros(kernels.library.sparse_bytes(*given), dtype=torch.uint8)
        if kernels.library.sparse_encode(*given, data.data_ptr()):
            raise StorageError("its index does not fit its values")
        return SparseMatrix(layout, self.rows, self.cols, self.total, self.values.dtype, data)


def from_dense(kernels: Kernels, weight: torch.Tensor) -> Nonzeros:
    """The nonzeros of a dense (rows, cols) matrix, bfloat16 or float32."""
    import torch

    rows, cols = weight.shape
    return from_packed(kernels, "dense", torch.empty(0, dtype=torch.uint8), weight.contiguous(), rows, cols)


def from_packed(
    kernels: Kernels, encoding: str, index: torch.Tensor, values: torch.Tensor, rows: int, cols: int
) -> Nonzeros:
    """The nonzeros of a packed tensor (bitmask, gaps4 or gaps8), without its dense form.

    Raises StorageError (without the tensor's name) when index, values and shape do not belong together.
    """
    import torch

    if str(values.dtype) not in TYPES:
        raise ModelError(f"sparse kernels hold bfloat16 and float32, not {values.dtype}", "measure it in bfloat16")
    counts = torch.zeros(rows, dtype=torch.int32)
    found = Nonzeros(encoding, index, values, rows, cols, counts, 0)
    total = kernels.library.sparse_count(*_arguments(found), counts.data_ptr())
    if total < 0:
        raise StorageError("its index does not fit its values")
    return Nonzeros(encoding, index, values, rows, cols, counts, total)


def _arguments(found: Nonzeros) -> tuple[Any, ...]:
    index, values = found.index, found.values
    given = (index.data_ptr(), index.numel(), values.data_ptr(), values.numel(), values.element_size())
    return ENCODINGS[found.encoding], *given, found.rows, found.cols
