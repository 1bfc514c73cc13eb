"""The archive format: read by a slow reader made from docs/format.md alone, damaged, and small enough."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import StorageError
from sparsebench.storage import container, formats, measure, unpack
from sparsebench.storage.archive import CODING
from sparsebench.storage.coding import Coding
from sparsebench.storage.packed import CODING as PACKED
from sparsebench.storage.words import Scratch
from tests.storage import packed_reference as reference
from tests.storage.every_kernel import NAMES, using
from tests.storage.model_folders import contents, prune
from tests.storage.test_container import SIZES, sources, write_source

ROTATE = {"BF16": 4, "F32": 4, "F16": 1, "F64": 7}
write, read = partial(container.write, coding=CODING), partial(container.read, coding=CODING)


def restored(path: Path, coding: Coding = CODING) -> bytes:
    stored = container.read(path, coding)
    return stored.prefix + b"".join(stored.load(entry).tobytes() for entry in stored.entries)


def by_specification(path: Path, name: str, dtype: str, size: int) -> bytes:
    """One tensor, word by word with Python's integers."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    kept = json.loads(header["__metadata__"]["tensors"])[name]

    def part(label: str) -> bytes:
        begin, end = header[f"{name}#{label}"]["data_offsets"]
        return zstandard.decompress(data[start + begin : start + end]) if end > begin else b""

    item = SIZES[dtype]
    width, left = 8 * item, ROTATE.get(dtype, 0)
    values = b""
    for word in zip(*(part(f"plane{plane}") for plane in range(item)), strict=True):
        turned = int.from_bytes(bytes(word), "little")
        values += ((turned >> left | turned << (width - left)) % (1 << width)).to_bytes(item, "little")
    if kept["encoding"] == "planes":
        return values
    return reference.decode(kept["encoding"], part(kept["encoding"]), values, size, item)


@pytest.mark.parametrize("by", NAMES)
@settings(max_examples=40, deadline=None)
@given(tensors=sources(), padding=st.integers(0, 9))
def test_any_file_comes_back_and_the_specification_agrees(
    by: str, tensors: dict[str, tuple[str, list[int], bytes]], padding: int
) -> None:
    with TemporaryDirectory() as folder, using(by):
        source, target = Path(folder) / "s.safetensors", Path(folder) / "s.archive"
        write_source(source, tensors, padding)
        write(source, target)
        assert restored(target) == source.read_bytes()
        for name, (dtype, _, original) in tensors.items():
            if original:
                assert by_specification(target, name, dtype, len(original)) == original


def weights(sparsity: float, dtype: str, pruned: str = "random", n: int = 200_000) -> bytes:
    """Normal weights, pruned."""
    random = np.random.default_rng(0)
    values = random.standard_normal(n, np.float32) * np.float32(0.02)
    if pruned == "random":
        values[random.random(n) < sparsity] = 0
    elif sparsity:
        values[np.abs(values) < np.quantile(np.abs(values), sparsity)] = 0
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F16": np.float16, "F32": np.float32, "F64": np.float64}[dtype]).tobytes()


@pytest.mark.parametrize("by", NAMES)
def test_all_kernels_write_the_same_file(by: str, tmp_path: Path) -> None:
    tensors = {}
    for number, (dtype, sparsity) in enumerate(
        (dtype, sparsity) for dtype in ("BF16", "F16", "F32", "F64") for sparsity in (0, 0.001, 0.5, 0.9, 0.999, 1)
    ):
        tensors[f"t{number}"] = (dtype, [200, 101], weights(sparsity, dtype, n=20_200))
    write_source(tmp_path / "s.safetensors", tensors)
    for coding in (CODING, PACKED):
        with using(by):
            container.write(tmp_path / "s.safetensors", tmp_path / "one", coding)
        with using("numpy"):
            container.write(tmp_path / "s.safetensors", tmp_path / "other", coding)
            assert restored(tmp_path / "one", coding) == (tmp_path / "s.safetensors").read_bytes()
        assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_negative_zero_and_nan_payloads(tmp_path: Path) -> None:
    words = np.zeros(4096, np.uint16)
    words[[3, 9, 4000]] = 0x8000, 0x7FC1, 0xFFA5
    write_source(tmp_path / "s.safetensors", {"a": ("BF16", [4096], words.tobytes())})
    write(tmp_path / "s.safetensors", tmp_path / "s.archive")
    assert restored(tmp_path / "s.archive") == (tmp_path / "s.safetensors").read_bytes()


def test_the_example_of_the_specification(tmp_path: Path) -> None:
    data = bytes.fromhex("00000000803f000000c0")
    write_source(tmp_path / "s.safetensors", {"a": ("BF16", [5], data)})
    write(tmp_path / "s.safetensors", tmp_path / "s.archive")
    entry = read(tmp_path / "s.archive").entries[0]
    stored = (tmp_path / "s.archive").read_bytes()
    parts = [zstandard.decompress(stored[begin:end]).hex() for begin, end in entry.parts]
    assert (entry.encoding, parts) == ("bitmask", ["14", "030c", "f800"])
    assert by_specification(tmp_path / "s.archive", "a", "BF16", 10) == data


@pytest.mark.parametrize("pruned", ["random", "magnitude"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.75, 0.9, 0.95])
def test_close_to_the_entropy(sparsity: float, pruned: str, tiny_llama: Path, tmp_path: Path) -> None:
    """Normal bfloat16 weights: within 3% of the entropy bound; the tables of zstd weigh more in a tensor this small."""
    folder = tmp_path / "dense"
    shutil.copytree(tiny_llama, folder)
    name = "model.layers.0.mlp.up_proj.weight"
    (folder / "model.safetensors").unlink()
    write_source(
        folder / "model.safetensors", {name: ("BF16", [2000, 1000], weights(sparsity, "BF16", pruned, 2_000_000))}
    )
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
    write(tmp_path / "s.safetensors", tmp_path / "s.archive")
    begin, end = read(tmp_path / "s.archive").entries[0].parts[0]
    assert end - begin < 0.3 * mask.size / 8


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_bert", "tiny_t5"])
@pytest.mark.parametrize("sparsity", [0.0, 0.9])
def test_a_folder_comes_back(model: str, sparsity: float, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = prune(request.getfixturevalue(model), tmp_path / "dense", sparsity)
    for name in ("packed", "archive"):
        write_folder = formats()[name].write
        assert write_folder
        write_folder(folder, tmp_path / name)
        unpack(tmp_path / name, tmp_path / f"{name}-restored")
        assert contents(tmp_path / f"{name}-restored") == contents(folder)
        holds = formats()["archive"].holds
        assert holds and holds(tmp_path / name) == (name == "archive")


@pytest.mark.parametrize("coding", [CODING, PACKED], ids=lambda coding: coding.name)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_found(coding: Coding, data: st.DataObject) -> None:
    """A flipped bit anywhere is an error that names file and tensor or header, or changes nothing that is read."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "s.stored"
        tensors = {
            f"t{number}": ("BF16", [20, 20], weights(s, "BF16", n=400)) for number, s in enumerate((0, 0.5, 0.9, 0.99))
        }
        write_source(path.with_suffix(".safetensors"), tensors)
        container.write(path.with_suffix(".safetensors"), path, coding)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        place = data.draw(st.integers(0, len(damaged) - 1))
        if data.draw(st.booleans()):
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        start = 8 + struct.unpack("<Q", whole[:8])[0]
        found = restored_or_error(path, coding)
        if isinstance(found, bytes):
            assert found == path.with_suffix(".safetensors").read_bytes()
        elif place >= start and len(damaged) == len(whole):
            assert any(f"{path}: t{number}: " in found.message for number in range(4))
        else:
            assert str(path) in found.message


def restored_or_error(path: Path, coding: Coding) -> bytes | StorageError:
    try:
        return restored(path, coding)
    except StorageError as error:
        return error


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
def test_parts_that_do_not_belong_together(part: int, content: bytes, says: str, tmp_path: Path) -> None:
    write_source(tmp_path / "s.safetensors", {"a": ("BF16", [400], weights(0.5, "BF16", n=400))})
    write(tmp_path / "s.safetensors", tmp_path / "s.archive")
    stored = read(tmp_path / "s.archive")
    entry = stored.entries[0]
    data = (tmp_path / "s.archive").read_bytes()
    parts = [np.frombuffer(data[begin:end], np.uint8) for begin, end in entry.parts]
    parts[part] = np.frombuffer(content, np.uint8)
    with pytest.raises(StorageError, match=says):
        CODING.decode("bitmask", parts, entry.info, Scratch())
    assert zlib.crc32(weights(0.5, "BF16", n=400)) == entry.crc32
