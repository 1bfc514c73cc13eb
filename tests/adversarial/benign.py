"""Inputs without harm, small: a hostile input is one of these with one thing changed, so that nothing else is refused."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zstandard

from sparsebench.benchmarks.statistics import ratio

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 8,
    "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
BERT = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64, "type_vocab_size": 2,
    "torch_dtype": "float32", "pad_token_id": 0,
}  # fmt: skip
_LLAMA_MATRICES = {
    "self_attn.q_proj": (8, 8), "self_attn.k_proj": (8, 8), "self_attn.v_proj": (8, 8), "self_attn.o_proj": (8, 8),
    "mlp.gate_proj": (16, 8), "mlp.up_proj": (16, 8), "mlp.down_proj": (8, 16), "input_layernorm": (8,),
    "post_attention_layernorm": (8,),
}  # fmt: skip
_BERT_LAYERS = {
    "attention.self.query": (8, 8), "attention.self.key": (8, 8), "attention.self.value": (8, 8),
    "attention.output.dense": (8, 8), "attention.output.LayerNorm": (8,), "intermediate.dense": (16, 8),
    "output.dense": (8, 16), "output.LayerNorm": (8,),
}  # fmt: skip
WORDS = "<pad> <s> </s> <unk> the a of to and in is it was that cat dog sat ran on mat".split()


def llama_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of ``LLAMA``."""
    block = {f"model.layers.0.{name}.weight": shape for name, shape in _LLAMA_MATRICES.items()}
    return {"model.embed_tokens.weight": (32, 8), "model.norm.weight": (8,), **block}


def bert_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of ``BERT``."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (32, 8), "embeddings.position_embeddings.weight": (64, 8),
        "embeddings.token_type_embeddings.weight": (2, 8), "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,), "pooler.dense.weight": (8, 8), "pooler.dense.bias": (8,),
    }  # fmt: skip
    for name, shape in _BERT_LAYERS.items():
        found[f"encoder.layer.0.{name}.weight"] = shape
        found[f"encoder.layer.0.{name}.bias"] = (shape[0],)
    return found


def safetensors(shapes: Mapping[str, tuple[int, ...]], **changes: Any) -> bytes:
    """A whole safetensors file of float32 weights; ``changes`` replace or add entries of its header."""
    header: dict[str, Any] = {}
    data = bytearray()
    for name, shape in shapes.items():
        count = 1
        for size in shape:
            count *= size
        begin = len(data)
        data += b"".join(struct.pack("<f", 0.01 * ((7 * place) % 11 - 5)) for place in range(count))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(data)]}
    return container(json.dumps({**header, **changes}).encode(), bytes(data))


def container(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says; ``length`` is what its first eight bytes say."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def model(folder: Path, config: Mapping[str, Any] = LLAMA, weights: bool = True) -> Path:
    """A model folder with a tokenizer; a Llama or a BERT by its configuration."""
    folder.mkdir(parents=True)
    shapes = bert_shapes() if config["model_type"] == "bert" else llama_shapes()
    (folder / "config.json").write_text(json.dumps(config))
    if weights:
        (folder / "model.safetensors").write_bytes(safetensors(shapes))
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **special}))
    return folder


def sharded(folder: Path, weight_map: Mapping[str, str]) -> Path:
    """A model whose weights are named by an index, with these file names in place of what it would say."""
    made = model(folder, weights=False)
    whole = dict.fromkeys(llama_shapes(), "model-00001-of-00001.safetensors")
    (made / "model-00001-of-00001.safetensors").write_bytes(safetensors(llama_shapes()))
    index = {"metadata": {"total_size": 0}, "weight_map": {**whole, **weight_map}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def records(repository: Path) -> list[dict[str, Any]]:
    """A plan and one record of each stage and task that it holds, from a published ledger, without checksums.

    Scores are of their first forty documents, so that they are short.
    """
    with (repository / "ledger" / "published" / "g2p.jsonl.zst").open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    found: dict[Any, dict[str, Any]] = {}
    for one in map(json.loads, lines):
        found.setdefault((one.get("kind"), one.get("stage"), one.get("settings", {}).get("task")), one)
    plan, *rest = sorted(found.values(), key=lambda one: one.get("kind") != "plan")
    cells = {one["cell_id"] for one in rest}
    plan["cells"] = [cell for cell in plan["cells"] if cell["cell_id"] in cells]
    for one in (plan, *rest):
        del one["checksum"], one["origin"]
    for result in (one["result"] for one in rest if one["stage"] == "benchmarks"):
        kept = result["outcomes"][:40]
        score, stderr = ratio([one["value"] for one in kept], [one["label"] or 1.0 for one in kept])
        result |= {"outcomes": kept, "n": len(kept), "score": score, "stderr": stderr}
    return [plan, *rest]
