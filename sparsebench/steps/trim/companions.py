"""The files beside the weights that name tokens by id: config.json, generation_config.json and the tokenizer's files.

Files that repeat the vocabulary in older forms are removed: tokenizer.json holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.files.families import NESTED, transformers_config
from sparsebench.models.files.text import OFFSET_TYPES, ORIGINAL_IDS, original_ids
from sparsebench.steps.trim.vocabulary import TOKENIZER_FILE
from sparsebench.steps.trim.weights import resized

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
REPEATS = (
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "source.spm", "target.spm",
)  # fmt: skip
"""Files from which a tokenizer can be built too, but with the old ids; they are removed."""
_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids", "sequence_bias")
_PAIRS = {"sequence_bias": 0, "forced_decoder_ids": 1}
"""Settings that are lists of pairs, and where in a pair the ids are: beside them is a bias, or a position."""
_DEFAULTS = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "sep", "decoder_start", "cls", "mask", "unk"))
"""Token ids that a configuration may leave out: transformers then uses defaults of its own."""


def named_ids(folder: Path) -> set[int]:
    """Return the token ids that the configuration of the model in ``folder`` names, transformers' defaults included.

    Where positions are counted from the padding token's id, that id must not change: all ids up to it are included.
    """
    ids: set[int] = set()

    def collect(token_id: int, label: str) -> int:
        ids.add(token_id)
        return token_id

    for path in (folder / CONFIG, folder / GENERATION):
        if path.is_file():
            _renumbered(bounded.read_object(path), collect, str(path))
    config = bounded.read_object(folder / CONFIG)
    padding = transformers_config(config).pad_token_id if config.get("model_type") in OFFSET_TYPES else None
    return ids | set(_defaults(config).values()) | set(range((padding or 0) + 1) if padding is not None else ())


def rewrite_companions(folder: Path, new_ids: Mapping[int, int], rows: int, tokenizer: Mapping[str, Any]) -> None:
    """Rewrite the files in ``folder`` for a vocabulary in which the token with the id ``old`` has the id ``new_ids[old]``.

    The model has ``rows`` tokens; ``tokenizer`` is the new tokenizer.json. Raises ModelError for a configuration that
    names an id without a token.
    """

    def new_id(token_id: int, label: str) -> int:
        if token_id not in new_ids:
            problem = f"{label} names token id {token_id}, which the tokenizer does not have"
            raise ModelError(problem, "correct it, or remove it")
        return new_ids[token_id]

    config_path = folder / CONFIG
    settings = bounded.read_object(config_path)
    for key, token_id in _defaults(settings).items():
        if new_ids.get(token_id, token_id) != token_id:
            settings[key] = token_id
    _write(config_path, resized(_renumbered(settings, new_id, str(config_path)), rows))
    generation_path = folder / GENERATION
    if generation_path.is_file():
        _write(generation_path, _renumbered(bounded.read_object(generation_path), new_id, str(generation_path)))
    (folder / TOKENIZER_FILE).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    tokenizer_path = folder / TOKENIZER
    if tokenizer_path.is_file():
        tokenizer_config = bounded.read_object(tokenizer_path)
        tokenizer_config.pop("fast_tokenizer_files", None)
        if isinstance(decoder := tokenizer_config.get("added_tokens_decoder"), dict):
            tokenizer_config["added_tokens_decoder"] = {
                str(new_ids[int(token_id)]): entry for token_id, entry in decoder.items() if int(token_id) in new_ids
            }
        _write(tokenizer_path, tokenizer_config)
    original = original_ids(folder)
    old = sorted(new_ids, key=new_ids.__getitem__)
    (folder / ORIGINAL_IDS).write_text(
        json.dumps(old if original is None else [original[token_id] for token_id in old])
    )
    for name in REPEATS:
        (folder / name).unlink(missing_ok=True)


def _defaults(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the token ids that transformers fills in where the configuration leaves them out."""
    full_config = transformers_config(config)
    inner = getattr(full_config, NESTED, None)
    stated_keys = {*config, *(config.get(NESTED) or ())}
    holder = full_config if inner is None else inner
    ids = {key: getattr(holder, key, None) for key in _DEFAULTS if key not in stated_keys}
    return {key: token_id for key, token_id in ids.items() if isinstance(token_id, int)}


def _is_id(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids")) or key in _IDS


def _renumbered(value: Any, renumber: Callable[[int, str], int], label: str, key: str = "") -> Any:
    """Return a configuration with ``renumber`` applied to every token id; ``key`` is the setting of ids around a value."""
    if isinstance(value, dict):
        return {
            name: _renumbered(inner, renumber, f"{label}: {name}", str(name) if _is_id(str(name)) else key)
            for name, inner in value.items()
        }
    if isinstance(value, list) and key in _PAIRS and all(isinstance(pair, list) for pair in value):
        ids = _PAIRS[key]
        return [
            [*pair[:ids], *_renumbered(pair[ids : ids + 1], renumber, label, "ids"), *pair[ids + 1 :]] for pair in value
        ]
    if isinstance(value, list):
        return [_renumbered(inner, renumber, label, key) for inner in value]
    if not key or not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    return renumber(value, label)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
