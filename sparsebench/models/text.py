"""A model's input: its greatest length, the tokens of a text, and the special tokens around it."""

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
"""Model types whose positions begin after the padding token's: a table of 514 positions allows inputs of 512."""
_UNLIMITED = frozenset("bloom longt5 mt5 t5 umt5".split())
"""Types with relative positions without a table; old T5 configurations state an ``n_positions`` that nothing reads."""
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")


JOINER = "\n\n"
"""The separator between the texts that a decoder reads: a blank line, which is part of the text."""
ORIGINAL = "original_ids.json"
"""A file in a folder with a trimmed vocabulary: a list of the tokens' former ids, in the order of the new ones."""


def original_ids(folder: Path) -> Sequence[int] | None:
    """Return the ids that a trimmed model's tokens had in the dense one, by their new ids; None if nothing was trimmed.

    Raises ModelError for a file that is not a list of integers.
    """
    path = Path(folder) / ORIGINAL
    if not path.is_file():
        return None
    found = bounded.read_json(path)
    if not isinstance(found, list) or not all(type(one) is int for one in found):
        raise ModelError(f"{path}: not a list of numbers", "make the variant again")
    return found


def longest_input(config: Mapping[str, Any]) -> int | None:
    """Return the most tokens that a sequence may have, by the model's config.json; None where nothing limits it.

    A key that the file lacks has transformers' default for the type. Raises ModelError for an unknown ``model_type``.
    """
    if str(config.get("model_type")) in _UNLIMITED:
        return None
    settings = transformers_config(config)
    for part in (settings, getattr(settings, "text_config", None)):
        for key in LENGTH_KEYS:
            limit = getattr(part, key, None)
            if isinstance(limit, int) and limit > 0:
                pad = getattr(part, "pad_token_id", None)
                return limit - (1 if pad is None else pad) - 1 if config["model_type"] in OFFSET_TYPES else limit
    return None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer adds before and after a text. Raises ModelError where this is unclear."""
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
    """Return a text's tokens without special ones, and without a warning for a long text: it will be cut."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
