"""The tokenizer of a model's folder, as the header of a GGUF file holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded

if TYPE_CHECKING:
    from gguf import GGUFWriter

_SPLITS = {r"\p{N}{1,3}": "llama-bpe", r"\p{N}|": "qwen2"}
"""llama.cpp's names for how text is split before it becomes tokens, by a part of the pattern in tokenizer.json."""


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Add the tokenizer in ``folder`` to the header, padded to ``size`` tokens.

    A folder without tokenizer.json, or with one of another kind than BPE, gets a file that takes token ids only.
    """
    import gguf

    path = folder / "tokenizer.json"
    described: Mapping[str, Any] = bounded.read_object(path) if path.is_file() else {}
    model = described.get("model") or {}
    if model.get("type") != "BPE":
        writer.add_tokenizer_model("no_vocab")
        return
    by_id = {number: token for token, number in model["vocab"].items()}
    added = {token["id"]: token for token in described.get("added_tokens") or ()}
    by_id |= {number: token["content"] for number, token in added.items()}
    kinds = {number: _kind(token) for number, token in added.items()}
    usual = gguf.TokenType.NORMAL
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    types = [kinds.get(number, usual) if number in by_id else gguf.TokenType.UNUSED for number in range(size)]
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        # The merges' order is that of the ids: an earlier token is merged first.
        writer.add_token_scores([-float(number) for number in range(size)])
        bytes_ = re.compile(r"<0x[0-9A-F]{2}>")
        types = [
            gguf.TokenType.BYTE if bytes_.fullmatch(token) else kind for token, kind in zip(tokens, types, strict=True)
        ]
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_split(described.get("pre_tokenizer") or {}))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=not model.get("byte_fallback"), n_vocab=size)
    special.add_to_gguf(writer, quiet=True)


def _kind(token: Mapping[str, Any]) -> int:
    import gguf

    return int(gguf.TokenType.CONTROL if token.get("special") else gguf.TokenType.USER_DEFINED)


def _split(described: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for a tokenizer's way to split text; GPT-2's where no other is recognised."""
    steps = described.get("pretokenizers") or [described]
    patterns = [str((step.get("pattern") or {}).get("Regex", "")) for step in steps]
    for part, name in _SPLITS.items():
        if any(part in pattern for pattern in patterns):
            return name
    return "smollm" if any(step.get("type") == "Digits" for step in steps) else "gpt-2"
