"""Reading and writing checkpoints tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import INDEX, Checkpoint
from sparsebench.models.files.families import MODEL_TYPES
from sparsebench.models.files.safety import companions
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.random_weights import write_random
from tests.models.model_zoo import small


def write(folder: Path, tensors: dict, config: dict) -> Checkpoint:
    """A checkpoint written by safetensors itself, not by us."""
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder)


def test_tensors_are_what_safetensors_reads(tiny_llama: Path) -> None:
    expected = load_file(tiny_llama / "model.safetensors")
    checkpoint = Checkpoint(tiny_llama)
    assert set(checkpoint.tensors) == set(expected)
    for info, tensor in checkpoint.items():
        assert torch.equal(tensor, expected[info.name]) and tensor.dtype == expected[info.name].dtype
        assert info.nbytes == tensor.numel() * tensor.element_size() and info.numel == tensor.numel()


def test_what_is_written_is_what_safetensors_reads(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 5).to(torch.bfloat16), "b": torch.arange(7), "c": torch.tensor(2.5),
        "empty": torch.empty(0, 4), "flag": torch.tensor([True, False]), "transposed": torch.randn(4, 2).T,
    }  # fmt: skip
    codes = ("BF16", "I64", "F32", "F32", "BOOL", "F32")
    layout = lay_out([(name, code, tuple(t.shape)) for (name, t), code in zip(tensors.items(), codes, strict=True)])
    writer = CheckpointWriter(tmp_path / "out", layout)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    assert not (tmp_path / "out").exists()
    folder = writer.close({"made": "here"})
    found = load_file(folder / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert json.loads((folder / "sparsebench.json").read_text()) == {"made": "here"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_tensors_may_come_in_any_order_each_once_and_all(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path / "out", lay_out([("a", "F32", (2,)), ("b", "F32", (2,))]))
    with pytest.raises(ModelError, match=r"a: 2 entries of torch\.float64"):
        writer.write("a", torch.zeros(2, dtype=torch.float64))
    writer.write("b", torch.ones(2))
    with pytest.raises(ModelError, match="b: 2 entries"):
        writer.write("b", torch.zeros(2))
    with pytest.raises(ModelError, match="1 tensors were never written, the first is a"):
        writer.close()
    writer.write("a", torch.full((2,), 2.0))
    folder = writer.close()
    found = load_file(folder / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [2, 2], "b": [1, 1]}
    writer = CheckpointWriter(tmp_path / "other", lay_out([("a", "F32", (2,))]))
    writer.abort()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_shards_are_full_but_never_split_a_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.models.files.writing.SHARD_BYTES", 100)
    layout = lay_out([("a", "F32", (10,)), ("b", "F32", (15,)), ("c", "F32", (1,)), ("huge", "F32", (500,))])
    assert [info.file[:11] for info in layout] == ["model-00001", "model-00001", "model-00002", "model-00003"]
    assert {info.file[-20:] for info in layout} == {"of-00003.safetensors"}


@pytest.mark.parametrize(
    ("model_type", "twins"),
    [
        ("llama", {"model.embed_tokens.weight": ["lm_head.weight"]}),
        ("t5", {"shared.weight": ["lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]}),
        ("bart", {"model.shared.weight": ["lm_head.weight", "model.decoder.embed_tokens.weight"]}),
    ],
)
def test_ties_are_found_when_a_tensor_is_stored_again(model_type: str, twins: dict, tmp_path: Path) -> None:
    config = small(model_type, tie_word_embeddings=True)
    once = write_random(config, tmp_path / "once", MODEL_TYPES[model_type])
    assert Checkpoint(once).ties == {}
    tensors = load_file(once / "model.safetensors")
    for source, repeats in twins.items():
        tensors |= {name: tensors[source].clone() for name in repeats}
    ties = write(tmp_path / "again", tensors, config).ties
    expected = {frozenset([source, *repeats]) for source, repeats in twins.items()}
    assert {frozenset([twin, *(name for name in ties if ties[name] == twin)]) for twin in ties.values()} == expected


def test_what_differs_in_one_value_and_pruned_blocks_are_not_ties(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsebench.models.files.checkpoint._CHUNK_BYTES", 64)
    embedding = torch.randn(50, 4)
    head = embedding.clone()
    head[-1, -1] += 1
    nothing = torch.zeros(8, 4)
    tensors = {
        "model.embed_tokens.weight": embedding, "lm_head.weight": head,
        "model.layers.0.mlp.up_proj.weight": nothing, "model.layers.1.mlp.up_proj.weight": nothing.clone(),
    }  # fmt: skip
    assert write(tmp_path / "model", tensors, {"vocab_size": 50, "model_type": "llama"}).ties == {}


def test_companions_leave_other_weights_behind(tmp_path: Path) -> None:
    wanted = ["1_Pooling", "config.json", "modules.json", "tokenizer.json", "vocab.txt"]
    unwanted = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "flax_model.msgpack", "onnx"]
    for name in [*wanted, *unwanted, ".gitattributes", "sparsebench.json"]:
        (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).write_text("{}")
    assert [path.name for path in companions(tmp_path)] == wanted


def test_a_folder_without_config_or_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        _ = Checkpoint(tmp_path).files


def test_a_tensor_that_two_shards_hold_is_named_with_both(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for file, value in (("a.safetensors", 0.0), ("b.safetensors", 1.0)):
        save_file({"w": torch.full((4,), value)}, tmp_path / file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}))
    with pytest.raises(ModelError, match="w is in a.safetensors and in b.safetensors"):
        _ = Checkpoint(tmp_path).tensors


def test_a_dtype_that_torch_could_misread_is_refused(tmp_path: Path) -> None:
    checkpoint = write(tmp_path / "model", {"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, {})
    with pytest.raises(ModelError, match="F8_E4M3 is not handled"):
        checkpoint.load("w")


def test_a_tensor_may_be_read_and_written_in_pieces_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.models.files.checkpoint.PIECE_ENTRIES", 4)
    tensors = {"a": torch.arange(11.0).to(torch.bfloat16), "b": torch.empty(0, 3), "c": torch.arange(4)}
    layout = lay_out([("a", "BF16", (11,)), ("b", "F32", (0, 3)), ("c", "I64", (4,))])
    writer = CheckpointWriter(tmp_path / "out", layout)
    for name, tensor in tensors.items():
        writer.write(name, tensor)
    (writer.partial / "config.json").write_text("{}")
    checkpoint = Checkpoint(writer.close())
    assert [piece.tolist() for piece in checkpoint.pieces("a")] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    copy = CheckpointWriter(tmp_path / "copy", layout)
    copy.write_piece("a", 8, tensors["a"][8:])
    with pytest.raises(ModelError, match="a: 9 entries"):
        copy.write_piece("a", 0, tensors["a"][:9])
    with pytest.raises(ModelError, match="c: 4 entries"):
        copy.write_piece("c", 1, tensors["c"])
    copy.abort()
    writer = CheckpointWriter(tmp_path / "slices", lay_out([("a", "F32", (2, 4))]))
    writer.write("a", torch.ones(4), 0)
    with pytest.raises(ModelError, match="a: 4 entries from entry 0 on were written before"):
        writer.write("a", torch.ones(4), 0)
    assert [*writer.missing] == ["a"]
    writer.write("a", torch.full((4,), 2.0), 1)
    found = load_file(writer.close() / "model.safetensors")
    assert found["a"].tolist() == [[1.0] * 4, [2.0] * 4]


def test_what_cannot_be_begun_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        CheckpointWriter(tmp_path / "out", lay_out([("a", "F32", (2,))]), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
