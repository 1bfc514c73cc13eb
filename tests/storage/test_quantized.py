"""Quantized weights in packed and archive: back byte for byte, read by a slow reader made from docs/format.md, small enough."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from typer.testing import CliRunner

from sparsebench.cli.app import app
from sparsebench.errors import StorageError, UnsupportedError
from sparsebench.models.files.quantized import Codes, QuantizedCheckpoint, Scheme, stored_parts
from sparsebench.models.random_weights import write_random
from sparsebench.runtime.measure import measure_latency
from sparsebench.runtime.results import Setting, Workload
from sparsebench.steps.contract import Context
from sparsebench.steps.grid import GROUP, Quantize, nearest
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.sweep import Sweep
from sparsebench.steps.quantize.sweep import quantize_model
from sparsebench.storage import container, measure, pack
from sparsebench.storage.archive import CODING as ARCHIVE
from sparsebench.storage.coding import Coding
from sparsebench.storage.packed import CODING as PACKED
from tests.storage import packed_reference as reference
from tests.storage.every_kernel import NAMES, using
from tests.storage.model_folders import contents
from tests.storage.test_archive import restored
from tests.storage.test_container import write_source
from tests.storage.test_storage_measure import _entropy

SCHEMES = [Scheme(8, None), *(Scheme(4, group) for group in (5, 32, 64))]
LLAMA = {
    "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": 256, "intermediate_size": 704, "vocab_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


@st.composite
def weights(draw: st.DrawFn) -> tuple[Codes, Scheme]:
    """A matrix of any size at any density on any grid; a last group may be narrower, and words not full."""
    scheme = draw(st.sampled_from(SCHEMES))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = random.standard_normal((draw(st.integers(1, 40)), draw(st.integers(1, 140)))).astype(np.float32)
    found[random.random(found.shape) < draw(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99, 1.0]))] = 0
    return nearest(torch.from_numpy(found), scheme), scheme


def written(path: Path, codes: Codes, scheme: Scheme) -> None:
    """A safetensors file with one quantized weight, among what stays as it is."""
    save_file({"a.bias": torch.ones(3), **dict(stored_parts(codes, "a.weight", scheme))}, path)


def by_specification(path: Path, codes: Codes, scheme: Scheme) -> np.ndarray | None:
    """The codes less that of zero, as a stored file holds them, one by one; None where it holds the words."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    name = "a.weight_packed"
    bits, _, encoding = json.loads(header["__metadata__"]["tensors"])[name]["encoding"].rpartition("-")

    def part(label: str) -> bytes:
        begin, end = header[f"{name}#{label}"]["data_offsets"]
        found = data[start + begin : start + end]
        return zstandard.decompress(found) if found and path.suffix == ".archive" else found

    if not bits or codes.values.shape[1] <= 4:  # one word a row, whatever it holds
        return None
    assert bits == f"int{scheme.bits}"
    rows, columns = codes.values.shape
    wide = math.ceil(columns * scheme.bits / 32) * 32 // scheme.bits
    stored = part("plane0" if path.suffix == ".archive" else "values")
    if scheme.bits == 4:
        stored = bytes(half for byte in stored for half in (byte & 15, byte >> 4))
    if encoding != "planes":
        stored = reference.decode(encoding, part(encoding), stored, rows * wide, 1)
    return np.frombuffer(stored, np.uint8).reshape(rows, wide)[:, :columns]


@pytest.mark.parametrize("by", NAMES)
@settings(max_examples=40, deadline=None)
@given(weight=weights())
def test_any_weight_comes_back_and_the_specification_agrees(by: str, weight: tuple[Codes, Scheme]) -> None:
    codes, scheme = weight
    with TemporaryDirectory() as folder:
        source = Path(folder) / "s.safetensors"
        written(source, codes, scheme)
        for coding in (PACKED, ARCHIVE):
            path = Path(folder) / f"s.{coding.name}"
            with using(by):
                container.write(source, path, coding)
                assert restored(path, coding) == source.read_bytes()
            with using("numpy"):
                container.write(source, path.with_suffix(".numpy"), coding)
            assert path.read_bytes() == path.with_suffix(".numpy").read_bytes()
            found = by_specification(path, codes, scheme)
            if found is not None:
                expected = codes.values.numpy().view(np.uint8) & ((1 << scheme.bits) - 1)
                assert np.array_equal(found, expected)
            for entry in container.read(path, coding).entries:
                assert coding is ARCHIVE or entry.nbytes <= entry.info.nbytes


def test_the_example_of_the_specification(tmp_path: Path) -> None:
    write_source(
        tmp_path / "s.safetensors",
        {
            "a.weight_packed": ("I32", [1, 1], bytes.fromhex("8889f888")),
            "a.weight_shape": ("I64", [2], struct.pack("<2q", 1, 8)),
        },
    )
    container.write(tmp_path / "s.safetensors", tmp_path / "s.packed", PACKED)
    entry = container.read(tmp_path / "s.packed", PACKED).entries[0]
    data = (tmp_path / "s.packed").read_bytes()
    assert (entry.encoding, [data[begin:end].hex() for begin, end in entry.parts]) == ("int4-bitmask", ["24", "71"])
    assert restored(tmp_path / "s.packed", PACKED) == (tmp_path / "s.safetensors").read_bytes()


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_what_only_looks_quantized_comes_back(data: st.DataObject) -> None:
    """Words, zero points of another program and a shape that do not belong together, empty ones too."""
    size = st.integers(0, 9)
    bytes_of = lambda count: data.draw(st.binary(min_size=count, max_size=count))  # noqa: E731
    tensors: dict[str, tuple[str, list[int], bytes]] = {}
    for name, dtypes in (("_packed", ["I32", "U8"]), ("", ["I8"]), ("_shape", ["I64"]), ("_zero_point", ["I32", "I8"])):
        if data.draw(st.booleans()):
            dtype, shape = data.draw(st.sampled_from(dtypes)), [data.draw(size), data.draw(size)]
            shape = [2] if name == "_shape" else shape
            item = {"I32": 4, "U8": 1, "I8": 1, "I64": 8}[dtype]
            content = bytes_of(math.prod(shape) * item)
            if name == "_shape" and data.draw(st.booleans()):
                content = struct.pack("<2q", data.draw(size), data.draw(st.integers(0, 80)))
            tensors[f"a.weight{name}"] = (dtype, shape, content)
    with TemporaryDirectory() as folder:
        source = Path(folder) / "s.safetensors"
        write_source(source, tensors)
        for coding in (PACKED, ARCHIVE):
            container.write(source, Path(folder) / "stored", coding)
            assert restored(Path(folder) / "stored", coding) == source.read_bytes()


@pytest.mark.parametrize("coding", [PACKED, ARCHIVE])
@pytest.mark.parametrize("scheme", [Scheme(8, None), Scheme(4, 32)])
def test_damage_is_found(coding: Coding, scheme: Scheme, tmp_path: Path) -> None:
    """An error that names file and tensor."""
    random = np.random.default_rng(0)
    matrix = torch.from_numpy(random.standard_normal((24, 96)).astype(np.float32))
    matrix[torch.from_numpy(random.random((24, 96)) < 0.5)] = 0
    written(tmp_path / "s.safetensors", nearest(matrix, scheme), scheme)
    path = tmp_path / f"s.{coding.name}"
    container.write(tmp_path / "s.safetensors", path, coding)
    whole = path.read_bytes()
    for entry in container.read(path, coding).entries:
        for begin, end in entry.parts:
            for place in {begin, (begin + end) // 2, end - 1} if end > begin else ():
                damaged = bytearray(whole)
                damaged[place] ^= 0x10
                path.write_bytes(damaged)
                with pytest.raises(StorageError, match=f"{path}: .*{entry.info.name}"):
                    restored(path, coding)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> dict[Quantize, Path]:
    """Random weights of a realistic shape, half of them pruned, quantized every way."""
    home = tmp_path_factory.mktemp("quantized")
    write_random(LLAMA, home / "dense", "decoder")
    Sweep(home / "dense", "decoder", {Target("magnitude", 0.5, "layer"): home / "pruned"}, 0, None).run(lambda *_: None)
    folders = {Quantize(): home / "int8", Quantize("int4", GROUP): home / "int4"}
    failed: list[Exception] = []
    quantize_model(
        home / "pruned",
        folders,
        Context("decoder"),
        lambda _, told: isinstance(told, Exception) and failed.append(told),
    )
    assert not failed
    return folders


def _expected(folder: Path) -> tuple[int, int, float, float, int]:
    """Weights, nonzero ones, the two bounds and the bytes of all prunable parts, from the stored words one by one."""
    checkpoint = QuantizedCheckpoint(folder)
    n = nonzero = size = 0
    raw = entropy = 0.0
    for name in sorted(checkpoint.quantized):
        codes, bits = checkpoint.codes(name), checkpoint.scheme.bits
        values = codes.values.tolist()
        count = codes.values.numel()
        kept = [value % 2**bits for row in values for value in row if value]
        beside = {end: checkpoint.stored[f"{name}{end}"].nbytes for end in ("_scale", "_shape")}
        positions = _entropy([count - len(kept), len(kept)]) / 8
        n, nonzero = n + count, nonzero + len(kept)
        raw += positions + len(kept) * bits / 8 + sum(beside.values())
        entropy += positions + _entropy(list(Counter(kept).values())) / 8 + beside["_shape"]
        entropy += _entropy(list(Counter(codes.scale.reshape(-1).tolist()).values())) / 8
        size += checkpoint.stored[f"{name}_packed"].nbytes + sum(beside.values())
    return n, nonzero, raw, entropy, size


def test_sizes_and_bounds(quantized: dict[Quantize, Path], tmp_path: Path) -> None:
    for way, folder in quantized.items():
        result = measure(folder, "decoder", ["dense", "packed", "archive"], tmp_path / "work")
        dense, packed, archive = result.sizes
        n, nonzero, raw, entropy, size = _expected(folder)
        assert (result.prunable, result.nonzero, dense.prunable_bytes) == (n, nonzero, size)
        assert nonzero <= n / 2
        assert (result.raw_value_bound, result.entropy_bound) == pytest.approx((raw, entropy), rel=1e-9)
        total = sum(info.nbytes for info in QuantizedCheckpoint(folder).stored.values())
        assert result.unprunable_bytes == total - size
        assert (packed.round_trip, archive.round_trip) == (True, True)
        assert raw <= packed.prunable_bytes <= 1.05 * raw, way
        assert entropy <= archive.prunable_bytes <= 1.05 * entropy, way


def test_a_folder_goes_through_the_command_line(quantized: dict[Quantize, Path], tmp_path: Path) -> None:
    folder = quantized[Quantize("int4", GROUP)]
    for form in ("packed", "archive"):
        stored, back = tmp_path / form, tmp_path / f"{form}-back"
        for words in (
            ["pack", str(folder), "--format", form, "--out", str(stored)],
            ["unpack", str(stored), "--out", str(back)],
        ):
            told = CliRunner().invoke(app, words)
            assert told.exit_code == 0, told.output
        assert contents(back) == contents(folder)


@pytest.mark.parametrize("engine", ["sparse", "hf"])
def test_no_engine_runs_packed_codes(engine: str, quantized: dict[Quantize, Path], tmp_path: Path) -> None:
    pack(quantized[Quantize()], tmp_path / "packed")
    setting = Setting(engine, 1, Workload(prompt=4, generate=2), processes=1)
    with pytest.raises(UnsupportedError, match="packed int8"):
        measure_latency(tmp_path / "packed", [("packed", tmp_path / "packed")], "decoder", setting, lambda *_: None)
