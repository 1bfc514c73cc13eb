"""How small the prunable weights could be: what the positions of the zeros and the values cost at least."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.models.checkpoint import Checkpoint
from sparsebench.storage.coding import item_size
from sparsebench.storage.container import read_bytes
from sparsebench.storage.words import WORDS, Bytes

_BLOCK = 1 << 17


@dataclass(frozen=True)
class Bounds:
    """Sums over tensors, sizes in bytes.

    ``raw_values``: H(s)·n/8 + nonzero·bytes per value; the positions of the zeros cost the entropy of a coin with
    the tensor's own sparsity s, the values are taken as incompressible. ``entropy``: the values at the empirical
    entropy of their bit patterns instead, per tensor and without the table a decoder needs. 16-bit patterns are
    counted whole; of wider ones the upper 16 bits (sign, exponent, first bits of the mantissa) are counted and
    every further bit costs a bit. A coder that uses structure, such as values that depend on their row, may go lower.
    """

    weights: int
    nonzero: int
    raw_values: float
    entropy: float


def bounds(checkpoint: Checkpoint, names: Iterable[str]) -> Bounds:
    """The bounds over those floating-point tensors of a checkpoint, one in memory at a time."""
    weights = nonzero = 0
    raw = entropy = 0.0
    for info in (checkpoint.tensors[name] for name in names):
        bits = read_bytes(checkpoint.folder / info.file, info.begin, info.end)
        item = item_size(info)
        counts = _upper_halves(bits, item)
        count = int(counts.sum())
        positions = _bits([info.numel - count, count]) / 8
        weights += info.numel
        nonzero += count
        raw += positions + count * item
        entropy += positions + _bits(counts) / 8 + count * (item - 2)
    return Bounds(weights, nonzero, raw, entropy)


def _upper_halves(bits: Bytes, item: int) -> npt.NDArray[np.int64]:
    """How often each value of the upper 16 bits occurs among the elements that are not all-zero bits."""
    words, step = bits.view(WORDS[item]), item // 2
    upper = bits.view(np.uint16)[step - 1 :: step]
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, upper.size, _BLOCK):
        counts += np.bincount(upper[start : start + _BLOCK], minlength=1 << 16)
    counts[0] -= words.size - np.count_nonzero(words)
    return counts


def _bits(counts: npt.ArrayLike) -> float:
    """The bits that a list of symbols with these counts takes at its empirical entropy."""
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    return float(present @ np.log2(present.sum() / present)) if present.size else 0.0
