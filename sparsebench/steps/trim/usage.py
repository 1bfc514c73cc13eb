"""How often a text uses each token, and how another tokenizer reads the same text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sparsebench.errors import ModelError
from sparsebench.models.files.text import JOINER

TEXTS_AT_ONCE = 256
"""Texts tokenized at once."""


@dataclass
class Usage:
    """A model's tokenization of some texts: ``counts`` of each token id, and the ids in ``batches``."""

    counts: dict[int, int]
    batches: list[npt.NDArray[np.int32]] = field(repr=False)

    @property
    def tokens(self) -> int:
        """The number of tokens that the text takes, without special ones."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class RetokenizedText:
    """The same text after a trim: the ``tokens`` that it takes, how many more of them than before are ``unknown``, and
    whether they are the ``same`` tokens as before."""

    tokens: int
    unknown: int
    same: bool


def token_usage(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], joined: bool) -> Usage:
    """Tokenize the texts and count each token; ``joined`` texts are separated by a blank line, as for decoders."""
    batches = list(_read(tokenizer, texts, joined))
    counts = np.bincount(np.concatenate(batches)) if batches else np.zeros(0, dtype=np.int64)
    seen = np.flatnonzero(counts)
    return Usage(dict(zip(seen.tolist(), counts[seen].tolist(), strict=True)), batches)


def retokenized(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], joined: bool, before: Usage, new: Mapping[int, int]
) -> RetokenizedText:
    """Tokenize the texts with the trimmed tokenizer and compare with ``before``; ``new`` maps kept ids to new ids."""
    table = np.full(max([*before.counts, *new], default=0) + 1, -1, dtype=np.int32)
    table[list(new)] = list(new.values())
    unknown_id = tokenizer.unk_token_id
    known = {new_id: old for old, new_id in new.items()}
    tokens, unknown, same = 0, -before.counts.get(known.get(unknown_id, -1), 0), True
    for after_ids, before_ids in zip(_read(tokenizer, texts, joined), before.batches, strict=True):
        tokens += after_ids.size
        unknown += 0 if unknown_id is None else int(np.count_nonzero(after_ids == unknown_id))
        same = same and np.array_equal(after_ids, table[before_ids])
    return RetokenizedText(tokens, unknown, same)


def check_ids(tokenizer: PreTrainedTokenizerBase, expected: Mapping[str, int], folder: Path) -> None:
    """Raise ModelError where the trimmed tokenizer, as transformers loads it, gives a token another id than its row."""
    ids: dict[str, int] = tokenizer.get_vocab()
    wrong = next((token for token in {**expected, **ids} if ids.get(token) != expected.get(token)), None)
    if wrong is not None:
        raise ModelError(
            f"{folder}: transformers reads the token {wrong!r} of the trimmed tokenizer as {ids.get(wrong)}, where its row "
            f"is {expected.get(wrong)}",
            "leave the model out of this step, and report its tokenizer",
        )


def _read(tokenizer: Any, texts: Sequence[str], joined: bool) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the token ids of ``TEXTS_AT_ONCE`` texts at a time, in one flat array."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        # The last text too is followed by the joiner, which separates it from the next batch.
        inputs = [JOINER.join([*part, ""])] if joined else list(part)
        rows = tokenizer(inputs, add_special_tokens=False, verbose=False)["input_ids"]
        yield np.fromiter((token for row in rows for token in row), dtype=np.int32)
