"""The tokenizer of a model's folder, as the header of a GGUF file holds it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_SPLIT_NAMES = {r"\p{N}{1,3}": "llama-bpe", r"\p{N}|": "qwen2"}
"""llama.cpp's names for how text is split before it becomes tokens, by a part of the pattern in tokenizer.json."""


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "mask")


def add_vocabulary(writer: GGUFWriter, folder: Path, size: int) -> None:
    """Add the tokenizer in ``folder`` to the header, padded to ``size`` tokens.

    A folder without tokenizer.json, or with one of another kind than BPE and WordPiece, gets a file that takes token
    ids only. Raises ModelError, by name, for a token beyond the model's rows.
    """
    import gguf

    path = folder / "tokenizer.json"
    tokenizer: Mapping[str, Any] = bounded.read_object(path, limit=bounded.TOKENIZER_BYTES) if path.is_file() else {}
    model = tokenizer.get("model") or {}
    kind = {"WordPiece": "bert", "BPE": "llama" if model.get("byte_fallback") else "gpt2"}.get(str(model.get("type")))
    writer.add_tokenizer_model(kind or "no_vocab")
    if kind is None:
        return
    tokens = [f"[PAD{number}]" for number in range(size)]
    token_types = [int(gguf.TokenType.UNUSED)] * size

    def place(token_id: int, token: str, stored: str, token_type: int) -> None:
        if token_id >= size:
            problem = f"{path}: the token {token!r} has the id {token_id}, and the model {size} rows"
            raise ModelError(problem, "check the tokenizer")
        tokens[token_id], token_types[token_id] = stored, token_type

    for token, token_id in model["vocab"].items():
        place(token_id, token, *_stored_token(token, kind))
    for added in tokenizer.get("added_tokens") or ():
        added_type = gguf.TokenType.CONTROL if added.get("special") else gguf.TokenType.USER_DEFINED
        place(added["id"], added["content"], added["content"], int(added_type))
    if kind == "gpt2":
        writer.add_tokenizer_pre(_split_name(tokenizer.get("pre_tokenizer") or {}))
    if kind == "llama":  # merges are in the order of the ids: an earlier token is merged first
        writer.add_token_scores([-float(number) for number in range(size)])
    writer.add_token_list(tokens)
    writer.add_token_types(token_types)
    gguf.SpecialVocab(folder, kind == "gpt2", _SPECIAL_TOKENS, size).add_to_gguf(writer, quiet=True)


def _stored_token(token: str, kind: str) -> tuple[str, int]:
    """Return a token as a file of this ``kind`` of tokenizer holds it, and its type."""
    import gguf

    if kind == "bert":  # a token that begins a word has a mark there, instead of one on those that go on
        token = token[2:] if token.startswith("##") else f"\u2581{token}"
    byte = kind == "llama" and _BYTE.fullmatch(token)
    return token, int(gguf.TokenType.BYTE if byte else gguf.TokenType.NORMAL)


def _split_name(pre_tokenizer: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for a tokenizer's way to split text; GPT-2's where no other is recognised."""
    steps = pre_tokenizer.get("pretokenizers") or [pre_tokenizer]
    patterns = [str((step.get("pattern") or {}).get("Regex", "")) for step in steps]
    for excerpt, name in _SPLIT_NAMES.items():
        if any(excerpt in pattern for pattern in patterns):
            return name
    return "smollm" if any(step.get("type") == "Digits" for step in steps) else "gpt-2"
