"""The files beside the weights that name tokens by id: config.json, generation_config.json and the tokenizer's files.

Files that repeat the vocabulary in older forms are removed: tokenizer.json holds all of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.families import transformers_config
from sparsebench.models.text import OFFSET_TYPES, ORIGINAL, original_ids
from sparsebench.steps.trim.vocabulary import FILE
from sparsebench.steps.trim.weights import NESTED, resized

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
REPEATS = (
    "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
    "source.spm", "target.spm",
)  # fmt: skip
"""Files from which a tokenizer can be built too, but with the old ids; they are removed."""
_IDS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_decoder_ids", "sequence_bias")
_DEFAULTS = tuple(f"{name}_token_id" for name in ("pad", "bos", "eos", "sep", "decoder_start", "cls", "mask", "unk"))
"""Token ids that a configuration may leave out: transformers then uses defaults of its own."""


def named_ids(folder: Path) -> set[int]:
    """Return the token ids that the configuration of the model in ``folder`` names, transformers' defaults included.

    Where positions are counted from the padding token's id, that id must not change: all ids up to it are included.
    """
    found = {place for path in _present(folder) for place in _numbers(bounded.read_object(path))}
    config = bounded.read_object(folder / CONFIG)
    padding = transformers_config(config).pad_token_id if config.get("model_type") in OFFSET_TYPES else None
    return found | set(_defaults(config).values()) | set(range((padding or 0) + 1) if padding is not None else ())


def rewrite(folder: Path, new: Mapping[int, int], tokenizer: Mapping[str, Any]) -> None:
    """Rewrite the files in ``folder`` for a vocabulary in which the token with the id ``old`` has the id ``new[old]``.

    ``tokenizer`` is the new tokenizer.json. Raises ModelError for a configuration that names an id without a token.
    """
    config = folder / CONFIG
    said = bounded.read_object(config)
    left = {key: place for key, place in _defaults(said).items() if new.get(place, place) != place}
    _write(config, resized(_renumbered({**said, **left}, new, str(config)), len(new)))
    generation = folder / GENERATION
    if generation.is_file():
        _write(generation, _renumbered(bounded.read_object(generation), new, str(generation)))
    (folder / FILE).write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = folder / TOKENIZER
    if settings.is_file():
        found = bounded.read_object(settings)
        found.pop("fast_tokenizer_files", None)
        if isinstance(decoder := found.get("added_tokens_decoder"), dict):
            found["added_tokens_decoder"] = {
                str(new[int(place)]): entry for place, entry in decoder.items() if int(place) in new
            }
        _write(settings, found)
    before = original_ids(folder)
    old = sorted(new, key=new.__getitem__)
    (folder / ORIGINAL).write_text(json.dumps(old if before is None else [before[place] for place in old]))
    for name in REPEATS:
        (folder / name).unlink(missing_ok=True)


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in (CONFIG, GENERATION) if (folder / name).is_file()]


def _defaults(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the token ids that transformers fills in where the configuration leaves them out."""
    whole = transformers_config(config)
    inner = getattr(whole, NESTED, None)
    found = {}
    for key in _DEFAULTS:
        nested = config.get(NESTED) or {}
        value = getattr(whole, key, None) if inner is None or inner is whole else getattr(inner, key, None)
        if key not in config and key not in nested and isinstance(value, int):
            found[key] = value
    return found


def _is_id(key: str) -> bool:
    return key.endswith(("_token_id", "_token_ids")) or key in _IDS


def _numbers(value: Any, inside: bool = False) -> Iterator[int]:
    """Yield every token id in a configuration."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, inside or _is_id(str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, inside)
    elif inside and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value


def _renumbered(value: Any, new: Mapping[int, int], where: str, inside: bool = False) -> Any:
    if isinstance(value, dict):
        return {
            key: _renumbered(inner, new, f"{where}: {key}", inside or _is_id(str(key))) for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_renumbered(inner, new, where, inside) for inner in value]
    if not inside or not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return value
    if value not in new:
        raise ModelError(f"{where} is {value}, and no token has that number", "correct it, or remove it")
    return new[value]


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
