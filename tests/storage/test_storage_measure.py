"""Sizes and bounds of a model, against counting by hand."""

import dataclasses
import json
from collections import Counter
from math import log2
from pathlib import Path

import pytest

from sparsebench.errors import StorageError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.storage import Format, formats, is_packed, measure, unpack
from sparsebench.storage.container import read
from sparsebench.storage.measure import bounds
from sparsebench.storage.packed import CODING
from tests.storage.model_folders import contents, prune

FAMILIES = {"tiny_llama": "decoder", "tiny_bert": "encoder", "tiny_t5": "encoder-decoder"}


def _entropy(counts: list[int]) -> float:
    """Bits for the whole list."""
    return -sum(count * log2(count / sum(counts)) for count in counts if count)


def _slow_bounds(checkpoint: Checkpoint, names: list[str]) -> tuple[int, int, float, float]:
    n = nonzero = 0
    raw = entropy = 0.0
    for name in names:
        info = checkpoint.tensors[name]
        data = (checkpoint.folder / info.file).read_bytes()[info.begin : info.end]
        item = info.nbytes // info.numel
        values = [data[place : place + item] for place in range(0, len(data), item)]
        kept = [value for value in values if any(value)]
        positions = _entropy([len(values) - len(kept), len(kept)]) / 8
        n, nonzero = n + len(values), nonzero + len(kept)
        raw += positions + len(kept) * item
        upper = Counter(value[-2:] for value in kept)
        entropy += positions + _entropy(list(upper.values())) / 8 + len(kept) * (item - 2)
    return n, nonzero, raw, entropy


@pytest.mark.parametrize("model", sorted(FAMILIES))
@pytest.mark.parametrize("sparsity", [0.0, 0.95, 1.0])
def test_sizes_and_bounds(model: str, sparsity: float, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = prune(request.getfixturevalue(model), tmp_path / "dense", sparsity)
    before = contents(folder)
    result = measure(folder, FAMILIES[model], ["dense", "packed"], tmp_path / "workspace", tmp_path / "kept")
    checkpoint = Checkpoint(folder)
    prunable = [name for name, part in parts(checkpoint, FAMILIES[model]).items() if part.prunable]
    dense, packed = result.sizes

    assert (dense.format, dense.round_trip, dense.seconds) == ("dense", None, 0.0)
    assert dense.bytes == (folder / "model.safetensors").stat().st_size
    assert dense.prunable_bytes == sum(checkpoint.tensors[name].nbytes for name in prunable)
    assert result.unprunable_bytes + dense.prunable_bytes == sum(info.nbytes for info in checkpoint.tensors.values())
    assert result.folder_bytes == sum(map(len, before.values()))

    kept = tmp_path / "kept" / "model.safetensors.packed"
    assert (packed.format, packed.round_trip, packed.bytes) == ("packed", True, kept.stat().st_size)
    assert packed.seconds > 0
    sizes = {entry.info.name: entry.nbytes for entry in read(kept, CODING).entries}
    assert packed.prunable_bytes == sum(sizes[name] for name in prunable)

    n, nonzero, raw, entropy = _slow_bounds(checkpoint, prunable)
    assert (result.prunable, result.nonzero) == (n, nonzero)
    assert result.raw_value_bound == pytest.approx(raw, rel=1e-9)
    assert result.entropy_bound == pytest.approx(entropy, rel=1e-9)
    assert result.entropy_bound <= result.raw_value_bound <= packed.prunable_bytes <= dense.prunable_bytes

    unpack(tmp_path / "kept", tmp_path / "restored")
    assert contents(tmp_path / "restored") == contents(folder) == before
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_the_bounds_count_the_smallest_numbers(tiny_bert: Path, tmp_path: Path) -> None:
    """The upper half of a subnormal is zero, the number is not."""
    folder = prune(tiny_bert, tmp_path / "dense", 0.9)
    info = Checkpoint(folder).tensors["encoder.layer.0.intermediate.dense.weight"]
    with (folder / info.file).open("r+b") as file:
        file.seek(info.begin)
        file.write(b"\1\0\0\0" * 100)
    found = bounds(Checkpoint(folder), [info.name])
    n, nonzero, raw, entropy = _slow_bounds(Checkpoint(folder), [info.name])
    assert (found.weights, found.nonzero) == (n, nonzero)
    assert (found.raw_values, found.entropy) == pytest.approx((raw, entropy), rel=1e-9)


def test_archive_beside_the_others(tiny_llama: Path, tmp_path: Path) -> None:
    result = measure(tiny_llama, "decoder", ["archive", "dense", "packed"], tmp_path)
    sizes = {size.format: size for size in result.sizes}
    assert [size.round_trip for size in result.sizes] == [True, None, True]
    dense = sizes["dense"].prunable_bytes
    assert result.entropy_bound < sizes["archive"].prunable_bytes < dense == sizes["packed"].prunable_bytes
    assert not list(tmp_path.iterdir())


def test_packed_is_kept_even_where_it_is_not_sized(tiny_bert: Path, tmp_path: Path) -> None:
    result = measure(tiny_bert, "encoder", ["dense"], tmp_path / "workspace", tmp_path / "kept")
    assert [size.format for size in result.sizes] == ["dense"]
    assert is_packed(tmp_path / "kept")


def test_an_unknown_format_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"'zip'.*\n.*dense, packed, archive"):
        measure(tiny_bert, "encoder", ["dense", "zip"], tmp_path)


def test_a_format_that_loses_bits_is_reported(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = formats()["packed"]

    def damaged(folder):
        for info, bits in packed.read(folder):
            bits = bits.copy()
            if info.name.endswith("intermediate.dense.weight"):
                bits[-1] ^= 0x80
            yield info, bits

    def short(folder):
        yield from list(packed.read(folder))[1:]

    for name, restored in (("damaged", damaged), ("short", short)):
        monkeypatch.setitem(formats(), name, Format(name, packed.write, packed.sizes, restored))
        assert measure(tiny_bert, "encoder", [name], tmp_path).sizes[0].round_trip is False
