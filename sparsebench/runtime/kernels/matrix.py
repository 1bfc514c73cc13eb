"""A matrix without its zeros, as the compiled kernels lay it out: one tensor of bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, StorageError
from sparsebench.runtime.kernels.native import ENCODINGS, LAYOUTS, TYPES, Kernels

if TYPE_CHECKING:
    import torch

WIDEST = {"bitmask": math.inf, "csr16": 2**16 - 1, "runs": 2**21}
"""Columns that each layout reaches: 16 bits name one of them, but for the one that stands for none, or a run of 32."""
MOST = 2**32 - 1
"""Nonzeros that 32-bit row pointers reach."""
TILE = 512
"""Rows that are expanded together, or multiples of it: the window in which csr16 sorts its rows; runs take sixteen."""


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
    return _counted(kernels, "dense", torch.empty(0, dtype=torch.uint8), weight.contiguous(), rows, cols)


def from_packed(
    kernels: Kernels, encoding: str, index: torch.Tensor, values: torch.Tensor, rows: int, cols: int
) -> Nonzeros:
    """The nonzeros of a packed tensor (bitmask, gaps4 or gaps8), without its dense form.

    Raises StorageError (without the tensor's name) when index, values and shape do not belong together.
    """
    return _counted(kernels, encoding, index, values, rows, cols)


def _counted(
    kernels: Kernels, encoding: str, index: torch.Tensor, values: torch.Tensor, rows: int, cols: int
) -> Nonzeros:
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
    return (
        ENCODINGS[found.encoding],
        found.index.data_ptr(),
        found.index.numel(),
        found.values.data_ptr(),
        found.values.numel(),
        found.values.element_size(),
        found.rows,
        found.cols,
    )
