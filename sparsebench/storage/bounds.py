"""Lower bounds on the size of the prunable weights: what the positions of the zeros and the values take at least."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.quantized import QuantizedCheckpoint
from sparsebench.storage.coding import item_size
from sparsebench.storage.container import read_bytes
from sparsebench.storage.words import WORDS, Bytes

_BLOCK = 1 << 17


@dataclass(frozen=True)
class Bounds:
    """Sums over tensors, sizes in bytes.

    ``raw_values``: H(s)·n/8 + nonzero·bytes per value. The positions of the zeros take the entropy of a coin with the
    tensor's own sparsity s; the values are taken as incompressible. ``entropy``: the values take the empirical entropy
    of their bit patterns instead, per tensor and without the table that a decoder needs. 16-bit patterns are counted
    whole; of wider ones the upper 16 bits (sign, exponent, first bits of the mantissa) are counted, and every further
    bit takes a bit. A coder that uses structure, such as values that depend on their row, may be smaller.

    A value of a quantized weight is its code (one byte, or half of one), counted whole. Scales and shapes count as
    well: with their stored size in ``raw_values``; in ``entropy``, scales at their own entropy. With few zeros, plain
    int4 words are smaller than ``raw_values``: there the position of a zero takes extra bits, while in int4 words a zero
    is one of the codes.
    """

    weights: int
    nonzero: int
    raw_values: float
    entropy: float


def bounds(checkpoint: Checkpoint, names: Iterable[str]) -> Bounds:
    """Return the bounds over the named weights of a checkpoint, with one tensor in memory at a time."""
    weights = nonzero = 0
    raw = entropy = 0.0
    for info in (checkpoint.tensors[name] for name in names):
        if isinstance(checkpoint, QuantizedCheckpoint) and info.name in checkpoint.quantized:
            item = counted = checkpoint.scheme.bits / 8
            counts, beside, least = _codes(checkpoint, info.name)
            raw, entropy = raw + beside, entropy + least
        else:
            item, counted = float(item_size(info)), 2.0
            counts = _upper_halves(_read(checkpoint, info), item_size(info))
        count = int(counts.sum())
        positions = _bits([info.numel - count, count]) / 8
        weights += info.numel
        nonzero += count
        raw += positions + count * item
        entropy += positions + _bits(counts) / 8 + count * (item - counted)
    return Bounds(weights, nonzero, raw, entropy)


def _codes(checkpoint: QuantizedCheckpoint, name: str) -> tuple[npt.NDArray[np.int64], int, float]:
    """Return how often each nonzero code occurs; the bytes of scales and shape; these at entropy."""
    codes, stored = checkpoint.codes(name), checkpoint.stored
    offsets = codes.values.numpy().view(np.uint8).reshape(-1)
    counts = np.bincount(offsets & ((1 << checkpoint.scheme.bits) - 1), minlength=1)
    counts[0] = 0
    sizes = {part.removeprefix(name): stored[part].nbytes for part in checkpoint.parts(name)}
    scale = stored[f"{name}_scale"]
    halves = _upper_halves(_read(checkpoint, scale), item_size(scale))
    least = _bits(halves) / 8 + int(halves.sum()) * (item_size(scale) - 2) + sizes.get("_shape", 0)
    beside = sum(size for end, size in sizes.items() if end not in ("", "_packed"))
    return counts, beside, least


def _read(checkpoint: Checkpoint, info: TensorInfo) -> Bytes:
    return read_bytes(checkpoint.folder / info.file, info.begin, info.end)


def _upper_halves(bits: Bytes, item: int) -> npt.NDArray[np.int64]:
    """Return how often each value of the upper 16 bits occurs among the elements with any bit set."""
    words, step = bits.view(WORDS[item]), item // 2
    upper = bits.view(np.uint16)[step - 1 :: step]
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, upper.size, _BLOCK):
        counts += np.bincount(upper[start : start + _BLOCK], minlength=1 << 16)
    counts[0] -= words.size - np.count_nonzero(words)
    return counts


def _bits(counts: npt.ArrayLike) -> float:
    """Return the bits that symbols with these counts take at their empirical entropy."""
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    return float(present @ np.log2(present.sum() / present)) if present.size else 0.0
