"""Sets weights to zero at memory speed: piece by piece within the cache, by multiplying bit patterns by 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sparsebench.steps.prune.keys import KeyThreshold

PIECE = 1 << 18
"""Entries worked on at once."""


def zeroed(weights: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return a copy of ``weights`` that is zero where ``mask`` is True, with the same shape, dtype and device."""
    if weights.device.type != "cpu":
        return weights.masked_fill(mask, 0)
    contiguous = weights.contiguous()
    out = torch.empty_like(contiguous)
    source, target, removed = _bits(contiguous), _bits(out), mask.contiguous().reshape(-1).numpy()
    for piece in _pieces(source.size):
        np.multiply(source[piece], ~removed[piece], out=target[piece])
    return out


def zeroed_below(weights: torch.Tensor, keys: torch.Tensor, limit: KeyThreshold) -> tuple[torch.Tensor, int, int]:
    """Zero the weights whose key is below the limit, and the first ``limit.ties`` equal to it in row-major order.

    Returns a copy of ``weights``, the number of weights zeroed, and how many of these were ties.
    """
    contiguous = weights.contiguous()
    out = torch.empty_like(contiguous)
    source, target, ranked = _bits(contiguous), _bits(out), keys.contiguous().reshape(-1).numpy()
    removed = spent = 0
    for piece in _pieces(source.size):
        below = ranked[piece] < limit.key
        if spent < limit.ties:
            equal = np.flatnonzero(ranked[piece] == limit.key)[: limit.ties - spent]
            below[equal] = True
            spent += equal.size
        removed += int(np.count_nonzero(below))
        np.multiply(source[piece], ~below, out=target[piece])
    return out, removed, spent


def zeros_in(tensor: torch.Tensor) -> int:
    """Count the entries that are exactly zero, of either sign."""
    bits = _bits(tensor.detach().contiguous())
    floating = tensor.is_floating_point()
    pieces = (bits[piece] for piece in _pieces(bits.size))
    # Shifting the sign out turns -0 into 0 as well.
    return bits.size - sum(int(np.count_nonzero(piece << 1 if floating else piece)) for piece in pieces)


def _bits(tensor: torch.Tensor) -> npt.NDArray[np.signedinteger[Any]]:
    """Return a contiguous tensor's bit patterns as integers of the same width: flat, sharing its memory."""
    widths = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.reshape(-1).view(widths[tensor.element_size()]).numpy()


def _pieces(size: int) -> Iterator[slice]:
    return (slice(start, start + PIECE) for start in range(0, size, PIECE))
