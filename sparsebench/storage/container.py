"""One packed file: a safetensors container whose tensors are the parts of the source file's tensors.

docs/format.md is the specification. The parts stream to disk as they are made; room for the header is kept
in front of them and filled in at the end.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.errors import ModelError, StorageError
from sparsebench.models.checkpoint import TensorInfo, read_header
from sparsebench.storage.encodings import ENCODINGS, Bytes, decode, encode

FORMAT = "sparsebench.packed"
FORMAT_VERSION = 1
_AGAIN = "pack the model again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a packed file: its place in the source file, how it is kept, and where.

    ``parts`` are the begin and end of its index (of no length for raw) and of its values in the packed file.
    """

    info: TensorInfo
    encoding: str
    crc32: int
    parts: tuple[tuple[int, int], tuple[int, int]]

    @property
    def nbytes(self) -> int:
        """What the tensor takes in the packed file."""
        return sum(end - begin for begin, end in self.parts)


@dataclass(frozen=True)
class PackedFile:
    """A packed file's content: the source file's first bytes (length and header) and its tensors in data order."""

    path: Path
    prefix: bytes
    entries: tuple[Entry, ...]

    def load(self, entry: Entry) -> Bytes:
        """The original bytes of one tensor. Raises StorageError naming file and tensor when they are damaged."""
        index, values = (read_bytes(self.path, begin, end) for begin, end in entry.parts)
        try:
            bits = decode(entry.encoding, index, values, entry.info.nbytes, item_size(entry.info))
        except StorageError as error:
            raise StorageError(f"{self.path}: {entry.info.name}: {error.message}", _AGAIN) from error
        if (found := zlib.crc32(bits.data)) != entry.crc32:
            wanted = f"{entry.crc32:08x}, found {found:08x}"
            raise StorageError(f"{self.path}: {entry.info.name}: checksum mismatch (crc32 {wanted})", _AGAIN)
        return bits


def write_packed(source: Path, target: Path) -> dict[str, str]:
    """Pack one safetensors file, one tensor in memory at a time. Returns each tensor's encoding.

    Raises ModelError when ``source`` is not a whole safetensors file.
    """
    prefix, infos = _source(source)
    header = _Header(prefix[8:])
    room = header.room(infos)
    encodings = {}
    with target.open("wb") as file:
        file.write(b" " * room)
        for info in infos:
            bits = read_bytes(source, info.begin, info.end)
            packed = encode(bits, item_size(info))
            for piece in (packed.index, *packed.values):
                file.write(piece.data)
            header.add(info, packed.encoding, zlib.crc32(bits.data), packed.index.size, packed.value_bytes)
            encodings[info.name] = packed.encoding
        file.seek(0)
        file.write(struct.pack("<Q", room - 8) + header.text().ljust(room - 8))
    return encodings


def read_packed(path: Path) -> PackedFile:
    """What a packed file holds; no tensor is read.

    Raises StorageError naming the file when it is truncated, damaged, foreign, or of a newer version.
    """
    try:
        header, start = read_header(path)
        metadata = header["__metadata__"]
        if metadata["format"] != FORMAT:
            raise StorageError(f"{path}: its format is {metadata['format']!r}, not {FORMAT!r}")
        if metadata["version"] != str(FORMAT_VERSION):
            wrong = f"{path}: version {metadata['version']} of the packed format"
            raise StorageError(f"{wrong}; this program reads version {FORMAT_VERSION}", "upgrade sparsebench")
        text = metadata["source"].encode()
        if f"{zlib.crc32(text):08x}" != metadata["source_crc32"]:
            raise StorageError(f"{path}: checksum mismatch in the source file's header", _AGAIN)
        infos = _infos(json.loads(text), 8 + len(text), path.name)
        kept = json.loads(metadata["tensors"])
        entries = tuple(_entry(path, info, kept[info.name], header, start) for info in infos)
    except ModelError as error:
        raise StorageError(error.message, _AGAIN) from error
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: not a packed file, or its header is damaged ({error!r})", _AGAIN) from error
    return PackedFile(path, struct.pack("<Q", len(text)) + text, entries)


def item_size(info: TensorInfo) -> int:
    """Bytes per element of a tensor of any dtype; 0 when that is no whole number."""
    size, rest = divmod(info.nbytes, info.numel or 1)
    return 0 if rest else size


def read_bytes(path: Path, begin: int, end: int) -> Bytes:
    """Those bytes of a file, in memory of their own. Raises StorageError when the file ends before."""
    found = np.fromfile(path, np.uint8, count=end - begin, offset=begin)
    if found.size != end - begin:
        raise StorageError(f"{path}: ends at byte {begin + found.size} where {end} are expected", _AGAIN)
    return found


class _Header:
    """The packed file's JSON header, built while the parts are written."""

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.parts: dict[str, dict[str, Any]] = {}
        self.tensors: dict[str, dict[str, str]] = {}
        self.offset = 0

    def add(self, info: TensorInfo, encoding: str, crc32: int, index: int, values: int) -> None:
        """Append a tensor whose index and values take so many bytes."""
        self.tensors[info.name] = {"encoding": encoding, "crc32": f"{crc32:08x}"}
        if encoding == "raw":
            self._part(f"{info.name}#raw", info.dtype, info.shape, values)
            return
        self._part(f"{info.name}#{encoding}", "U8", (index,), index)
        self._part(f"{info.name}#values", info.dtype, (values // (item_size(info) or 1),), values)

    def text(self) -> bytes:
        """The header as it is written, before padding."""
        metadata = {
            "format": FORMAT,
            "version": str(FORMAT_VERSION),
            "source": self.source.decode(),
            "source_crc32": f"{zlib.crc32(self.source):08x}",
            "tensors": json.dumps(self.tensors, separators=(",", ":")),
        }
        return json.dumps({"__metadata__": metadata, **self.parts}, separators=(",", ":")).encode()

    def room(self, infos: list[TensorInfo]) -> int:
        """Bytes that always hold the length and the header of a file with these tensors; a multiple of 8."""
        longest = _Header(self.source)
        for info in infos:
            # No part is longer than the raw tensor, so no real number has more digits than these.
            longest.add(info, "bitmask", 0, info.nbytes, info.nbytes)
        shapes = sum(len(str(info.shape)) for info in infos)
        return -(-(8 + len(longest.text()) + shapes) // 8) * 8

    def _part(self, name: str, dtype: str, shape: tuple[int, ...], size: int) -> None:
        offsets = [self.offset, self.offset + size]
        self.parts[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        self.offset += size


def _source(path: Path) -> tuple[bytes, list[TensorInfo]]:
    header, start = read_header(path)
    with path.open("rb") as file:
        prefix = file.read(start)
    return prefix, _infos(header, start, path.name)


def _infos(header: dict[str, Any], start: int, file: str) -> list[TensorInfo]:
    entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    found = []
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        found.append(TensorInfo(name, entry["dtype"], tuple(entry["shape"]), file, start + begin, start + end))
    return found


def _entry(path: Path, info: TensorInfo, kept: dict[str, str], header: dict[str, Any], start: int) -> Entry:
    encoding = kept["encoding"]
    if encoding not in ENCODINGS:
        raise StorageError(f"{path}: {info.name}: unknown encoding {encoding!r}", "upgrade sparsebench")
    names = ("raw",) if encoding == "raw" else (encoding, "values")
    parts = []
    for name in names:
        begin, end = header[f"{info.name}#{name}"]["data_offsets"]
        if not 0 <= begin <= end:
            raise ValueError(f"{info.name}#{name} begins at {begin} and ends at {end}")
        parts.append((start + begin, start + end))
    index, values = parts if len(parts) == 2 else ((start, start), parts[0])
    return Entry(info, encoding, int(kept["crc32"], 16), (index, values))
