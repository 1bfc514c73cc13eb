"""Linear layers that read, for a few tokens, only the weights of values above a threshold; more tokens run densely.

Each of several tokens has its own values. A row of weights is read once, if any token needs it, and is used only for
the tokens that do. That is never more bytes than reading each token's rows by itself, or than reading all rows. Where
each token skips a share s independently, n tokens together still skip sⁿ: at 50% a sixteenth for four, next to nothing
beyond eight.
"""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sparsebench import processor
from sparsebench.models.files.checkpoint import dtype_name
from sparsebench.models.modules.skipping import masked
from sparsebench.runtime.kernels.linear import DTYPE_CODES, MatrixHolder
from sparsebench.runtime.kernels.matrix import (
    LEVELS,
    MASK_WORD_COLUMNS,
    Kernels,
    Matrix,
    bitmask_is_smaller,
    to_bitmask,
)

HIGHEST_LEVEL = LEVELS.index("avx512")
"""The highest instruction set for which these kernels have code."""
MOST_TOKENS = 16
"""The most tokens that are multiplied by only the rows that any of them needs. By inputs, 16 tokens took three quarters
of the time of the dense product with the transposed matrix, though they read nearly all rows; 32 took as long as that
(bfloat16, one thread with AVX-512)."""
MOST_MULTIPLIED = 1.25
"""The limit of the rows that several tokens multiply, summed over the tokens and divided by all rows. Above it, by
outputs in bfloat16, torch's product with all rows is faster: it took 1.1 to 1.3 times as long at 1.0, and 0.8 to 0.95
times at 1.5 (measured as above)."""
OVERREAD = 64
"""Bytes behind the values that the kernels may read."""
PANEL = 256
"""About how many outputs separate the positions where a thread can start in a bitmask that is stored by inputs."""


def instructions(kernels: Kernels) -> str:
    """Return the instruction set that these kernels use on this machine."""
    return LEVELS[min(kernels.library.sparse_level(), HIGHEST_LEVEL)]


@dataclass
class Tally:
    """What one layer with ``weights`` weights has read, by the number of tokens that were multiplied at once.

    ``met`` counts the weights of the rows that were read, zeros included, ``multiplied`` those of them that are stored,
    and ``bytes`` the bytes read for them; each is summed over ``products``. ``without_skipping`` is (multiplied, bytes)
    of one product that skips nothing.
    """

    reads: str
    weights: int
    without_skipping: tuple[int, int]
    is_bitmask: bool = False
    products: Counter[int] = field(default_factory=Counter)
    met: Counter[int] = field(default_factory=Counter)
    multiplied: Counter[int] = field(default_factory=Counter)
    bytes: Counter[int] = field(default_factory=Counter)

    def add(self, tokens: int, met: int, multiplied: int, nbytes: int) -> None:
        """Count one product of ``tokens`` tokens."""
        self.products[tokens] += 1
        self.met[tokens] += met
        self.multiplied[tokens] += multiplied
        self.bytes[tokens] += nbytes

    def product(self, tokens: int) -> tuple[float, float, float]:
        """Return the mean ``met``, ``multiplied`` and ``bytes`` of a product of ``tokens`` tokens.

        Before any such product, return the numbers of one that skips nothing.
        """
        if count := self.products[tokens]:
            return self.met[tokens] / count, self.multiplied[tokens] / count, self.bytes[tokens] / count
        return self.weights, *self.without_skipping


class Skipping(MatrixHolder):
    """The common part of both kinds: for a few tokens only some rows of the stored matrix are read. No gradients.

    The matrix is bfloat16 or float32 on a CPU, stored so that the weights of an input (or output) are contiguous:
    dense, or as a bitmask without zeros where that saves time. Set ``reads_all`` to have the same kernel read
    everything without comparing, to measure what comparing costs.
    """

    reads: str
    by_columns: bool
    matrix: torch.Tensor
    bias: nn.Parameter | None
    bitmask_shape: tuple[int, int] | None
    """Rows and columns of the bitmask that is held; None for a dense ``matrix``."""
    reads_all = False

    def __init__(
        self, kernels: Kernels, matrix: torch.Tensor, shape: tuple[int, int], bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.kernels, self.item_size = kernels, matrix.element_size()
        self.rows, self.width = matrix.shape
        self.panels = -(-self.width // PANEL) if self.by_columns else 1
        bitmask = _as_bitmask(kernels, matrix, self.panels)
        self.bitmask_shape = (bitmask.rows, bitmask.cols) if bitmask else None
        if bitmask:
            self.hold(bitmask)
        else:
            self.register_buffer("matrix", matrix, persistent=False)
        self.register_parameter("bias", bias)
        # Some models ask a layer for the shape and dtype of its weight.
        self.weight = torch.empty(shape, dtype=matrix.dtype, device="meta")
        self.multiply = kernels.library.sparse_skip
        stored = bitmask.nonzeros if bitmask else matrix.numel()
        without_skipping = stored, stored * self.item_size + self.rows * self.index_bytes
        self.tally = Tally(self.reads, matrix.numel(), without_skipping, bitmask is not None)

    @property
    def index_bytes(self) -> int:
        """The bytes read of a bitmask besides a row's nonzeros: a bit for each weight, and where its panels begin."""
        return (-(-self.bitmask_shape[1] // MASK_WORD_COLUMNS) * 8 + 8) * self.panels if self.bitmask_shape else 0

    def has_few_tokens(self, x: torch.Tensor) -> bool:
        """Return whether ``x`` has few enough tokens to read only the rows that they need."""
        return 0 < x.numel() <= MOST_TOKENS * self.in_features

    def multiply_needed(self, x: torch.Tensor, decides: torch.Tensor, limit: float) -> torch.Tensor:
        """Multiply a few tokens, reading the rows where |``decides``| (of x's dtype) is above ``limit`` for any."""
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=x.dtype, device="cpu")
        x, decides = x.contiguous(), decides.contiguous()
        bias = None if self.bias is None else self.bias.to(x.dtype)
        tokens, stored = x.numel() // self.in_features, ctypes.c_int64()
        matrix, item_size = (self.pointer, 0) if self.bitmask_shape else (self.matrix.data_ptr(), self.item_size)
        read = self.multiply(
            matrix, item_size, self.by_columns, x.data_ptr(),
            None if self.reads_all else decides.data_ptr(), limit, DTYPE_CODES[x.dtype],
            self.in_features, self.out_features, tokens,
            None if bias is None else bias.data_ptr(), y.data_ptr(), torch.get_num_threads(), ctypes.byref(stored),
        )  # fmt: skip
        nbytes = stored.value * self.item_size + read * self.index_bytes
        self.tally.add(tokens, read * self.width, stored.value, nbytes)
        return y

    def multiply_all(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply by all weights."""
        dense_matrix = self.dense_matrix()
        if not self.by_columns:
            return nn.functional.linear(x, dense_matrix, self.bias)
        # Without bfloat16 instructions a transposed matrix makes torch eight times as slow; with them a copy is slower.
        slow = x.dtype == torch.bfloat16 and processor.is_emulated("bfloat16")
        return nn.functional.linear(x, dense_matrix.T.contiguous() if slow else dense_matrix.T, self.bias)

    def dense_matrix(self) -> torch.Tensor:
        """Return the dense matrix as it was given, (rows, width)."""
        if not self.bitmask_shape:
            return self.matrix
        weights = torch.empty(self.bitmask_shape, dtype=self.weight.dtype, device="cpu")
        return self.expanded(0, self.bitmask_shape[0], weights).reshape(self.rows, -1)[:, : self.width]


def _as_bitmask(kernels: Kernels, matrix: torch.Tensor, panels: int) -> Matrix | None:
    """Return a (rows, width) matrix as a bitmask, each row cut into ``panels`` of whole words of 64 bits.

    Return None where there are too few zeros to save anything, and below AVX-512, where placing the nonzeros takes
    longer than reading the zeros.
    """
    rows, width = matrix.shape
    name = dtype_name(matrix.dtype)
    if (
        not bitmask_is_smaller(name, rows, width, int(matrix.count_nonzero()))
        or kernels.library.sparse_level() < HIGHEST_LEVEL
    ):
        return None
    if panels > 1:
        panel_width = MASK_WORD_COLUMNS * math.ceil(width / panels / MASK_WORD_COLUMNS)
        matrix = nn.functional.pad(matrix, (0, panels * panel_width - width)).reshape(rows * panels, panel_width)
    stored = to_bitmask(matrix)
    return replace(stored, values=nn.functional.pad(stored.values, (0, OVERREAD)))


class SkipColumns(Skipping):
    """y = W x' + b, where x' is x with magnitudes up to ``limit`` set to zero; Wᵀ (in, out) is read for the others."""

    reads, by_columns = "inputs above a threshold", True

    def __init__(self, kernels: Kernels, columns: torch.Tensor, bias: nn.Parameter | None, limit: float) -> None:
        super().__init__(kernels, columns, (columns.shape[1], columns.shape[0]), bias)
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out)."""
        if self.has_few_tokens(x):
            return self.multiply_needed(x, x, self.limit)
        return self.multiply_all(masked(x, self.limit))


class ThresholdedActivation(nn.Module):
    """An activation function whose values up to ``limit`` become zero; a few tokens' are kept for ``SkipRows``."""

    def __init__(self, function: nn.Module, limit: float) -> None:
        super().__init__()
        self.function, self.limit = function, limit
        self.values: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the function and mask its values."""
        activations = masked(self.function(x), self.limit)
        self.values = activations if activations.numel() <= MOST_TOKENS * activations.shape[-1] else None
        return activations

    def take_values(self) -> torch.Tensor | None:
        """Return the kept values and forget them: they say nothing about the next tokens."""
        values, self.values = self.values, None
        return values


class SkipRows(Skipping):
    """y = W x + b at outputs where ``deciding_values`` returns a nonzero value, and 0 elsewhere, for a few tokens.

    Rows of W (out, in) where it is 0 for all tokens are not read. Where ``deciding_values`` returns None, y is W x + b.
    """

    reads, by_columns = "outputs that are used", False

    def __init__(
        self,
        kernels: Kernels,
        rows: torch.Tensor,
        bias: nn.Parameter | None,
        deciding_values: Callable[[], torch.Tensor | None],
    ) -> None:
        super().__init__(kernels, rows, (rows.shape[0], rows.shape[1]), bias)
        self.deciding_values = deciding_values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out)."""
        if not self.has_few_tokens(x):
            return self.multiply_all(x)
        if self.reads_all:
            return self.multiply_needed(x, x, 0.0)  # nothing decides
        values = self.deciding_values()
        if values is None:
            return self.multiply_all(x)
        tokens = x.numel() // self.in_features
        if self._needs_many_rows(values, tokens):
            self.tally.add(tokens, self.tally.weights, *self.tally.without_skipping)
            return self.multiply_all(x).masked_fill(values.reshape(*x.shape[:-1], -1) == 0, 0)
        return self.multiply_needed(x, values.to(x.dtype), 0.0)

    def _needs_many_rows(self, values: torch.Tensor, tokens: int) -> bool:
        """Return whether the tokens need so many rows that multiplying by all is faster."""
        if tokens == 1 or self.bitmask_shape or self.item_size == 4 or processor.is_emulated("bfloat16"):
            return False
        return int(values.count_nonzero()) > MOST_MULTIPLIED * self.out_features
