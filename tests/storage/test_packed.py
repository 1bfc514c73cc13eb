"""Whole folders: what comes back, what is left alone, what is refused."""

import json
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsebench import bounded
from sparsebench.errors import ModelError, StorageError
from sparsebench.models.files.checkpoint import INDEX, Checkpoint
from sparsebench.models.prepare import prepare
from sparsebench.storage import folders, formats, is_packed, measure, pack, unpack
from sparsebench.storage.container import read
from sparsebench.storage.packed import CODING, PackedCheckpoint
from tests.storage.model_folders import contents, prune


@pytest.mark.parametrize("form", ["packed", "archive"])
@pytest.mark.parametrize(("model", "sparsity"), [("tiny_llama", 0.0), ("tiny_bert", 0.9), ("tiny_t5", 1.0)])
def test_round_trip_is_exact(
    model: str, sparsity: float, form: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = prune(request.getfixturevalue(model), tmp_path / "dense", sparsity)
    (folder / "sparsebench.json").write_text("{}")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")
    row, archive = formats()[form], formats()["archive"]
    assert row.write and archive.holds
    row.write(folder, tmp_path / form)
    assert archive.holds(tmp_path / form) == (form == "archive")
    assert unpack(tmp_path / form, tmp_path / "restored") == tmp_path / "restored"
    assert contents(tmp_path / "restored") == contents(folder)
    dense = (folder / "model.safetensors").stat().st_size
    stored = (tmp_path / form / f"model.safetensors.{form}").stat().st_size
    assert (stored < 0.7 * dense) == (sparsity >= 0.5)


def test_tensors_of_no_elements_and_large_ones_of_zeros_alone_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "TENSOR_BYTES", 1000)  # above which a tensor may not come of next to nothing
    shapes = {"none": (0, 4), "empty": (0,), "one": (4,), "large": (64, 64)}
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    zeros = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_file(zeros, folder / "model.safetensors")
    pack(folder, tmp_path / "packed")
    packed = PackedCheckpoint(tmp_path / "packed")
    for name, shape in shapes.items():
        assert packed.load(name).shape == shape and packed.load(name).dtype == torch.bfloat16
        packed.mask_and_values(name)
    kept = {
        entry.info.name: entry.encoding
        for entry in read(tmp_path / "packed" / "model.safetensors.packed", CODING).entries
    }
    assert kept["large"] == "bitmask"
    assert contents(unpack(tmp_path / "packed", tmp_path / "restored")) == contents(folder)


def restored(folder: Path, tmp_path: Path) -> Path:
    """What is packed and unpacked again."""
    pack(folder, tmp_path / "packed")
    return unpack(tmp_path / "packed", tmp_path / "restored")


@pytest.fixture
def sharded(tiny_t5: Path, tmp_path: Path) -> Path:
    """A model in several files with an index, sparse."""
    from transformers import AutoModelForSeq2SeqLM

    AutoModelForSeq2SeqLM.from_pretrained(tiny_t5).save_pretrained(tmp_path / "whole", max_shard_size="100KB")
    return prune(tmp_path / "whole", tmp_path / "sharded", 0.9)


def test_shards_are_mirrored(sharded: Path, tmp_path: Path) -> None:
    files = Checkpoint(sharded).files
    assert len(files) > 1
    assert contents(restored(sharded, tmp_path)) == contents(sharded)
    assert {f"{file}.packed" for file in files} | {f"{INDEX}.packed"} < set(contents(tmp_path / "packed"))


def test_a_missing_shard_is_named(sharded: Path, tmp_path: Path) -> None:
    pack(sharded, tmp_path / "packed")
    lost = Checkpoint(sharded).files[1]
    (tmp_path / "packed" / f"{lost}.packed").unlink()
    with pytest.raises(StorageError, match=f"{lost}.packed is missing"):
        unpack(tmp_path / "packed", tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    with pytest.raises(StorageError, match=f"{lost}.packed is missing"):
        PackedCheckpoint(tmp_path / "packed").tensors  # noqa: B018


def test_a_tensor_that_two_files_hold_is_named_with_both(sharded: Path, tmp_path: Path) -> None:
    pack(sharded, tmp_path / "packed")
    first = tmp_path / "packed" / f"{Checkpoint(sharded).files[0]}.packed"
    shutil.copy(first, first.with_name("other.safetensors.packed"))
    with pytest.raises(StorageError, match=f"is in {first.name} and in other"):
        PackedCheckpoint(tmp_path / "packed").tensors  # noqa: B018


@pytest.mark.parametrize("model", ["tiny_llama", "sharded"])
def test_nothing_takes_it_for_a_model(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = request.getfixturevalue(model)
    pack(folder, tmp_path / "packed")
    assert is_packed(tmp_path / "packed")
    assert not is_packed(folder)
    assert not list((tmp_path / "packed").rglob("*.safetensors"))
    with pytest.raises(OSError, match="no file named"):
        AutoModel.from_pretrained(tmp_path / "packed")
    with pytest.raises(ModelError):
        Checkpoint(tmp_path / "packed").tensors  # noqa: B018


def test_a_file_with_holes_keeps_its_tensors(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holes"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    header = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "a": {"dtype": "F32", "shape": [], "data_offsets": [16, 20]},
    }
    text = json.dumps(header).encode()
    data = b"junk" + struct.pack("<2f", 1, -0.0) + b"junk" + struct.pack("<f", 3)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    found = (restored(folder, tmp_path) / "model.safetensors").read_bytes()
    assert found == struct.pack("<Q", len(text)) + text + data.replace(b"junk", bytes(4))


def test_the_same_weights_in_another_format_are_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder)
    for name in ("pytorch_model.bin", "tf_model.h5", ".gitattributes"):
        (folder / name).write_bytes(b"x")
    assert contents(restored(folder, tmp_path)) == contents(tiny_bert)


def test_what_was_packed_before_and_an_index_beside_whole_weights_are_left_out(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder)
    pack(tiny_bert, tmp_path / "earlier")
    for name in ("model.safetensors.archive", "other.safetensors.packed"):
        shutil.copy(tmp_path / "earlier" / "model.safetensors.packed", folder / name)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    assert contents(restored(folder, tmp_path)) == contents(tiny_bert)
    prepared = prepare(folder, tmp_path / "prepared", "encoder")
    (with_earlier,), (alone,) = (
        measure(model, "encoder", ["packed"], tmp_path / "work").sizes for model in (prepared, tiny_bert)
    )
    assert with_earlier.round_trip and with_earlier.bytes == alone.bytes


def test_an_existing_folder_is_not_overwritten(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    pack(tiny_bert, tmp_path / "packed")
    for act in (lambda out: pack(tiny_bert, out), lambda out: unpack(tmp_path / "packed", out)):
        with pytest.raises(StorageError, match="exists and is not empty"):
            act(tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years of work"}
    before = contents(tmp_path / "packed")
    pack(tiny_bert, tmp_path / "packed")  # one's own is replaced
    assert contents(tmp_path / "packed") == before


@pytest.mark.parametrize("inner", [".", "packed", "deep/er"])
def test_out_may_not_lie_in_the_source(inner: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder)
    with pytest.raises(StorageError, match="which is read"):
        pack(folder, folder / inner)
    assert contents(folder) == contents(tiny_bert)


def test_a_failure_leaves_nothing(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path, coding: object) -> dict[str, str]:
        target.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(folders, "write", fail)
    with pytest.raises(OSError, match="no space"):
        pack(tiny_bert, tmp_path / "packed")
    assert not list(tmp_path.iterdir())


def test_a_dense_folder_cannot_be_unpacked(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no \*\.safetensors\.packed or \*\.safetensors\.archive file"):
        unpack(tiny_bert, tmp_path / "restored")


def test_memory_is_bounded_by_one_tensor(tiny_bert: Path, tmp_path: Path) -> None:
    """Twelve tensors of 4 MiB: neither direction holds more than a few of them at once."""
    folder = tmp_path / "dense"
    shutil.copytree(tiny_bert, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    size = 4 << 20
    random = np.random.default_rng(0)
    header = {
        f"t{k}": {"dtype": "BF16", "shape": [size // 2], "data_offsets": [k * size, k * size + size]} for k in range(12)
    }
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for number in range(12):
            words = random.integers(1, 1 << 16, size // 2, dtype=np.uint16)
            words[random.random(size // 2) < number / 12] = 0
            file.write(words.data)
    del words
    for act in (lambda: pack(folder, tmp_path / "packed"), lambda: unpack(tmp_path / "packed", tmp_path / "restored")):
        tracemalloc.start()
        act()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * size
    assert contents(tmp_path / "restored") == contents(folder)
