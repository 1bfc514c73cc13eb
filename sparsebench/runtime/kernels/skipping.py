"""Linear layers that for one token read only the weights that meet values above a threshold; several are multiplied densely."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from sparsebench.models.skipping import masked
from sparsebench.runtime.kernels.linear import CODES
from sparsebench.runtime.kernels.matrix import LEVELS, Kernels

WIDEST = LEVELS.index("avx512")
"""The highest instruction set that these kernels have a form for."""


def instructions(kernels: Kernels) -> str:
    """The instruction set of these kernels here."""
    return LEVELS[min(kernels.library.sparse_level(), WIDEST)]


@dataclass
class Tally:
    """What one layer has read for single tokens: ``read`` of the ``weights`` for each of ``tokens``, in all."""

    way: str
    weights: int
    read: int = 0
    tokens: int = 0

    @property
    def share(self) -> float:
        """The share of the weights that was read for a token, so far; 1 before any."""
        return self.read / (self.tokens * self.weights) if self.tokens else 1.0


class Skipping(nn.Module):
    """What both kinds share: for one token some rows of the stored matrix are read. No gradients.

    ``matrix`` is bfloat16 or float32 on a CPU, contiguous, so that what is read for one of them lies side by side.
    """

    way: str
    by_columns: bool
    matrix: torch.Tensor
    bias: nn.Parameter | None

    def __init__(
        self, kernels: Kernels, matrix: torch.Tensor, shape: tuple[int, int], bias: nn.Parameter | None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_parameter("bias", bias)
        # Some models ask a layer for the shape and dtype of its weight.
        self.weight = torch.empty(shape, dtype=matrix.dtype, device="meta")
        self.multiply = kernels.library.sparse_skip
        self.tally = Tally(self.way, matrix.numel())

    def one(self, x: torch.Tensor, decides: torch.Tensor, limit: float) -> torch.Tensor:
        """The product with a single token, reading what ``decides`` (of x's dtype) says, where it is above ``limit``."""
        y = torch.empty((*x.shape[:-1], self.out_features), dtype=x.dtype, device="cpu")
        x, decides = x.contiguous(), decides.contiguous()
        bias = None if self.bias is None else self.bias.to(x.dtype)
        read = self.multiply(
            self.matrix.data_ptr(), self.matrix.element_size(), self.by_columns, x.data_ptr(), decides.data_ptr(), limit,
            CODES[x.dtype], self.in_features, self.out_features, None if bias is None else bias.data_ptr(), y.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        self.tally.tokens += 1
        self.tally.read += read * self.matrix.shape[1]
        return y


class SkipColumns(Skipping):
    """y = W x' + b, x' being x with zeros up to ``limit``: rows of Wᵀ (in, out) are read for the inputs above it."""

    way, by_columns = "inputs above a threshold", True

    def __init__(self, kernels: Kernels, columns: torch.Tensor, bias: nn.Parameter | None, limit: float) -> None:
        super().__init__(kernels, columns, (columns.shape[1], columns.shape[0]), bias)
        self.limit = limit

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        if x.numel() == self.in_features:
            return self.one(x, x, self.limit)
        turned = self.matrix.T
        if (
            x.dtype == torch.bfloat16
        ):  # by columns torch is eight times as slow where the processor has no such instructions
            turned = turned.contiguous()
        return nn.functional.linear(masked(x, self.limit), turned, self.bias)


class Deciding(nn.Module):
    """An activation function whose values up to ``limit`` become zero; of one token they are kept for ``SkipRows``."""

    def __init__(self, function: nn.Module, limit: float) -> None:
        super().__init__()
        self.function, self.limit = function, limit
        self.values: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the function, masked."""
        made = masked(self.function(x), self.limit)
        self.values = made if made.numel() == made.shape[-1] else None
        return made

    def taken(self) -> torch.Tensor | None:
        """What was kept, once: it says nothing of the next token."""
        found, self.values = self.values, None
        return found


class SkipRows(Skipping):
    """y = W x + b where ``decide`` gives, for one token, something other than 0, and 0 elsewhere: those rows of W (out, in) are
    not read. Where it gives None all are."""

    way, by_columns = "outputs that are used", False

    def __init__(
        self,
        kernels: Kernels,
        rows: torch.Tensor,
        bias: nn.Parameter | None,
        decide: Callable[[], torch.Tensor | None],
    ) -> None:
        super().__init__(kernels, rows, (rows.shape[0], rows.shape[1]), bias)
        self.decide = decide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out)."""
        values = self.decide() if x.numel() == self.in_features else None
        if values is None:
            return nn.functional.linear(x, self.matrix, self.bias)
        return self.one(x, values.to(x.dtype), 0.0)
