"""Stored files of both formats: read by a slow reader made from docs/format.md alone, damaged, and small enough."""

import json
import math
import shutil
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.quantized import Scheme, stored_parts
from sparsebench.steps.grid import nearest
from sparsebench.storage import container, measure
from sparsebench.storage.archive import CODING as ARCHIVE
from sparsebench.storage.coding import Coding
from sparsebench.storage.packed import CODING as PACKED
from sparsebench.storage.words import Scratch
from tests.storage import packed_reference as reference
from tests.storage.every_kernel import NAMES, using

SIZES = {
    "F64": 8, "F32": 4, "BF16": 2, "F16": 2, "F8_E4M3": 1, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
ROTATE = {"BF16": 4, "F32": 4, "F16": 1, "F64": 7}
SCHEMES = [Scheme(8, None), *(Scheme(4, group) for group in (5, 32, 64))]
CODINGS = [PACKED, ARCHIVE]
Tensors = dict[str, tuple[str, list[int], bytes]]


def write_source(path: Path, tensors: Tensors, padding: int = 0) -> None:
    """A safetensors file, byte by byte."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, ensure_ascii=False).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def restored(path: Path, coding: Coding) -> bytes:
    stored = container.read(path, coding)
    return stored.prefix + b"".join(stored.load(entry).tobytes() for entry in stored.entries)


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header and the bytes behind it."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    assert start % 8 == 0
    return json.loads(data[8:start]), data[start:]


def by_specification(path: Path, coding: Coding, name: str, dtype: str, size: int) -> bytes:
    """One tensor, word by word with Python's integers."""
    header, data = read_header(path)
    encoding = json.loads(header["__metadata__"]["tensors"])[name]["encoding"]

    def part(label: str) -> bytes:
        begin, end = header[f"{name}#{label}"]["data_offsets"]
        return zstandard.decompress(data[begin:end]) if coding is ARCHIVE and end > begin else data[begin:end]

    code, _, kind = encoding.rpartition("-")
    if code:
        bits = int(code.removeprefix("int"))
        values = part("plane0" if coding is ARCHIVE else "values")
        if bits == 4:
            values = bytes(half for byte in values for half in (byte & 15, byte >> 4))
        if kind != "planes":
            values = reference.decode(kind, part(kind), values, size * 8 // bits, 1)
        codes = [value ^ 1 << bits - 1 for value in values]
        return bytes(
            codes if bits == 8 else (low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True))
        )
    item = SIZES[dtype]
    if kind == "raw":
        return part("raw")
    if coding is PACKED:
        return reference.decode(kind, part(kind), part("values"), size, item)
    width, left = 8 * item, ROTATE.get(dtype, 0)
    values = b""
    for word in zip(*(part(f"plane{plane}") for plane in range(item)), strict=True):
        turned = int.from_bytes(bytes(word), "little")
        values += ((turned >> left | turned << (width - left)) % (1 << width)).to_bytes(item, "little")
    return values if kind == "planes" else reference.decode(kind, part(kind), values, size, item)


@st.composite
def plain(draw: st.DrawFn) -> Tensors:
    """Tensors of any dtype and shape, 0-dimensional and empty ones included, at any density."""
    tensors: Tensors = {}
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


def quantized(matrix: np.ndarray, scheme: Scheme) -> Tensors:
    codes = nearest(torch.from_numpy(matrix.astype(np.float32)), scheme)
    dtypes = {torch.int32: "I32", torch.int64: "I64", torch.float32: "F32"}
    return {
        name: (dtypes[tensor.dtype], [*tensor.shape], tensor.numpy().tobytes())
        for name, tensor in stored_parts(codes, "a.weight", scheme)
    }


@st.composite
def integers(draw: st.DrawFn) -> Tensors:
    """A matrix of any size at any density on any grid; a last group may be narrower, and words not full."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    matrix = random.standard_normal((draw(st.integers(1, 40)), draw(st.integers(1, 140))))
    matrix[random.random(matrix.shape) < draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))] = 0
    return quantized(matrix, draw(st.sampled_from(SCHEMES)))


@st.composite
def lookalikes(draw: st.DrawFn) -> Tensors:
    """Words, zero points of another program and a shape that do not belong together, empty ones too."""
    size = st.integers(0, 9)
    tensors: Tensors = {}
    for name, dtypes in (("_packed", ["I32", "U8"]), ("", ["I8"]), ("_shape", ["I64"]), ("_zero_point", ["I32", "I8"])):
        if draw(st.booleans()):
            dtype, shape = draw(st.sampled_from(dtypes)), [2] if name == "_shape" else [draw(size), draw(size)]
            count = math.prod(shape) * SIZES[dtype]
            content = draw(st.binary(min_size=count, max_size=count))
            if name == "_shape" and draw(st.booleans()):
                content = struct.pack("<2q", draw(size), draw(st.integers(0, 80)))
            tensors[f"a.weight{name}"] = (dtype, shape, content)
    return tensors


@pytest.mark.parametrize("by", NAMES)
@settings(max_examples=120, deadline=None)
@given(tensors=st.one_of(plain(), integers(), lookalikes()), padding=st.integers(0, 9))
def test_any_file_comes_back_as_the_specification_says(by: str, tensors: Tensors, padding: int) -> None:
    with TemporaryDirectory() as folder:
        source = Path(folder) / "s.safetensors"
        write_source(source, tensors, padding)
        for coding in CODINGS:
            path = source.with_suffix(f".{coding.name}")
            with using(by):
                encodings = container.write(source, path, coding)
                assert restored(path, coding) == source.read_bytes()
            with using("numpy"):
                container.write(source, path.with_suffix(".numpy"), coding)
            assert path.read_bytes() == path.with_suffix(".numpy").read_bytes()
            about = read_header(path)[0]["__metadata__"]
            assert (about["format"], about["version"]) == (f"sparsebench.{coding.name}", "1")
            assert about["source_crc32"] == f"{zlib.crc32(about['source'].encode()):08x}"
            kept = json.loads(about["tensors"])
            assert {name: entry["encoding"] for name, entry in kept.items()} == encodings
            for name, (dtype, _, original) in tensors.items():
                assert kept[name]["crc32"] == f"{zlib.crc32(original):08x}"
                assert not original or by_specification(path, coding, name, dtype, len(original)) == original
                if coding is PACKED and "-" not in encodings[name]:
                    assert encodings[name] == reference.encode(original, SIZES[dtype])[0]


EXAMPLE: Tensors = {"a": ("BF16", [5], bytes.fromhex("00000000803f000000c0"))}
CODES: Tensors = {
    "a.weight_packed": ("I32", [1, 1], bytes.fromhex("8889f888")),
    "a.weight_shape": ("I64", [2], struct.pack("<2q", 1, 8)),
}


@pytest.mark.parametrize(
    ("tensors", "coding", "encoding", "parts"),
    [
        (EXAMPLE, PACKED, "bitmask", ["14", "803f00c0"]),
        (EXAMPLE, ARCHIVE, "bitmask", ["14", "030c", "f800"]),
        (CODES, PACKED, "int4-bitmask", ["24", "71"]),
    ],
)
def test_the_specifications_cases(
    tensors: Tensors, coding: Coding, encoding: str, parts: list[str], tmp_path: Path
) -> None:
    write_source(tmp_path / "s.safetensors", tensors)
    container.write(tmp_path / "s.safetensors", tmp_path / "s", coding)
    entry = container.read(tmp_path / "s", coding).entries[0]
    pieces = [(tmp_path / "s").read_bytes()[begin:end] for begin, end in entry.parts]
    unpacked = [zstandard.decompress(piece) if coding is ARCHIVE else piece for piece in pieces]
    assert (entry.encoding, [piece.hex() for piece in unpacked]) == (encoding, parts)
    name, (dtype, _, original) = next(iter(tensors.items()))
    assert by_specification(tmp_path / "s", coding, name, dtype, len(original)) == original


def weights(sparsity: float, pruned: str = "random", n: int = 400) -> bytes:
    """Normal bfloat16 weights, pruned."""
    random = np.random.default_rng(0)
    values = random.standard_normal(n, np.float32) * np.float32(0.02)
    if pruned == "random":
        values[random.random(n) < sparsity] = 0
    elif sparsity:
        values[np.abs(values) < np.quantile(np.abs(values), sparsity)] = 0
    return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()


@pytest.fixture(scope="module")
def stored_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each format with a tensor of each encoding, and a quantized one."""
    folder = tmp_path_factory.mktemp("stored")
    tensors: Tensors = {
        name: ("BF16", [20, 20], weights(share)) for name, share in (("raw", 0), ("mask", 0.5), ("fours", 0.9), ("eights", 0.995))
    }  # fmt: skip
    random = np.random.default_rng(0)
    tensors |= quantized(random.standard_normal((24, 96)) * (random.random((24, 96)) < 0.5), Scheme(4, 32))
    write_source(folder / "s.safetensors", tensors)
    for coding in CODINGS:
        container.write(folder / "s.safetensors", folder / f"s.{coding.name}", coding)
    return folder


@pytest.mark.parametrize("coding", CODINGS, ids=lambda coding: coding.name)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_found(coding: Coding, stored_files: Path, data: st.DataObject) -> None:
    """A flipped bit anywhere is an error that names file and tensor or header, or changes nothing that is read."""
    whole = (stored_files / f"s.{coding.name}").read_bytes()
    damaged = bytearray(whole)
    place = data.draw(st.integers(0, len(damaged) - 1))
    if data.draw(st.booleans()):
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del damaged[place:]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.stored"
        path.write_bytes(damaged)
        found = restored_or_error(path, coding)
        if isinstance(found, bytes):
            assert found == (stored_files / "s.safetensors").read_bytes()
        elif place >= 8 + struct.unpack("<Q", whole[:8])[0] and len(damaged) == len(whole):
            names = [entry.info.name for entry in container.read(stored_files / f"s.{coding.name}", coding).entries]
            assert any(f"{path}: {name}: " in found.message for name in names)
        else:
            assert str(path) in found.message


def restored_or_error(path: Path, coding: Coding) -> bytes | StorageError:
    try:
        return restored(path, coding)
    except StorageError as error:
        return error


def test_the_safetensors_library_opens_a_packed_file(stored_files: Path) -> None:
    packed = container.read(stored_files / "s.packed", PACKED)
    assert [entry.encoding for entry in packed.entries][:4] == ["raw", "bitmask", "gaps4", "gaps8"]
    with safe_open(stored_files / "s.packed", "pt") as file:
        for entry in packed.entries:
            tensor = file.get_tensor(f"{entry.info.name}#{'raw' if entry.encoding == 'raw' else 'values'}")
            begin, end = entry.parts[1]
            assert tensor.view(dtype=torch.uint8).numpy().tobytes() == packed.path.read_bytes()[begin:end]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("version", "2", "version 2 of the packed format"), ("format", "compressed", "its format is 'compressed'")],
)
def test_another_version_or_format(stored_files: Path, key: str, value: str, message: str, tmp_path: Path) -> None:
    header, data = read_header(stored_files / "s.packed")
    header["__metadata__"][key] = value
    text = json.dumps(header).encode()
    (tmp_path / "s.packed").write_bytes(struct.pack("<Q", len(text)) + text + data)
    with pytest.raises(StorageError, match=message):
        container.read(tmp_path / "s.packed", PACKED)
    with pytest.raises(StorageError, match="not"):
        container.read(stored_files / "s.safetensors", PACKED)


def test_a_broken_source_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "s.safetensors").write_bytes(b"\x05\0\0\0\0\0\0\0{}")
    with pytest.raises(ModelError):
        container.write(tmp_path / "s.safetensors", tmp_path / "s.packed", PACKED)


def test_the_header_room_is_tight(tmp_path: Path) -> None:
    """What is kept for the header is used, but for the tensors that turn out raw."""
    words = np.zeros((64, 64), np.uint16)
    words[:, ::2] = 5
    write_source(
        tmp_path / "s.safetensors",
        {f"model.layers.{number}.weight": ("BF16", [64, 64], words.tobytes()) for number in range(100)},
    )
    container.write(tmp_path / "s.safetensors", tmp_path / "s.packed", PACKED)
    data = (tmp_path / "s.packed").read_bytes()
    header = data[8 : 8 + struct.unpack("<Q", data[:8])[0]]
    assert len(header.rstrip()) > 0.9 * len(header)


@pytest.mark.parametrize(
    ("sparsity", "pruned"), [(0.0, "random"), (0.5, "random"), (0.75, "magnitude"), (0.95, "magnitude")]
)
def test_close_to_the_entropy(sparsity: float, pruned: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Normal bfloat16 weights: within 3% of the entropy bound; the tables of zstd weigh more in a tensor this small."""
    folder = tmp_path / "dense"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    name = "model.layers.0.mlp.up_proj.weight"
    write_source(folder / "model.safetensors", {name: ("BF16", [2000, 1000], weights(sparsity, pruned, 2_000_000))})
    result = measure(folder, "decoder", ["archive"], tmp_path / "work")
    assert result.sizes[0].round_trip
    assert result.prunable == 2_000_000
    assert 0.99 < result.sizes[0].prunable_bytes / result.entropy_bound < 1.03


def test_rows_that_repeat_are_found(tmp_path: Path) -> None:
    """Blocks of rows pruned alike: the index costs a fraction of the positions' entropy."""
    random = np.random.default_rng(0)
    mask = np.repeat(random.random((64, 4096)) < 0.5, 4, axis=0)
    words = random.integers(1, 1 << 16, mask.shape).astype(np.uint16) * mask
    write_source(tmp_path / "s.safetensors", {"a": ("BF16", list(mask.shape), words.tobytes())})
    container.write(tmp_path / "s.safetensors", tmp_path / "s.archive", ARCHIVE)
    begin, end = container.read(tmp_path / "s.archive", ARCHIVE).entries[0].parts[0]
    assert end - begin < 0.3 * mask.size / 8


@pytest.mark.parametrize(
    ("part", "content", "says"),
    [
        (0, b"", "part of 0 bytes where 50"),
        (0, zstandard.compress(bytes(51)), "51 bytes where 50"),
        (0, zstandard.compress(b"\xff" * 50), "its index places more values"),
        (0, zstandard.compress(bytes(50)), "places 0"),
        (0, b"\x28\xb5\x2f\xfd" + b"\xff" * 20, "damaged|bytes where"),
        (1, zstandard.compress(bytes(7)), "differ in length"),
        (1, zstandard.compress(bytes(1 << 20)), "1048576 bytes where"),
        (2, zstandard.compress(b"ab")[:-1], "damaged|differ"),
    ],
)
def test_parts_of_an_archive_that_do_not_fit(part: int, content: bytes, says: str, stored_files: Path) -> None:
    stored = container.read(stored_files / "s.archive", ARCHIVE)
    entry = next(entry for entry in stored.entries if entry.info.name == "mask")
    data = stored.path.read_bytes()
    parts = [np.frombuffer(data[begin:end], np.uint8) for begin, end in entry.parts]
    parts[part] = np.frombuffer(content, np.uint8)
    with pytest.raises(StorageError, match=says):
        ARCHIVE.decode("bitmask", parts, entry.info, Scratch())
