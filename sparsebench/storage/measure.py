"""Measure the size of a model in each format: write it, read it back and compare, and compute the lower bounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsebench.errors import StorageError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.gguf_variant import gguf_file
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.storage.bounds import bounds
from sparsebench.storage.container import read_bytes
from sparsebench.storage.formats import Format
from sparsebench.storage.formats import formats as known_formats
from sparsebench.storage.packed import pack
from sparsebench.storage.words import Bytes


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
    """Sizes per format, and the bounds over the prunable tensors (see bounds.Bounds), in bytes.

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
    file = gguf_file(Path(folder))
    known = known_formats()
    for name in formats:
        if name not in known:
            raise StorageError(f"unknown storage format {name!r}", f"choose from {', '.join(known)}")
    checkpoint = open_checkpoint(Path(folder))
    prunable = [name for name, part in parts(checkpoint, family).items() if part.prunable]
    Path(workspace).mkdir(parents=True, exist_ok=True)
    stored = {part for name in prunable for part in checkpoint.parts(name)}
    sizes = []
    with tempfile.TemporaryDirectory(prefix="storage-", dir=workspace) as scratch:
        for name in formats:
            out = keep_packed if keep_packed and name == "packed" else Path(scratch) / name
            if file:
                sizes.append(Size(name, file.stat().st_size, None, 0.0, None))
            else:
                sizes.append(_size(known[name], checkpoint, stored, out))
    if keep_packed is not None and not file and "packed" not in formats:
        pack(checkpoint.folder, keep_packed)
    bound = bounds(checkpoint, prunable)
    return StorageResult(
        sizes=tuple(sizes),
        prunable=bound.weights,
        nonzero=bound.nonzero,
        raw_value_bound=bound.raw_values,
        entropy_bound=bound.entropy,
        unprunable_bytes=sum(info.nbytes for name, info in checkpoint.stored.items() if name not in stored),
        folder_bytes=sum(path.stat().st_size for path in checkpoint.folder.rglob("*") if path.is_file()),
    )


def _size(row: Format, checkpoint: Checkpoint, stored: Set[str], out: Path) -> Size:
    seconds = 0.0
    if row.write is None:
        out = checkpoint.folder
    else:
        start = time.perf_counter()
        row.write(checkpoint.folder, out)
        seconds = time.perf_counter() - start
    total, tensor_bytes = row.sizes(out)
    round_trip = None if row.read is None else _is_checkpoint(row.read(out), checkpoint)
    return Size(row.name, total, sum(tensor_bytes[name] for name in stored), seconds, round_trip)


def _is_checkpoint(restored: Iterator[tuple[TensorInfo, Bytes]], checkpoint: Checkpoint) -> bool:
    """Return whether the restored tensors equal all of the checkpoint's in dtype, shape and bytes."""
    seen = set()
    for info, bits in restored:
        original = checkpoint.stored.get(info.name)
        if original is None or (original.dtype, original.shape) != (info.dtype, info.shape):
            return False
        if not np.array_equal(bits, read_bytes(checkpoint.folder / original.file, original.begin, original.end)):
            return False
        seen.add(info.name)
    return seen == set(checkpoint.stored)
