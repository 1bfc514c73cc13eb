"""Turns scores into integer keys, and finds the exact k-th smallest of any number of keys in constant memory.

Non-negative float32 numbers have the same order as their bit patterns read as integers, and bfloat16 and float16 widen
to float32 exactly. So every score becomes an int32 key, and a threshold is found by counting: a histogram over the
upper 16 bits, then, where the lower bits matter, one over the lower 16 of the bins in question.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sparsebench.errors import ModelError

UPPER_BINS = 1 << 15
LOWER_BINS = 1 << 16
CHUNK = 1 << 24
"""Elements counted at once: bounds the temporaries to a few hundred MB, whatever the tensor's size."""


@dataclass(frozen=True)
class KeyThreshold:
    """A threshold: every key below ``key`` is removed, and the first ``ties`` of those equal to it."""

    key: int
    ties: int


def keys(scores: torch.Tensor, name: str) -> torch.Tensor:
    """Return scores (float, or int32 ≥ 0) as int32 keys of the same order and shape.

    Raises ModelError, naming the tensor, for NaN, infinite or negative scores and for float64.
    """
    if scores.dtype == torch.int32:
        return _bits(scores, torch.int32, 1 << 31, name)
    if scores.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        problem = f"tensor {name}: {scores.dtype} cannot be ranked"
        raise ModelError(problem, "convert the checkpoint to float32 or below")
    return _bits(scores.float(), torch.int32, 0x7F800000, name)


def narrow_keys(scores: torch.Tensor, name: str) -> torch.Tensor:
    """Return keys as ``keys`` does, but int16 for 16-bit floats: half as many bytes, and one pass for thresholds."""
    if scores.dtype not in (torch.bfloat16, torch.float16):
        return keys(scores, name)
    return _bits(scores, torch.int16, 0x7F80 if scores.dtype == torch.bfloat16 else 0x7C00, name)


def ordinals(scores: torch.Tensor, name: str) -> torch.Tensor:
    """Return keys as ``keys`` does, but int64 for float64 scores: for one tensor, not for ``thresholds``."""
    if scores.dtype != torch.float64:
        return keys(scores, name)
    return _bits(scores, torch.int64, 0x7FF0000000000000, name)


def _bits(scores: torch.Tensor, integer_type: torch.dtype, infinity: int, name: str) -> torch.Tensor:
    """Return numbers as their bit patterns. Raises ModelError for those from ``infinity`` on, and for negative ones."""
    bits = scores.contiguous().view(integer_type)
    ends = torch.aminmax(bits) if bits.numel() else None
    if ends and (int(ends.max) >= infinity or int(ends.min) < 0):
        problem = f"tensor {name}: NaN or infinite values, or a negative score"
        raise ModelError(problem, "repair or fetch the checkpoint again; a method's scores are 0 or more")
    return bits


def thresholds(passes: Iterable[Iterable[torch.Tensor]], ranks: Sequence[int]) -> list[KeyThreshold]:
    """Return, for each rank of ``ranks``, the threshold that removes exactly ``rank`` keys, some of the ties included.

    ``passes`` yields the same key tensors, int32 or int16, once or twice. The second pass is consumed only if some
    int32 key has a lower half that is not zero.
    """
    each_pass = iter(passes)
    # The counts are small, and stay on the CPU wherever the keys are.
    upper_counts = torch.zeros(UPPER_BINS, dtype=torch.int64, device="cpu")
    lower_bits = torch.zeros((), dtype=torch.int32, device="cpu")
    shift = 16
    for chunk in _chunks(next(each_pass)):
        if chunk.dtype == torch.int16:
            upper_counts += torch.bincount(chunk, minlength=UPPER_BINS).cpu()
            shift = 0
            continue
        upper_counts += torch.bincount(chunk >> 16, minlength=UPPER_BINS).cpu()
        lower_bits |= (chunk & 0xFFFF).amax().cpu()
    cumulative = torch.cumsum(upper_counts, 0)
    bins = [_locate(cumulative, rank) for rank in ranks]
    if not int(lower_bits):
        return [KeyThreshold(number << shift, rank - below) for (number, below), rank in zip(bins, ranks, strict=True)]
    distinct = sorted({number for number, _ in bins})
    lower_counts = {number: torch.zeros(LOWER_BINS, dtype=torch.int64, device="cpu") for number in distinct}
    for chunk in _chunks(next(each_pass)):
        high = chunk >> 16
        for number in distinct:
            lower_counts[number] += torch.bincount(chunk[high == number] & 0xFFFF, minlength=LOWER_BINS).cpu()
    result = []
    for (number, below), rank in zip(bins, ranks, strict=True):
        low, under = _locate(torch.cumsum(lower_counts[number], 0), rank - below)
        result.append(KeyThreshold((number << 16) | low, rank - below - under))
    return result


def _locate(cumulative: torch.Tensor, rank: int) -> tuple[int, int]:
    """Return the bin of the ``rank``-th key (for 0 the first non-empty bin), and the number of keys below that bin."""
    number = int(torch.searchsorted(cumulative, max(rank, 1)))
    number = min(number, cumulative.numel() - 1)
    return number, int(cumulative[number - 1]) if number else 0


def _chunks(tensors: Iterable[torch.Tensor]) -> Iterable[torch.Tensor]:
    for tensor in tensors:
        flat = tensor.reshape(-1)
        for start in range(0, flat.numel(), CHUNK):
            yield flat[start : start + CHUNK]
