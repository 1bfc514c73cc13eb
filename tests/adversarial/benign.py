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
WORDS = "<pad> <s> </s> <unk> the a of to and in is it was that cat dog sat ran on mat".split()


def container(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file with this header, whatever it says; ``length`` is what its first eight bytes say."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def model(folder: Path, config: Mapping[str, Any] = LLAMA, weights: bool = True) -> Path:
    """A model folder with a tokenizer; a Llama or a BERT by its configuration, whose sizes its weights do not follow."""
    from sparsebench.models.random_weights import write_random

    base, family = (BERT, "encoder") if config["model_type"] == "bert" else (LLAMA, "decoder")
    write_random(base, folder, family, "float32")
    (folder / "config.json").write_text(json.dumps(config))
    if not weights:
        (folder / "model.safetensors").unlink()
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
