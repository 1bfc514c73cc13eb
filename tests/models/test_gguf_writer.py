"""GGUF files are what llama.cpp and transformers read: the same weights, logits and tokens."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files import llamacpp
from sparsebench.models.files.gguf import check, load_gguf, write_first_blocks
from sparsebench.models.files.text import load_tokenizer
from sparsebench.models.gguf_writer import ARCHITECTURES, QUANTIZED, gguf_refusal, write_gguf
from sparsebench.models.modules.load import load_model
from sparsebench.runtime.engines.llamacpp import LlamaContext
from tests.models.model_zoo import CONFIGS

ABSENT = "llama.cpp is not installed: pip install '.[llamacpp]'"


def tiny(kind: str, folder: Path, **settings: Any) -> Path:
    """A model of random weights whose rows are whole blocks of 256, in float32."""
    wide = {"vocab_size": 96, "hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "n_embd": 256}
    kept = {key: value for key, value in wide.items() if key in CONFIGS[kind]}
    config = transformers.CONFIG_MAPPING[kind](**{**CONFIGS[kind], **kept, **settings})
    torch.manual_seed(0)
    auto = transformers.AutoModel if kind == "bert" else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    for parameter in model.parameters():
        # With gains near 1 attention is not flat, so that positions matter.
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.05)
    model.save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.BPE())
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=96, special_tokens=["<s>", "</s>"], show_progress=False)
    words.train_from_iterator(["the model reads the words of the text"], trainer)
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


def logits(folder: Path, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        if "bert" in (folder / "config.json").read_text():
            states: torch.Tensor = load_model(folder, "encoder")(torch.tensor([ids])).last_hidden_state[0]
            return states
        return load_model(folder, "decoder")(torch.tensor([ids])).logits[0]


def assert_computes_the_same(folder: Path, file: Path) -> None:
    """llama.cpp's logits, or an encoder's states, are transformers'."""
    ids = [*range(5, 21)]
    write_gguf(folder, file, "F32")
    context = LlamaContext(file, 32, "bert" in (folder / "config.json").read_text())
    context.decode(ids, all_logits=True)
    found = torch.stack([torch.from_numpy(context.logits(index).copy()) for index in range(len(ids))])
    expected = logits(folder, ids)
    assert float((found - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize(
    ("kind", "settings"),
    [*((kind, {}) for kind in ARCHITECTURES), ("olmo", {"clip_qkv": 0.5}), ("nemotron", {"norm_eps": 0.1})],
)
def test_llama_cpp_computes_what_transformers_does(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    assert_computes_the_same(tiny(kind, tmp_path / "dense", **settings), tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["llama", "nemotron", "starcoder2"])
def test_what_config_json_leaves_out_is_what_transformers_takes(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    path = tiny(kind, tmp_path / "dense") / "config.json"
    defaults = transformers.CONFIG_MAPPING[kind]().to_dict()
    stated = {key: value for key, value in json.loads(path.read_text()).items() if value != defaults.get(key)}
    path.write_text(json.dumps({**stated, "model_type": kind}))
    assert_computes_the_same(path.parent, tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_transformers_reads_the_same_weights_and_tokens_back(kind: str, tmp_path: Path) -> None:
    folder = tiny(kind, tmp_path / "dense")
    write_gguf(folder, tmp_path / "model.gguf", "F32")
    model, tokenizer = load_gguf(tmp_path / "model.gguf", "decoder", "float32")
    read = model.state_dict()
    dense = load_model(folder, "decoder", "float32").state_dict()
    assert dense and all(torch.equal(read[name], tensor) for name, tensor in dense.items())
    text = "the model reads the text"
    assert tokenizer(text)["input_ids"] == load_tokenizer(folder)(text)["input_ids"]


@pytest.mark.parametrize("type", QUANTIZED)
def test_each_type_stands_for_weights_near_its_parents(type: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    folder = tiny("llama", tmp_path / "llama", num_hidden_layers=8)
    dense, errors = load_model(folder, "decoder").state_dict(), {}

    def written(name: str, values: torch.Tensor, size: int) -> None:
        errors[name] = float((values - dense[name]).norm() / dense[name].norm())

    counts = write_gguf(folder, tmp_path / "model.gguf", type, written=written)
    assert set(errors) == set(dense) and max(errors.values()) < (0.01 if type == "Q8_0" else 0.12)
    # Blocks 0, 3, 6 and 7 of eight have the better value and down matrices of a mixture; the head is Q6_K.
    mixtures = {"Q4_K_M": {"Q4_K": 49, "Q6_K": 9}, "Q5_K_M": {"Q5_K": 49, "Q6_K": 9}}
    expected = mixtures.get(type, {"Q8_0": 58} if type == "Q8_0" else {"Q6_K": 58} if type == "Q6_K" else {})
    assert expected.items() <= counts.items() or type == "Q4_0"


def test_a_shortened_file_is_the_shortened_model(tmp_path: Path) -> None:
    folder = tiny("llama", tmp_path / "llama", num_hidden_layers=3)
    write_gguf(folder, tmp_path / "model.gguf", "F32")
    short = write_first_blocks(tmp_path / "model.gguf", tmp_path / "short.gguf", 1)
    names = {tensor.name for tensor in gguf.GGUFReader(short).tensors}
    assert "blk.0.attn_q.weight" in names and not any(name.startswith("blk.1.") for name in names)


@pytest.mark.parametrize(
    "config, named",
    [
        ({"model_type": "t5"}, "t5"),
        ({"model_type": "llama", "per_layer_config": {"0": {}}}, "uneven"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}}, "llama3"),
        ({"model_type": "gpt2", "activation_function": "relu"}, "relu"),
        ({"model_type": "gemma", "hidden_act": "silu"}, "silu"),
        *(({"model_type": kind, "attention_bias": True}, "attention_bias") for kind in ("qwen3", "olmo2", "olmo")),
        *(({"model_type": kind, "tie_word_embeddings": True}, "tie_word_embeddings") for kind in ("phi", "stablelm")),
        *(({"model_type": kind, "qk_layernorm": True}, "qk_layernorm") for kind in ("phi", "stablelm")),
        ({"model_type": "gemma", "tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"model_type": "smollm3", "mlp_bias": True}, "mlp_bias"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"model_type": "starcoder2", "use_bias": False}, "use_bias"),
        ({"model_type": "gpt2", "scale_attn_weights": False}, "scale_attn_weights"),
        ({"model_type": "bert", "is_decoder": True, "architectures": ["BertLMHeadModel"]}, "is_decoder"),
        *(({**CONFIGS[kind], "model_type": kind, "head_dim": 4}, "head_dim") for kind in ("qwen2", "phi3", "olmo")),
    ],
)
def test_what_a_file_cannot_hold_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    refusal = gguf_refusal(config)
    assert refusal is not None and named in f"{refusal.reason} {refusal.way_out}" and refusal.way_out


@pytest.mark.parametrize(("kind", "used", "length"), [("mistral", True, 8), ("qwen2", True, 8), ("qwen2", False, 64)])
def test_the_context_ends_with_the_window_that_llama_cpp_does_not_have(
    kind: str, used: bool, length: int, tmp_path: Path
) -> None:
    switch = {"use_sliding_window": used} if kind == "qwen2" else {}
    folder = tiny(kind, tmp_path / "dense", sliding_window=8, max_position_embeddings=64, **switch)
    write_gguf(folder, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    (found,) = (field.contents() for name, field in fields.items() if name.endswith(".context_length"))
    assert found == length


def test_an_unknown_type_is_answered_with_those_that_there_are(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Q3_K") as caught:
        write_gguf(tiny_llama, tmp_path / "model.gguf", "Q3_K")
    assert "Q4_K_M" in str(caught.value.hint) and not [*tmp_path.iterdir()]


def test_without_the_package_it_is_named(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llamacpp.library.cache_clear()
    monkeypatch.setattr(llamacpp, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="xllamacpp") as caught:
        write_gguf(tiny_llama, tmp_path / "model.gguf", "Q8_0")
    assert "pip install" in str(caught.value.hint) and not (tmp_path / "model.gguf").exists()
    llamacpp.library.cache_clear()


@pytest.mark.parametrize("added", [False, True])
def test_a_token_beyond_the_models_rows_is_named(added: bool, tmp_path: Path) -> None:
    file = tiny("llama", tmp_path / "dense") / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    if added:
        tokenizer["added_tokens"].append({"content": "<pad>", "id": 96, "special": True})
    else:
        tokenizer["model"]["vocab"]["<pad>"] = 96
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="'<pad>' has the id 96, and the model 96 rows"):
        write_gguf(tmp_path / "dense", tmp_path / "model.gguf", "F32")


def test_a_tokenizer_may_be_as_large_as_the_largest_are(tmp_path: Path) -> None:
    file = tiny("llama", tmp_path / "dense") / "tokenizer.json"
    file.write_text(file.read_text() + " " * 33_000_000)
    write_gguf(tmp_path / "dense", tmp_path / "model.gguf", "F32")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.model"].contents() == "gpt2"


def test_a_folder_with_another_tokenizer_gives_a_file_for_token_ids(tiny_llama: Path, tmp_path: Path) -> None:
    write_gguf(tiny_llama, tmp_path / "model.gguf", "BF16")
    assert gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.model"].contents() == "no_vocab"


def test_an_empty_file_is_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError, match="its GGUF header is damaged"):
        check(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("kind", "repeats"),
    [
        ("llama", ["lm_head.weight"]),
        ("llama", ["lm_head.weight", "model.lm_head.weight"]),
        ("phi", ["lm_head.weight"]),
        ("bert", ["a.cls.predictions.decoder.weight"]),
    ],
    ids=["head first", "three tables", "a type that is never tied", "an encoder's head first"],
)
def test_tables_that_are_stored_repeatedly_are_one_where_they_are_tied(
    kind: str, repeats: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    folder = tiny(kind, tmp_path / "dense")
    tensors = load_file(folder / "model.safetensors")
    embeddings = next(name for name in tensors if name.endswith(("embed_tokens.weight", "word_embeddings.weight")))
    tensors |= {name: tensors[embeddings].clone() for name in repeats}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert_computes_the_same(folder, tmp_path / "model.gguf")
    made: dict[str, torch.Tensor] = {}
    write_gguf(folder, tmp_path / "rounded.gguf", "Q8_0", written=lambda name, values, _: made.update({name: values}))
    assert not torch.equal(made[embeddings], tensors[embeddings])
    assert all(torch.equal(made[name], made[embeddings]) for name in repeats)
