"""Measure the size of a model in each format: write it, read it back and compare, and compute the lower bounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.gguf_variant import gguf_file
from sparsebench.models.files.quantized import QuantizedCheckpoint, open_checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.paths import folder_bytes
from sparsebench.storage.coding import item_size
from sparsebench.storage.container import read_bytes
from sparsebench.storage.formats import Format
from sparsebench.storage.formats import formats as known_formats
from sparsebench.storage.packed import pack
from sparsebench.storage.words import BLOCK, WORD_TYPES, Bytes


@dataclass(frozen=True)
class Size:
    """The size of a model in one format.

    ``bytes`` is the size of the weight files, headers included. ``prunable_bytes`` is that of the prunable tensors
    alone, for quantized ones with scales and shapes (None: not known). ``seconds`` is the time to write
    the format (0 if it is not written, as ``dense``). ``round_trip`` is whether every tensor came back bit for bit
    (None: not read back).
    """

    format: str
    bytes: int
    prunable_bytes: int | None
    seconds: float
    round_trip: bool | None


@dataclass(frozen=True)
class StorageResult:
    """Sizes per format, and the bounds over the prunable tensors (``Bounds``), in bytes.

    ``prunable`` and ``nonzero`` count prunable weights. Here -0.0 is not zero, and a quantized weight is zero where its
    code is 0. ``unprunable_bytes`` is the dense size of all other tensors, ``folder_bytes`` that of the
    whole folder, tokenizer and configuration included.
    """

    sizes: tuple[Size, ...]
    prunable: int
    nonzero: int
    raw_value_bound: float
    entropy_bound: float
    unprunable_bytes: int
    folder_bytes: int


def measure(
    folder: Path, family: str, formats: Sequence[str], workspace: Path, keep_packed: Path | None = None
) -> StorageResult:
    """Measure the model at ``folder`` in each of ``formats``; files written in ``workspace`` are removed again.

    With ``keep_packed`` the packed folder is kept at that path. A GGUF variant has one size in every format, its file's,
    and is not kept: its folder cannot be made again from weights. Raises StorageError for an unknown format and for one
    that cannot be read back, ModelError for a folder that cannot be read.
    """
    gguf = gguf_file(Path(folder))
    formats_by_name = known_formats()
    for name in formats:
        if name not in formats_by_name:
            raise StorageError(f"unknown storage format {name!r}", f"choose from {', '.join(formats_by_name)}")
    checkpoint = open_checkpoint(Path(folder))
    prunable = [name for name, part in parts(checkpoint, family).items() if part.prunable]
    Path(workspace).mkdir(parents=True, exist_ok=True)
    stored_prunable = {part for name in prunable for part in checkpoint.stored_names(name)}
    sizes = []
    with tempfile.TemporaryDirectory(prefix="storage-", dir=workspace) as scratch:
        for name in formats:
            out = keep_packed if keep_packed and name == "packed" else Path(scratch) / name
            if gguf:
                sizes.append(Size(name, gguf.stat().st_size, None, 0.0, None))
            else:
                sizes.append(_measured_size(formats_by_name[name], checkpoint, stored_prunable, out))
    if keep_packed is not None and not gguf and "packed" not in formats:
        pack(checkpoint.folder, keep_packed)
    bound = bounds(checkpoint, prunable)
    return StorageResult(
        sizes=tuple(sizes),
        prunable=bound.weights,
        nonzero=bound.nonzero,
        raw_value_bound=bound.raw_values,
        entropy_bound=bound.entropy,
        unprunable_bytes=sum(info.nbytes for name, info in checkpoint.stored.items() if name not in stored_prunable),
        folder_bytes=folder_bytes(checkpoint.folder),
    )


def _measured_size(storage_format: Format, checkpoint: Checkpoint, stored_prunable: Set[str], out: Path) -> Size:
    seconds = 0.0
    if storage_format.write is None:
        out = checkpoint.folder
    else:
        start = time.perf_counter()
        storage_format.write(checkpoint.folder, out)
        seconds = time.perf_counter() - start
    total, tensor_bytes = storage_format.sizes(out)
    round_trip = None if storage_format.read is None else _is_checkpoint(storage_format.read(out), checkpoint)
    prunable_bytes = sum(tensor_bytes[name] for name in stored_prunable)
    return Size(storage_format.name, total, prunable_bytes, seconds, round_trip)


def _is_checkpoint(restored: Iterator[tuple[TensorInfo, Bytes]], checkpoint: Checkpoint) -> bool:
    """Return whether the restored tensors equal all of the checkpoint's in dtype, shape and bytes."""
    equal_names = set()
    for info, bits in restored:
        original = checkpoint.stored.get(info.name)
        if original is None or (original.dtype, original.shape) != (info.dtype, info.shape):
            return False
        if not np.array_equal(bits, _tensor_bytes(checkpoint, original)):
            return False
        equal_names.add(info.name)
    return equal_names == set(checkpoint.stored)


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
            value_bytes = counted_bytes = checkpoint.scheme.bits / 8
            counts, scale_bytes, scale_entropy = _code_counts(checkpoint, info.name)
            raw, entropy = raw + scale_bytes, entropy + scale_entropy
        else:
            value_bytes, counted_bytes = float(item_size(info)), 2.0
            counts = _upper_halves(_tensor_bytes(checkpoint, info), item_size(info))
        count = int(counts.sum())
        positions = _entropy_bits([info.numel - count, count]) / 8
        weights += info.numel
        nonzero += count
        raw += positions + count * value_bytes
        entropy += positions + _entropy_bits(counts) / 8 + count * (value_bytes - counted_bytes)
    return Bounds(weights, nonzero, raw, entropy)


def _code_counts(checkpoint: QuantizedCheckpoint, name: str) -> tuple[npt.NDArray[np.int64], int, float]:
    """Return how often each nonzero code occurs; the bytes of scales and shape; these at entropy."""
    codes, stored = checkpoint.codes(name), checkpoint.stored
    code_bytes = codes.values.numpy().view(np.uint8).reshape(-1)
    counts = np.bincount(code_bytes & ((1 << checkpoint.scheme.bits) - 1), minlength=1)
    counts[0] = 0
    sizes = {part.removeprefix(name): stored[part].nbytes for part in checkpoint.stored_names(name)}
    scale = stored[f"{name}_scale"]
    halves = _upper_halves(_tensor_bytes(checkpoint, scale), item_size(scale))
    scale_entropy = _entropy_bits(halves) / 8 + int(halves.sum()) * (item_size(scale) - 2) + sizes.get("_shape", 0)
    scale_bytes = sum(size for end, size in sizes.items() if end not in ("", "_packed"))
    return counts, scale_bytes, scale_entropy


def _tensor_bytes(checkpoint: Checkpoint, info: TensorInfo) -> Bytes:
    return read_bytes(checkpoint.folder / info.file, info.begin, info.end)


def _upper_halves(bits: Bytes, item_bytes: int) -> npt.NDArray[np.int64]:
    """Return how often each value of the upper 16 bits occurs among the elements with any bit set."""
    words, step = bits.view(WORD_TYPES[item_bytes]), item_bytes // 2
    upper = bits.view(np.uint16)[step - 1 :: step]
    counts = np.zeros(1 << 16, np.int64)
    for start in range(0, upper.size, BLOCK):
        counts += np.bincount(upper[start : start + BLOCK], minlength=1 << 16)
    counts[0] -= words.size - np.count_nonzero(words)
    return counts


def _entropy_bits(counts: npt.ArrayLike) -> float:
    """Return the bits that symbols with these counts take at their empirical entropy."""
    present = np.asarray(counts, np.float64)
    present = present[present > 0]
    return float(present @ np.log2(present.sum() / present)) if present.size else 0.0
