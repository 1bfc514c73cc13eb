"""A matrix stored without zeros in one tensor of bytes, and the kernels of ``native/sparse.cpp`` that lay it out."""

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
"""Instruction sets in rising order; each kernel uses the best one for which it has code."""
LAYOUTS = ("bitmask", "csr16", "runs")
TYPES = {"torch.float32": 0, "torch.bfloat16": 1}
"""The dtypes that vectors may have, with the library's numbers for them."""
ENCODINGS = {"dense": -1, "bitmask": 0, "gaps8": 1, "gaps4": 2}
WIDEST = {"bitmask": math.inf, "csr16": 2**16 - 1, "runs": 2**21}
"""The most columns of each layout. 16 bits name a column in csr16 (one number means none), and a run of 32 in runs."""
MOST = 2**32 - 1
"""The most nonzeros that 32-bit row pointers can count."""
TILE = 512
"""Rows are expanded in multiples of this: csr16 sorts its rows within windows of this size; runs need only sixteen."""

DAMAGED = ("its packed index and values do not match: the file is damaged", "pack it again")

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
    """The library, its file, and whether it shares torch's threads; where not, it starts threads for each call."""

    library: ctypes.CDLL
    path: Path
    shared: bool

    @property
    def level(self) -> str:
        """The instruction set in use."""
        return LEVELS[self.library.sparse_level()]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a result should say of them."""
        return () if self.shared else ("no OpenMP of torch's was found: each product starts threads of its own",)

    def use(self, level: str) -> None:
        """Use ``level``, or the best level below it that this CPU has; for tests and tables."""
        self.library.sparse_use(LEVELS.index(level))


@functools.cache
def kernels() -> Kernels | Missing:
    """Load the kernels, compiling them if they are not in the cache; return why there are none where that fails."""
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

    ``values`` are all words of the dense matrix. With an ``encoding`` of the packed format they are the stored values,
    and ``index`` (uint8) gives their positions. ``counts`` (rows,) int32 are the nonzeros of each row; zeros among the
    values do not count, -0.0 included.
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
        """The share of nonzero weights."""
        return self.total / max(1, self.rows * self.cols)

    def laid_out(self, kernels: Kernels, layout: str) -> SparseMatrix:
        """Return the matrix in ``layout``; its size is computed first, so nothing is held twice.

        Raises StorageError (without the tensor's name) when index and values do not belong together.
        """
        import torch

        given = (LAYOUTS.index(layout), *_arguments(self), self.counts.data_ptr())
        data = torch.zeros(kernels.library.sparse_bytes(*given), dtype=torch.uint8)
        if kernels.library.sparse_encode(*given, data.data_ptr()):
            raise StorageError(*DAMAGED)
        return SparseMatrix(layout, self.rows, self.cols, self.total, self.values.dtype, data)


def from_dense(kernels: Kernels, weight: torch.Tensor) -> Nonzeros:
    """Return the nonzeros of a dense (rows, cols) matrix. Raises ModelError unless it is bfloat16 or float32."""
    import torch

    rows, cols = weight.shape
    return from_packed(kernels, "dense", torch.empty(0, dtype=torch.uint8), weight.contiguous(), rows, cols)


def from_packed(
    kernels: Kernels, encoding: str, index: torch.Tensor, values: torch.Tensor, rows: int, cols: int
) -> Nonzeros:
    """Return the nonzeros of a packed tensor (bitmask, gaps4 or gaps8), without expanding it.

    Raises StorageError (without the tensor's name) when index, values and shape do not belong together, ModelError for
    values that are neither bfloat16 nor float32.
    """
    import torch

    if str(values.dtype) not in TYPES:
        raise ModelError(f"sparse kernels hold bfloat16 and float32, not {values.dtype}", "measure it in bfloat16")
    counts = torch.zeros(rows, dtype=torch.int32)
    found = Nonzeros(encoding, index, values, rows, cols, counts, 0)
    total = kernels.library.sparse_count(*_arguments(found), counts.data_ptr())
    if total < 0:
        raise StorageError(*DAMAGED)
    return Nonzeros(encoding, index, values, rows, cols, counts, total)


def _arguments(found: Nonzeros) -> tuple[Any, ...]:
    index, values = found.index, found.values
    given = (index.data_ptr(), index.numel(), values.data_ptr(), values.numel(), values.element_size())
    return ENCODINGS[found.encoding], *given, found.rows, found.cols
