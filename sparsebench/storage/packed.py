"""The packed format: beside the nonzero values, a bitmask or the gaps between them. Part 1 of docs/format.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sparsebench.models.checkpoint import TensorInfo
from sparsebench.storage import folders
from sparsebench.storage.codes import BITS, Near, encodings, grid, quantized
from sparsebench.storage.coding import Coding, Part, item_size
from sparsebench.storage.encodings import ENCODINGS, decode, encode, smallest
from sparsebench.storage.scratch import Scratch
from sparsebench.storage.words import Bytes


def _parts(encoding: str, item: int) -> tuple[str, ...]:
    return ("", "raw") if encoding == "raw" else (encoding.rpartition("-")[2], "values")


def _encode(bits: Bytes, info: TensorInfo, near: Near, scratch: Scratch) -> tuple[str, tuple[Part, ...]]:
    layout = quantized(info, near)
    codes = smallest(layout.split(bits, scratch), layout.bits, scratch) if layout else None
    if layout and codes:
        values = layout.packed(np.concatenate(codes.values))
        parts = [Part("U8", (part.size,), (part,)) for part in (codes.index, values)]
        return f"int{layout.bits}-{codes.encoding}", tuple(parts)
    found = encode(bits, item_size(info), scratch)
    if found.encoding == "raw":
        return "raw", (Part(info.dtype, info.shape, (bits,)),)
    count = found.value_bytes // item_size(info)
    return found.encoding, (
        Part("U8", (found.index.size,), (found.index,)),
        Part(info.dtype, (count,), found.values),
    )


def _decode(encoding: str, parts: Sequence[Bytes], info: TensorInfo, near: Near, scratch: Scratch) -> Bytes:
    index, values = parts
    code, _, kind = encoding.rpartition("-")
    if not code:
        return decode(kind, index, values, info.nbytes, item_size(info), scratch)
    layout = grid(info, BITS[code], near)
    return layout.join(decode(kind, index, layout.unpacked(values), layout.rows * layout.columns, 1, scratch))


def _encodings(info: TensorInfo) -> tuple[str, ...]:
    return (*ENCODINGS, *encodings(info, ENCODINGS[1:]))


CODING = Coding("packed", 1, _encodings, _parts, _encode, _decode)


def pack(folder: Path, out: Path) -> folders.Summary:
    """Store a Hugging Face folder in the packed format (see folders.store)."""
    return folders.store(folder, out, CODING)


def unpack(packed: Path, out: Path) -> Path:
    """Restore the folder that was packed (see folders.restore)."""
    return folders.restore(packed, out, CODING)


def is_packed(folder: Path) -> bool:
    """Whether a folder holds packed weight files."""
    return folders.holds(folder, CODING)


def sizes(packed: Path) -> tuple[int, dict[str, int]]:
    """Bytes of the packed weight files, headers included, and of each tensor by name."""
    return folders.sizes(packed, CODING)


def tensors(packed: Path) -> Iterator[tuple[TensorInfo, Bytes]]:
    """Every tensor with its original bytes, one at a time."""
    return folders.tensors(packed, CODING)
