"""One packed file: opened by another reader, damaged in every way, of another version."""

from __future__ import annotations

import json
import struct
import zlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sparsebench.errors import ModelError, StorageError
from sparsebench.storage import container
from sparsebench.storage.packed import CODING
from tests.storage import packed_reference as reference

read_packed = partial(container.read, coding=CODING)
write_packed = partial(container.write, coding=CODING)

SIZES = {
    "F64": 8,
    "F32": 4,
    "BF16": 2,
    "F16": 2,
    "F8_E4M3": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


def write_source(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], padding: int = 0) -> None:
    """A safetensors file, byte by byte."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, ensure_ascii=False).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


@st.composite
def sources(draw: st.DrawFn) -> dict[str, tuple[str, list[int], bytes]]:
    """Tensors of any dtype and shape, 0-dimensional and empty ones included, at any density."""
    tensors = {}
    names = st.one_of(st.sampled_from(["a", "a#values", "a#bitmask", "é🙂", 'quo"te\\']), st.text("a.b#_", max_size=40))
    for name in draw(st.lists(names, max_size=6, unique=True)):
        dtype = draw(st.sampled_from(sorted(SIZES)))
        shape = draw(st.lists(st.integers(0, 24), max_size=3))
        item, count = SIZES[dtype], int(np.prod(shape, dtype=int))
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        elements = random.integers(0, 256, (count, item), dtype=np.uint8)
        elements[random.random(count) < draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))] = 0
        tensors[name] = (dtype, shape, elements.tobytes())
    return tensors


@settings(max_examples=150, deadline=None)
@given(sources(), st.integers(0, 9))
def test_any_file_comes_back_and_another_reader_agrees(
    tensors: dict[str, tuple[str, list[int], bytes]], padding: int
) -> None:
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "s.safetensors", Path(folder) / "s.packed"
        write_source(source, tensors, padding)
        encodings = write_packed(source, target)
        packed = read_packed(target)
        assert [entry.info.name for entry in packed.entries if entry.info.nbytes] == [
            name for name, (_, _, data) in tensors.items() if data
        ]
        whole = packed.prefix + b"".join(packed.load(entry).tobytes() for entry in packed.entries)
        assert whole == source.read_bytes()
        assert {entry.info.name: entry.encoding for entry in packed.entries} == encodings
        _check_by_specification(target, tensors)


def _check_by_specification(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    assert start % 8 == 0
    metadata = header.pop("__metadata__")
    assert (metadata["format"], metadata["version"]) == ("sparsebench.packed", "1")
    assert metadata["source_crc32"] == f"{zlib.crc32(metadata['source'].encode()):08x}"
    kept = json.loads(metadata["tensors"])
    assert set(kept) == set(tensors)

    def part(name: str) -> bytes:
        begin, end = header[name]["data_offsets"]
        return data[start + begin : start + end]

    for name, (dtype, _, original) in tensors.items():
        encoding = kept[name]["encoding"]
        index = b"" if encoding == "raw" else part(f"{name}#{encoding}")
        values = part(f"{name}#{'raw' if encoding == 'raw' else 'values'}")
        assert reference.decode(encoding, index, values, len(original), SIZES[dtype]) == original
        assert kept[name]["crc32"] == f"{zlib.crc32(original):08x}"


@pytest.fixture
def packed_file(tmp_path: Path) -> Path:
    """A packed file with a tensor of each encoding; an odd number of index bytes moves the later ones."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, sparsity in (("mask", 0.5), ("fours", 0.9), ("eights", 0.99), ("raw", 0.0)):
        words = random.integers(1, 1 << 16, 2051, dtype=np.uint16)
        words[random.random(2051) < sparsity] = 0
        tensors[name] = ("BF16", [2051], words.tobytes())
    write_source(tmp_path / "s.safetensors", tensors)
    write_packed(tmp_path / "s.safetensors", tmp_path / "s.packed")
    return tmp_path / "s.packed"


def test_the_safetensors_library_opens_it(packed_file: Path) -> None:
    packed = read_packed(packed_file)
    assert [entry.encoding for entry in packed.entries] == ["bitmask", "gaps4", "gaps8", "raw"]
    with safe_open(packed_file, "pt") as file:
        for entry in packed.entries:
            tensor = file.get_tensor(f"{entry.info.name}#{'raw' if entry.encoding == 'raw' else 'values'}")
            begin, end = entry.parts[1]
            assert tensor.view(dtype=torch.uint8).numpy().tobytes() == packed_file.read_bytes()[begin:end]


def test_a_flipped_value_names_file_and_tensor(packed_file: Path) -> None:
    entry = read_packed(packed_file).entries[1]
    data = bytearray(packed_file.read_bytes())
    data[entry.parts[1][0] + 3] ^= 0x40
    packed_file.write_bytes(data)
    with pytest.raises(StorageError, match=r"s\.packed: fours: checksum mismatch"):
        read_packed(packed_file).load(entry)


def test_a_truncated_file_is_named(packed_file: Path) -> None:
    packed_file.write_bytes(packed_file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"s\.packed: \d+ bytes where its header promises"):
        read_packed(packed_file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("version", "2", "version 2 of the packed format"), ("format", "compressed", "its format is 'compressed'")],
)
def test_another_version_or_format(packed_file: Path, key: str, value: str, message: str) -> None:
    data = packed_file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    packed_file.write_bytes(struct.pack("<Q", len(text)) + text + data[start:])
    with pytest.raises(StorageError, match=message):
        read_packed(packed_file)


def test_a_plain_safetensors_file_is_not_packed(packed_file: Path) -> None:
    with pytest.raises(StorageError, match="not"):
        read_packed(packed_file.with_suffix(".safetensors"))


def test_a_broken_source_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError):
        write_packed(tmp_path / "s.safetensors", tmp_path / "s.packed")


def test_the_header_room_is_tight(tmp_path: Path) -> None:
    """What is kept for the header is used, but for the tensors that turn out raw."""
    words = np.zeros((64, 64), np.uint16)
    words[:, ::2] = 5
    tensors = {f"model.layers.{number}.weight": ("BF16", [64, 64], words.tobytes()) for number in range(100)}
    write_source(tmp_path / "s.safetensors", tensors)
    write_packed(tmp_path / "s.safetensors", tmp_path / "s.packed")
    data = (tmp_path / "s.packed").read_bytes()
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    assert len(header.rstrip()) > 0.9 * len(header)
