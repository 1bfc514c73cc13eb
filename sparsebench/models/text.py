"""What a model lets one feed it: how long an input may be, and which special tokens stand around a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.families import transformers_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OFFSET_TYPES = frozenset("camembert ibert mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split())
"""Model types whose positions begin after the padding token's: a table of 514 serves inputs of 512."""
_UNLIMITED = frozenset("bloom longt5 mt5 t5 umt5".split())
"""Relative positions without a table; old T5 configurations state an ``n_positions`` that nothing reads."""
_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


JOINER = "\n\n"
"""Between the texts that a decoder reads: a blank line, which is a part of the text."""
ORIGINAL = "original_ids.json"
"""In a folder whose vocabulary was trimmed: the number that each token had before, a list in the order of the new ones."""


def original_ids(folder: Path) -> Sequence[int] | None:
    """The numbers that the tokens of a trimmed model had in the dense one, by their new numbers; None where nothing was trimmed.

    Raises ModelError for a file that is no such list.
    """
    path = Path(folder) / ORIGINAL
    if not path.is_file():
        return None
    found = bounded.read_json(path)
    if not isinstance(found, list) or not all(type(one) is int for one in found):
        raise ModelError(f"{path}: not a list of numbers", "make the variant again")
    return found


def longest_input(config: Mapping[str, Any]) -> int | None:
    """The most tokens that a sequence may have, by the model's config.json; None where nothing limits it.

    What the file leaves out is transformers' default for the type. Raises ModelError for an unknown ``model_type``.
    """
    if str(config.get("model_type")) in _UNLIMITED:
        return None
    settings = transformers_config(config)
    for part in (settings, getattr(settings, "text_config", None)):
        for key in _KEYS:
            limit = getattr(part, key, None)
            if isinstance(limit, int) and limit > 0:
                pad = getattr(part, "pad_token_id", None)
                return limit - (1 if pad is None else pad) - 1 if config["model_type"] in OFFSET_TYPES else limit
    return None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer by itself puts before and after a text. Raises ModelError where that is unclear."""
    bare = token_ids(tokenizer, "a")
    framed = list(tokenizer("a")["input_ids"])
    for start in range(len(framed) - len(bare) + 1):
        if bare and framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise ModelError(
        f"{type(tokenizer).__name__}: the letter a is {bare} without special tokens and {framed} with them",
        "the tokenizer's files are incomplete, or not this model's",
    )


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A text's tokens without special ones. A text longer than the model's input is no reason to warn: it will be cut."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
