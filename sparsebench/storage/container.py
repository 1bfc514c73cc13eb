"""One stored file: a safetensors container whose tensors are the parts of the source file's tensors.

docs/format.md is the specification. Parts are written to disk as they are made. Space for the header is reserved in
front of them, and the header is written at the end.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench import bounded
from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.checkpoint import TensorInfo, read_header, tensor_infos
from sparsebench.storage import compiled
from sparsebench.storage.coding import Coding, Section, item_size
from sparsebench.storage.words import Bytes, Scratch


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a stored file: its ``info`` in the source file, its encoding, and its parts.

    ``parts`` are the begin and end, in the stored file, of its index (of length 0 where it has none) and of its other
    parts.
    """

    info: TensorInfo
    encoding: str
    crc32: int
    parts: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """The bytes of the tensor in the stored file."""
        return sum(end - begin for begin, end in self.parts)


@dataclass(frozen=True)
class StoredFile:
    """A stored file's content: the source file's first bytes (length and header) and its tensors in data order."""

    path: Path
    prefix: bytes
    entries: tuple[StoredTensor, ...]
    coding: Coding

    def load(self, entry: StoredTensor, scratch: Scratch | None = None) -> Bytes:
        """Return the original bytes of one tensor; with ``scratch`` they are there until the next tensor is loaded.

        Raises StorageError naming file and tensor when they are damaged.
        """
        scratch = scratch or Scratch()
        parts = [
            read_bytes(self.path, begin, end, scratch.take(f"part {number}", end - begin))
            for number, (begin, end) in enumerate(entry.parts)
        ]
        try:
            bits = self.coding.decode(entry.encoding, parts, entry.info, scratch)
        except StorageError as error:
            raise StorageError(f"{self.path}: {entry.info.name}: {error.message}", self.coding.again) from error
        if (crc32 := compiled.packing_kernels().crc32(bits)) != entry.crc32:
            mismatch = f"{entry.crc32:08x}, found {crc32:08x}"
            problem = f"{self.path}: {entry.info.name}: checksum mismatch (crc32 {mismatch})"
            raise StorageError(problem, self.coding.again)
        return bits


def write(source: Path, target: Path, coding: Coding) -> dict[str, str]:
    """Store one safetensors file, with one tensor in memory at a time; return each tensor's encoding.

    Raises ModelError when ``source`` is not a complete safetensors file.
    """
    header, start = read_header(source)
    infos = {info.name: info for info in tensor_infos(header, start, source)}
    with source.open("rb") as source_file:
        stored_header = _Header(coding, source_file.read(start)[8:])
    reserved = stored_header.most_bytes(infos.values())
    encodings = {}
    scratch = Scratch()

    def read_other(name: str) -> Bytes | None:
        return read_bytes(source, infos[name].begin, infos[name].end) if name in infos else None

    with target.open("wb") as file:
        file.write(b" " * reserved)
        for info in infos.values():
            bits = read_bytes(source, info.begin, info.end, scratch.take("dense", info.nbytes))
            encoding, parts = coding.encode(bits, info, read_other, scratch)
            _check_size(target, info.name, sum(part.nbytes for part in parts), info.nbytes, bounded.TENSOR_BYTES)
            for part in parts:
                for piece in part.pieces:
                    file.write(piece.data)
            stored_header.add(info, encoding, compiled.packing_kernels().crc32(bits), parts)
            encodings[info.name] = encoding
        source_bytes = max((info.end for info in infos.values()), default=0)
        _check_size(target, "all", file.tell(), source_bytes, bounded.SHARD_BYTES)
        text = stored_header.text().ljust(reserved - 8)
        assert len(text) == reserved - 8, f"a header of {len(text)} bytes where {reserved - 8} were kept for it"
        file.seek(0)
        file.write(struct.pack("<Q", reserved - 8) + text)
    return encodings


def read(path: Path, coding: Coding) -> StoredFile:
    """Read the header of a stored file; no tensor is read.

    Raises StorageError naming the file when it is truncated, damaged, foreign, or of a newer version.
    """
    try:
        header, start = read_header(path)
        metadata = header["__metadata__"]
        if metadata["format"] != coding.identifier:
            raise StorageError(f"{path}: its format is {metadata['format']!r}, not {coding.identifier!r}")
        if metadata["version"] != str(coding.version):
            problem = f"{path}: version {metadata['version']} of the {coding.name} format"
            raise StorageError(f"{problem}; this program reads version {coding.version}", "upgrade sparsebench")
        text = metadata["source"].encode()
        if f"{zlib.crc32(text):08x}" != metadata["source_crc32"]:
            raise StorageError(f"{path}: checksum mismatch in the source file's header", coding.again)
        infos = tensor_infos(_parse_header(text, path), 8 + len(text), path)
        tensors = _parse_header(metadata["tensors"], path)
        entries = tuple(_entry(path, coding, info, tensors[info.name], header, start) for info in infos)
    except ModelError as error:
        raise StorageError(error.message, coding.again) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"{path}: not a file in the {coding.name} format, or its header is damaged ({error!r})"
        raise StorageError(problem, coding.again) from error
    for entry in entries:
        _check_size(path, entry.info.name, entry.nbytes, entry.info.nbytes, bounded.TENSOR_BYTES)
    source_bytes = max((entry.info.end for entry in entries), default=0)
    _check_size(path, "all", path.stat().st_size, source_bytes, bounded.SHARD_BYTES)
    return StoredFile(path, struct.pack("<Q", len(text)) + text, entries, coding)


def read_bytes(path: Path, begin: int, end: int, into: Bytes | None = None) -> Bytes:
    """Read bytes ``begin`` to ``end`` of a file, into ``into`` if given. Raises StorageError for a short file."""
    buffer = np.empty(end - begin, np.uint8) if into is None else into
    done = bounded.read_into(path, buffer.data, begin)
    if done < buffer.size:
        raise StorageError(f"{path}: ends at byte {begin + done} where {end} are expected", "copy or make it again")
    return buffer


class _Header:
    """The stored file's JSON header, built while the parts are written."""

    def __init__(self, coding: Coding, source: bytes) -> None:
        self.coding = coding
        self.source = source
        self.parts: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, dict[str, str]] = {}
        self.offset = 0

    def add(self, info: TensorInfo, encoding: str, crc32: int, parts: Sequence[Section]) -> None:
        """Append an encoded tensor."""
        self.tensors[info.name] = {"encoding": encoding, "crc32": f"{crc32:08x}"}
        names = [name for name in self.coding.parts(encoding, item_size(info)) if name]
        for name, part in zip(names, parts, strict=True):
            self._add_part(f"{info.name}#{name}", part.dtype, part.shape, part.nbytes)

    def text(self) -> bytes:
        """Return the header as it is written, before padding."""
        metadata = {
            "format": self.coding.identifier,
            "version": str(self.coding.version),
            "source": self.source.decode(),
            "source_crc32": f"{zlib.crc32(self.source):08x}",
            "tensors": json.dumps(self.tensors, separators=(",", ":")),
        }
        return json.dumps({"__metadata__": metadata, **self.parts}, separators=(",", ":")).encode()

    def most_bytes(self, infos: Iterable[TensorInfo]) -> int:
        """Return a number of bytes, a multiple of 8, that always holds the length and header for these tensors."""
        longest = _Header(self.coding, self.source)
        shapes = 0
        for info in infos:
            names = {name: self.coding.parts(name, item_size(info)) for name in self.coding.encodings(info)}
            encoding = max(names, key=lambda name: len(name) + sum(map(len, names[name])))
            longest.tensors[info.name] = {"encoding": encoding, "crc32": "00000000"}
            # No part is longer than the raw tensor, except by ``spare``; so no real number has more digits than these.
            # (I32 stored as U8 has up to four times as many elements: one digit more, and one letter less.)
            for number, name in enumerate(names[encoding]):
                size, dtype = (1, "U8") if number == 0 else (item_size(info) or 1, info.dtype)
                if name:
                    longest._add_part(f"{info.name}#{name}", dtype, (info.nbytes // size,), info.nbytes)
            shapes += len(str(info.shape)) + self.coding.spare * len(names[encoding])
        return -(-(8 + len(longest.text()) + shapes) // 8) * 8

    def _add_part(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        offsets = [self.offset, self.offset + size]
        self.parts[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        self.offset += size


def _parse_header(text: str | bytes, path: Path) -> Any:
    return bounded.parse_json(text, f"{path}: its header", StorageError, "copy or make it again")


def is_believable(stored: int, promised: int, free: int) -> bool:
    """Return whether ``stored`` bytes may stand for ``promised`` ones in memory; up to ``free`` any number may."""
    return promised <= max(free, bounded.TENSOR_RATIO * stored)


def _check_size(path: Path, tensor: str, stored: int, promised: int, free: int) -> None:
    """Raise StorageError where so little is stored for so much memory that the file must be forged."""
    if not is_believable(stored, promised, free):
        raise StorageError(
            f"{path}: {tensor[:80]}: {promised:,} bytes out of {stored:,}, more than {bounded.TENSOR_RATIO} times as many",
            f"more than {free / bounded.MB:,.0f} MB out of so little counts as damaged or forged: pack the model "
            "again, or fetch it from a trusted source",
        )


def _entry(
    path: Path, coding: Coding, info: TensorInfo, entry: dict[str, str], header: dict[str, Any], start: int
) -> StoredTensor:
    encoding = entry["encoding"]
    if encoding not in coding.encodings(info):
        raise StorageError(f"{path}: {info.name}: unknown encoding {encoding!r}", "upgrade sparsebench")
    parts = []
    for name in coding.parts(encoding, item_size(info)):
        begin, end = header[f"{info.name}#{name}"]["data_offsets"] if name else (0, 0)
        if not 0 <= begin <= end:
            raise ValueError(f"{info.name}#{name} begins at {begin} and ends at {end}")
        parts.append((start + begin, start + end))
    return StoredTensor(info, encoding, int(entry["crc32"], 16), tuple(parts))
