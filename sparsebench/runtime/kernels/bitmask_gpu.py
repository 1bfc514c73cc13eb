"""Linear layers stored without zeros on a GPU: a Triton kernel over a bitmask, for the few tokens of decoding.

Each row is stored as its nonzeros in order, one bit per column that marks them, and for each BLOCK of columns the count
of nonzeros before it. A program takes some rows through all blocks; the running sum of a block's bits gives the
position of each column's value. At density d, reading a 16-bit weight takes 16 d + 1 + 32 / BLOCK bits.

Its products are tested in Triton's interpreter on a CPU, and it compiles for GPUs. It has run on none yet: nobody has
timed it. Triton reads the annotations of a kernel's parameters, so only ``constexpr`` ones have any.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import nn

BLOCK = tl.constexpr(256)
"""Columns between two counts."""
WORD = tl.constexpr(32)
MOST_TOKENS = 16
"""The most tokens that the kernel multiplies; more are multiplied by a temporary dense matrix."""
PACKED_AT_ONCE = 1 << 22
"""Weights packed at a time: on a GPU torch counts selected elements in int64, eight bytes a weight."""
PROGRAM_ROWS = {1: 4, MOST_TOKENS: 16}
"""Rows per program, by the number of tokens it multiplies: a tensor core's product takes sixteen of both."""
LARGEST_SHARE = 0.75
"""The largest share of the dense bytes that a layer may read to be worth it: a guess, until somebody measures it."""


@triton.jit  # type: ignore[untyped-decorator]
def _weights(values, words, starts, row, inside, block, blocks) -> Any:  # type: ignore[no-untyped-def]
    """Return the dense weights (rows, BLOCK) of a block of columns."""
    lane = tl.arange(0, BLOCK)
    word = tl.load(
        words + (row[:, None] * blocks + block) * (BLOCK // WORD) + (lane // WORD)[None, :],
        mask=inside[:, None], other=0,
    )  # fmt: skip
    bit = (word >> (lane % WORD)[None, :]) & 1
    start = tl.load(starts + row * blocks + block, mask=inside, other=0)
    return tl.load(values + start[:, None] + tl.cumsum(bit, axis=1) - bit, mask=bit == 1, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(values, words, starts, dense, rows, cols, blocks, height: tl.constexpr) -> None:  # type: ignore[no-untyped-def]
    """Write ``dense`` (rows, cols) from its bitmask; each program takes ``height`` rows and a block of columns."""
    row, block = tl.program_id(0) * height + tl.arange(0, height), tl.program_id(1)
    column, inside = block * BLOCK + tl.arange(0, BLOCK), row < rows
    weight = _weights(values, words, starts, row, inside, block, blocks)
    offsets = row.to(tl.int64)[:, None] * cols + column[None, :]
    tl.store(dense + offsets, weight, mask=inside[:, None] & (column < cols)[None, :])


@triton.jit  # type: ignore[untyped-decorator]
def _multiply(  # type: ignore[no-untyped-def]
    values, words, starts, x, y, bias, rows, cols, tokens,
    biased: tl.constexpr, height: tl.constexpr, width: tl.constexpr,
) -> None:  # fmt: skip
    """Compute y (tokens, rows) = x (tokens, cols) Wᵀ + bias, ``height`` rows a program.

    ``width`` is 1 for one token, else a number of tokens with room for all.
    """
    row = tl.program_id(0) * height + tl.arange(0, height)
    token = tl.arange(0, width)
    lane = tl.arange(0, BLOCK)
    inside, asked = row < rows, token < tokens
    blocks = tl.cdiv(cols, BLOCK)
    total = tl.zeros((height, width), tl.float32)
    for block in range(blocks):
        weight = _weights(values, words, starts, row, inside, block, blocks)
        column = block * BLOCK + lane
        if width == 1:
            given = tl.load(x + column, mask=column < cols, other=0.0)
            total += tl.sum(weight.to(tl.float32) * given.to(tl.float32)[None, :], axis=1)[:, None]
        else:
            given = tl.load(
                x + token[:, None] * cols + column[None, :], mask=asked[:, None] & (column < cols)[None, :], other=0.0
            )
            total += tl.dot(weight, tl.trans(given), input_precision="ieee")
    if biased:
        total += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    tl.store(
        y + token[None, :] * rows + row[:, None],
        total.to(y.dtype.element_ty),
        mask=inside[:, None] & asked[None, :],
    )


class BitmaskLinear(nn.Module):
    """y = x Wᵀ + b for x (…, in) in the weight's dtype. Sums are kept in float32 and rounded once. No gradients.

    ``weight`` has only its shape and dtype, on the meta device: some models ask a layer for them.
    """

    layout = "bitmask"
    instructions = "triton"
    values: torch.Tensor
    words: torch.Tensor
    starts: torch.Tensor
    weight: torch.Tensor
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, device: str) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        rows = max(1, PACKED_AT_ONCE // self.in_features)
        packed = [_packed(part.to(device)) for part in weight.split(rows)]
        values, words, counts = (torch.cat(parts) for parts in zip(*packed, strict=True))
        self.nonzeros = len(values)
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("words", words, persistent=False)
        self.register_buffer("starts", (counts.cumsum(0) - counts).int(), persistent=False)
        self.register_parameter("bias", None)
        self.weight = torch.empty(weight.shape, dtype=weight.dtype, device="meta")

    @property
    def bytes_read(self) -> int:
        """The bytes that one token reads."""
        return sum(part.nbytes for part in (self.values, self.words, self.starts))

    @property
    def is_smaller(self) -> bool:
        """Whether ``bytes_read`` is at most LARGEST_SHARE of the dense matrix."""
        return self.bytes_read <= LARGEST_SHARE * self.weight.nbytes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply (…, in) to (…, out)."""
        tokens = x.numel() // self.in_features
        if tokens > MOST_TOKENS:
            return nn.functional.linear(x, self.expanded(), self.bias)
        flat = x.reshape(-1, self.in_features).contiguous()
        width = 1 if tokens == 1 else MOST_TOKENS
        product = torch.empty((tokens, self.out_features), dtype=x.dtype, device=x.device)
        _multiply[triton.cdiv(self.out_features, PROGRAM_ROWS[width]),](
            self.values, self.words, self.starts, flat, product, self.values if self.bias is None else self.bias,
            self.out_features, self.in_features, tokens, self.bias is not None, PROGRAM_ROWS[width], width,
        )  # fmt: skip
        return product.reshape(*x.shape[:-1], self.out_features)

    def expanded(self) -> torch.Tensor:
        """Return the dense matrix (out, in), without further temporary memory."""
        dense = torch.empty((self.out_features, self.in_features), dtype=self.values.dtype, device=self.values.device)
        blocks = triton.cdiv(self.in_features, BLOCK.value)
        _expand[triton.cdiv(self.out_features, PROGRAM_ROWS[MOST_TOKENS]), blocks](
            self.values,
            self.words,
            self.starts,
            dense,
            self.out_features,
            self.in_features,
            blocks,
            PROGRAM_ROWS[MOST_TOKENS],
        )
        return dense


def _packed(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the nonzeros of some rows, their bitmask words (lowest bit: first column), and the count of each block."""
    nonzero = weight != 0
    mask_bytes = nn.functional.pad(nonzero, (0, -weight.shape[1] % BLOCK.value)).view(-1, 8).view(torch.uint8)
    bit_values = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=weight.device)
    # uint8 sums keep this at a byte per weight: a sum into int64 would first convert the bytes to int64.
    words = (mask_bytes * bit_values).sum(-1, dtype=torch.uint8).view(torch.int32)
    counts = mask_bytes.sum(-1, dtype=torch.uint8).view(-1, BLOCK.value // 8).sum(-1)
    return weight[nonzero], words, counts
