"""Checking whether two models read text as the same tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparsebench import bounded

FILE = "tokenizer.json"


def same_tokens(one: Path, other: Path) -> bool | None:
    """Return whether the tokenizer.json files of two folders give every text the same ids; None where one is missing.

    The post-processors may differ: they add tokens before and after a text and change none of its ids.
    """
    if not all((folder / FILE).is_file() for folder in (one, other)):
        return None
    return _read(one / FILE) == _read(other / FILE)


def _read(path: Path) -> tuple[Any, ...]:
    """Return the parts of a tokenizer.json that decide the ids, with both ways of writing merges made one."""
    told = bounded.read_object(path, limit=bounded.TOKENIZER)
    model = told.get("model") if isinstance(told.get("model"), dict) else {}
    assert isinstance(model, dict)
    merges = [" ".join(one) if isinstance(one, list) else one for one in model.get("merges") or ()]
    added = {one.get("content"): one.get("id") for one in told.get("added_tokens") or () if isinstance(one, dict)}
    return model.get("vocab"), merges, added, told.get("normalizer"), told.get("pre_tokenizer")


def same_tokenizer(one: Path, other: Path) -> bool:
    """Return ``same_tokens``, or where that is None whether transformers' tokenizers have the same vocabulary and ids.

    Raises ModelError for a folder without a tokenizer.
    """
    from sparsebench.models.load import load_tokenizer

    found = same_tokens(one, other)
    if found is None:
        first, second = (load_tokenizer(folder) for folder in (one, other))
        found = bool(first.get_vocab() == second.get_vocab())
    return found
