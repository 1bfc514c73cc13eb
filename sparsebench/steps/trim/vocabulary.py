"""A tokenizer.json with fewer tokens, which still tokenizes a text of kept tokens as before.

BPE merges by rank. All merges of a text are on the paths that build its final tokens. With these paths kept, the merge
of lowest rank is the same at every step. WordPiece takes the longest match and Unigram the path of highest score: what
won is kept, and wins again among fewer. The algorithm's own tokens get new ids in the old order, and added tokens get
the ids after these.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError

TOKENIZER_FILE = "tokenizer.json"
KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")
_WAY_OUT = "leave the model out of this step with `models:`"
_BYTE = re.compile("<0x..>")
"""A token that stands for a byte, in vocabularies with `byte_fallback`."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of one tokenizer.

    ``content`` is its tokenizer.json. ``ids`` are its tokens with their ids, those that its transformers class adds
    included. ``added`` are the tokens outside of the algorithm: special tokens, and words that are never split.
    """

    path: Path
    content: dict[str, Any]
    ids: Mapping[str, int]
    added: frozenset[str]

    @classmethod
    def read(cls, folder: Path, tokenizer: Any) -> Vocabulary:
        """Read the vocabulary of a model folder; ``tokenizer`` is its loaded tokenizer.

        Raises UnsupportedError for a tokenizer without a tokenizer.json, of an unknown kind, or with other ids than the
        file's.
        """
        path, name = folder / TOKENIZER_FILE, type(tokenizer).__name__
        if not path.is_file() or not tokenizer.is_fast:
            problem = f"{folder}: {name} has no {TOKENIZER_FILE}, so that its vocabulary cannot be rewritten"
            raise UnsupportedError(problem, _WAY_OUT)
        content = bounded.read_object(path, limit=bounded.TOKENIZER_BYTES)
        ids = dict(tokenizer.get_vocab())
        added = {str(entry["content"]) for entry in content.get("added_tokens") or ()}
        added |= set(tokenizer.get_added_vocab())
        vocabulary = cls(path, content, ids, frozenset(added))
        if vocabulary.kind not in KINDS:
            known_kinds = ", ".join(KINDS)
            problem = f"{path}: a tokenizer of kind {vocabulary.kind} is not known: {known_kinds}"
            raise UnsupportedError(problem, _WAY_OUT)
        for token, token_id in vocabulary.stored.items():
            if ids.get(token) != token_id:
                raise UnsupportedError(f"{path}: {name} gives the token {token!r} another id than the file", _WAY_OUT)
        return vocabulary

    @property
    def kind(self) -> str:
        """The algorithm: BPE, WordPiece, Unigram or WordLevel."""
        return str(self.model.get("type") or _guessed_kind(self.model))

    @property
    def model(self) -> dict[str, Any]:
        """The file's ``model``: the algorithm's settings and its tokens."""
        model = self.content.get("model")
        if not isinstance(model, dict) or "vocab" not in model:
            raise ModelError(f"{self.path}: it has no `model` with a `vocab`", "fetch the file again")
        return model

    @cached_property
    def stored(self) -> dict[str, int]:
        """The algorithm's own tokens with their ids."""
        entries = self.model["vocab"]
        if isinstance(entries, list):
            return {str(entry[0]): token_id for token_id, entry in enumerate(entries)}
        return dict(entries)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of each id."""
        return {token_id: token for token, token_id in self.ids.items()}

    def closure(self, needed: Iterable[int], characters: bool) -> list[int]:
        """Return the ids to keep so that the ``needed`` ones work, in the new order: the algorithm's, then added ones.

        With ``characters`` all tokens of one character are included, so that the text of removed tokens can still be
        tokenized; tokens of one byte always are.

        Raises ModelError where the file adds a token to every text that is none.
        """
        kept_ids = {token_id for token_id in needed if token_id in self.tokens}
        kept_ids |= {self.ids[token] for token in self.added if token in self.ids}
        for token_id in _template_ids(self.content.get("post_processor")):
            if token_id not in self.tokens:
                problem = f"{self.path}: post_processor names token id {token_id}, which the tokenizer does not have"
                raise ModelError(problem, "correct it, or remove it")
            kept_ids.add(token_id)
        padding_id = (self.content.get("padding") or {}).get("pad_id")
        kept_ids |= self.tokens.keys() & {padding_id}
        kept_ids |= {self.ids[token] for token in self._always_kept(characters)}
        if self.kind == "BPE":
            merges = Merges(self.model)
            for token in [self.tokens[token_id] for token_id in kept_ids]:
                kept_ids |= {self.stored[part] for part in merges.merge_path(token) if part in self.stored}
        return sorted(kept_ids, key=lambda token_id: (self.tokens[token_id] not in self.stored, token_id))

    def _always_kept(self, characters: bool) -> Iterator[str]:
        model = self.model
        unknown = model.get("unk_token")
        if unknown in self.stored:
            yield unknown
        if self.kind == "Unigram":
            entries = model["vocab"]
            if isinstance(model.get("unk_id"), int):
                yield entries[model["unk_id"]][0]
            # An unknown character scores ten below the lowest score of all tokens. That token is kept, so that this
            # score stays.
            yield min(entries, key=lambda entry: entry[1])[0]
        bytewise = _is_bytewise(self.content)
        for token in self.stored:
            is_character = len(self._bare(token)) == 1
            is_byte = _BYTE.fullmatch(token) or (bytewise and len(token) == 1)
            if is_byte or (characters and is_character):
                yield token

    def _bare(self, token: str) -> str:
        """Return a token without the prefix of a word's continuation and the suffix of a word's end."""
        model = self.model
        return token.removeprefix(model.get("continuing_subword_prefix") or "").removesuffix(
            model.get("end_of_word_suffix") or ""
        )

    def reduced(self, kept_ids: list[int]) -> dict[str, Any]:
        """Return the tokenizer.json of the tokens with ``kept_ids``; their new ids are their positions in that list."""
        new_ids = {token_id: number for number, token_id in enumerate(kept_ids)}
        kept_tokens = {self.tokens[token_id] for token_id in kept_ids}
        model = dict(self.model)
        if self.kind == "Unigram":
            entries = [entry for entry in model["vocab"] if entry[0] in kept_tokens]
            unknown = model.get("unk_id")
            model |= {"vocab": entries, "unk_id": new_ids[unknown] if isinstance(unknown, int) else None}
        else:
            model["vocab"] = {
                token: new_ids[token_id] for token, token_id in self.stored.items() if token in kept_tokens
            }
        if self.kind == "BPE":
            model["merges"] = Merges(model).within(kept_tokens)
        added = [
            {**entry, "id": new_ids[self.ids[entry["content"]]]}
            for entry in self.content.get("added_tokens") or ()
            if entry["content"] in kept_tokens
        ]
        tokenizer = {**self.content, "model": model, "added_tokens": sorted(added, key=lambda entry: entry["id"])}
        tokenizer["post_processor"] = _renumbered(self.content.get("post_processor"), new_ids)
        if padding := self.content.get("padding"):
            tokenizer["padding"] = {**padding, "pad_id": new_ids.get(padding.get("pad_id"), padding.get("pad_id"))}
        return tokenizer


class Merges:
    """The merges of a BPE ``model`` in the order of their rank."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.entries = list(model.get("merges") or ())
        self.pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in self.entries]
        self.prefix = model.get("continuing_subword_prefix") or ""
        self.suffix = model.get("end_of_word_suffix") or ""
        self.ranks = {pair: rank for rank, pair in enumerate(self.pairs)}

    def merge_path(self, token: str) -> set[str]:
        """Return all tokens that arise while the algorithm merges the characters of ``token``, and these."""
        bare = token.removeprefix(self.prefix).removesuffix(self.suffix)
        parts = [character if not position else self.prefix + character for position, character in enumerate(bare)]
        if parts and token.startswith(self.prefix) and token != bare:
            parts[0] = self.prefix + bare[0]
        if parts and self.suffix and token.endswith(self.suffix):
            parts[-1] += self.suffix
        tokens = set(parts)
        while len(parts) > 1:
            rank, position = min(
                (self.ranks.get(pair, len(self.pairs)), position) for position, pair in enumerate(pairwise(parts))
            )
            if rank == len(self.pairs):
                break
            parts[position : position + 2] = [self.joined(parts[position], parts[position + 1])]
            tokens.add(parts[position])
        return tokens

    def joined(self, left: str, right: str) -> str:
        """Return the token that a merge makes."""
        return left + right.removeprefix(self.prefix)

    def within(self, kept_tokens: set[str]) -> list[Any]:
        """Return the merges, as the file writes them, whose parts and result are all in ``kept_tokens``."""
        return [
            merge
            for merge, (left, right) in zip(self.entries, self.pairs, strict=True)
            if {left, right, self.joined(left, right)} <= kept_tokens
        ]


def _guessed_kind(model: Mapping[str, Any]) -> str:
    """Return the algorithm of a ``model`` without a type, as in old files."""
    if "merges" in model:
        return "BPE"
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _is_bytewise(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the algorithm's characters stand for bytes, as GPT-2's do."""
    steps = [tokenizer.get("pre_tokenizer"), tokenizer.get("decoder"), tokenizer.get("normalizer")]
    while steps:
        step = steps.pop() or {}
        if step.get("type") == "ByteLevel":
            return True
        steps += [inner for key in ("pretokenizers", "decoders", "normalizers") for inner in step.get(key) or ()]
    return False


def _template_ids(processor: Any) -> Iterator[int]:
    """Yield the ids that a post-processor adds to a text."""
    if not isinstance(processor, dict):
        return
    for inner in processor.get("processors") or ():
        yield from _template_ids(inner)
    for entry in (processor.get("special_tokens") or {}).values():
        yield from entry["ids"]
    yield from (processor[key][1] for key in ("sep", "cls") if key in processor)


def _renumbered(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """Return a post-processor with new ids."""
    if not isinstance(processor, dict):
        return processor
    renumbered = dict(processor)
    if "processors" in processor:
        renumbered["processors"] = [_renumbered(inner, new_ids) for inner in processor["processors"]]
    if "special_tokens" in processor:
        renumbered["special_tokens"] = {
            name: {**entry, "ids": [new_ids[token_id] for token_id in entry["ids"]]}
            for name, entry in processor["special_tokens"].items()
        }
    for key in ("sep", "cls"):
        if key in processor:
            token, token_id = processor[key]
            renumbered[key] = [token, new_ids[token_id]]
    return renumbered
