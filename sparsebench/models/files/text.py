"""A model's input: its tokenizer, its greatest length, and the special tokens around a text."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError, library_errors
from sparsebench.models.files.families import PER_LAYER, transformers_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OFFSET_TYPES = frozenset(
    "camembert data2vec-text ibert layoutlmv3 lilt longformer luke markuplm mpnet roberta roberta-prelayernorm "
    "xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types whose positions begin after the padding token's: a table of 514 positions allows inputs of 512."""
_UNLIMITED = frozenset("bloom longt5 mt5 t5 umt5".split())
"""Types with relative positions without a table; old T5 configurations state an ``n_positions`` that nothing reads."""
_SHORTEST_DEFAULT, _MOST_OFFSET = 256, 8
"""No type's limit is less by default in transformers, and by no more is an input shorter than the table of positions."""
LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_target_positions",
    "max_decoder_position_embeddings",
)
_ADDED_TOKEN_KEYS = ("id", "lstrip", "rstrip", "single_word", "normalized")
"""What of an added token decides ids, beside its text."""
JOINER = "\n\n"
"""The separator between the texts that a decoder reads: a blank line, which is part of the text."""
ORIGINAL_IDS = "original_ids.json"
"""A file in a folder with a trimmed vocabulary: a list of the tokens' former ids, in the order of the new ones."""


def original_ids(folder: Path) -> Sequence[int] | None:
    """Return the ids that a trimmed model's tokens had in the dense one, by their new ids; None if nothing was trimmed.

    Raises ModelError for a file that is not a list of integers.
    """
    path = Path(folder) / ORIGINAL_IDS
    if not path.is_file():
        return None
    ids = bounded.read_json(path)
    if not isinstance(ids, list) or not all(type(number) is int for number in ids):
        raise ModelError(f"{path}: not a list of numbers", "make the variant again")
    return ids


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
                if config["model_type"] not in OFFSET_TYPES:
                    return limit
                padding_id = getattr(part, "pad_token_id", None)
                return limit - (1 if padding_id is None else padding_id) - 1
    return None


def limit_below(config: Mapping[str, Any], tokens: int) -> int | None:
    """Return ``longest_input`` where that is less than ``tokens``; None where so many fit.

    transformers, which takes a second to import, is asked only where config.json does not plainly say that they fit.
    """
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    stated = [limit for part in parts for key in LENGTH_KEYS if isinstance(limit := part.get(key), int)]
    if tokens <= min(stated, default=_SHORTEST_DEFAULT) - _MOST_OFFSET:
        return None
    limit = longest_input(config)
    return limit if limit is not None and limit < tokens else None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer adds before and after a text. Raises ModelError where this is unclear."""
    bare = token_ids(tokenizer, "a")
    framed = list(tokenizer("a")["input_ids"])
    for start in range(len(framed) - len(bare) + 1):
        if bare and framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    problem = f"{type(tokenizer).__name__}: the letter a is {bare} without special tokens and {framed} with them"
    raise ModelError(problem, "the tokenizer's files are incomplete, or not this model's")


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return a text's tokens without special ones, and without a warning for a long text: it will be cut."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the folder's tokenizer by a class of transformers.

    A folder with a tokenizer.json does not need the class that it names; if transformers lacks that, stderr gets a
    note. Raises ModelError for a folder without a tokenizer, or one that needs a class that transformers lacks.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    folder = Path(folder)
    names = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
    if not any((folder / name).is_file() for name in names):
        raise ModelError(f"{folder}: it has no tokenizer", "copy the model's tokenizer files beside its weights")
    unknown = _unknown_tokenizer(folder)
    if unknown and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"{unknown}, and code of a model's own is never run",
            "copy a tokenizer.json beside it, or install a version of transformers that has the class",
        )
    if unknown:
        print(f"{unknown}: tokenizer.json is read without it", file=sys.stderr)
    kind: Any = PreTrainedTokenizerFast if unknown else AutoTokenizer
    model_config = bounded.read_object(folder / "config.json") if (folder / "config.json").is_file() else {}
    # transformers reads the model's type from config.json, and refuses one with widths that differ from block to block.
    gives_config = model_config.get(PER_LAYER) and not unknown
    options = {"config": transformers_config(model_config, str(folder / "config.json"))} if gives_config else {}
    with library_errors(f"{folder}: its tokenizer cannot be loaded", "fetch its files again, or install what it names"):
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, **options
        )
    return tokenizer


def _unknown_tokenizer(folder: Path) -> str:
    """Return which key of which file names a tokenizer class that transformers lacks; empty where none does.

    ``AutoTokenizer`` would accept any name in transformers, even an auto class, whose loader asks for consent.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name
    from transformers.utils import DummyObject

    for path in (folder / "tokenizer_config.json", folder / "config.json"):
        class_name = bounded.read_object(path).get("tokenizer_class") if path.is_file() else None
        if not class_name:
            continue
        for kind in (tokenizer_class_from_name(str(class_name) + end) for end in ("", "Fast")):
            # A dummy stands for a class whose package is not installed; its error names the package.
            if isinstance(kind, DummyObject) or (isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)):
                return ""
        return f"{path}: `tokenizer_class`: transformers has no tokenizer {class_name!r}"
    return ""


def same_tokens(first: Path, second: Path) -> bool | None:
    """Return whether the tokenizer.json files of two folders give every text the same ids; None where one is missing.

    The post-processors may differ: they add tokens before and after a text and change none of its ids.
    """
    if not all((folder / "tokenizer.json").is_file() for folder in (first, second)):
        return None
    return _parts_that_decide_ids(first / "tokenizer.json") == _parts_that_decide_ids(second / "tokenizer.json")


def _parts_that_decide_ids(path: Path) -> tuple[Any, ...]:
    """Return the parts of a tokenizer.json that decide the ids, with both ways of writing merges made one."""
    content = bounded.read_object(path, limit=bounded.TOKENIZER_BYTES)
    model = content.get("model") if isinstance(content.get("model"), dict) else {}
    assert isinstance(model, dict)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in model.get("merges") or ()]
    added_tokens = [token for token in content.get("added_tokens") or () if isinstance(token, dict)]
    added = {token.get("content"): [token.get(key) or False for key in _ADDED_TOKEN_KEYS] for token in added_tokens}
    # Older files lack options that newer ones state as null, false or an empty text.
    options = {key: option for key, option in model.items() if option not in (None, "") and option is not False}
    options = {key: option for key, option in options.items() if key not in ("type", "vocab", "merges")}
    return model.get("vocab"), merges, options, added, content.get("normalizer"), content.get("pre_tokenizer")


def same_tokenizer(first: Path, second: Path) -> bool:
    """Return ``same_tokens``, or where that is None whether transformers' tokenizers have the same vocabulary and ids.

    Raises ModelError for a folder without a tokenizer.
    """
    same = same_tokens(first, second)
    if same is None:
        same = bool(load_tokenizer(first).get_vocab() == load_tokenizer(second).get_vocab())
    return same
