"""Turns texts into samples of tokens: one function for each family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.errors import SourceError
from sparsebench.models.files.text import JOINER, token_ids
from sparsebench.models.replay.batch import Batch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_CHARACTERS = 6
"""Characters that are tokenised for each token wanted; doubled while they give too few tokens."""

Fields = tuple[str, ...]
Sample = tuple[list[int], ...]
"""Token ids of the encoder and, for an encoder-decoder, of the decoder."""


@dataclass(frozen=True)
class SampleSettings:
    """A tokenizer, its special tokens ``before`` and ``after`` a text, and the number and length of samples to make.

    For ``training``, fewer samples will do, and the decoder text of an encoder-decoder keeps its last token as a
    target.
    """

    tokenizer: PreTrainedTokenizerBase
    before: list[int]
    after: list[int]
    pad: int
    samples: int
    length: int
    training: bool = False


def windows(settings: SampleSettings, rows: Sequence[Fields]) -> tuple[Batch, list[Fields]]:
    """Return a decoder's windows (samples, length), cut in sequence from the joined texts, and the texts tokenised.

    Each window begins with the tokens that the tokenizer puts before a text, so that it looks like a prompt. Raises
    SourceError when the text is too short.
    """
    import torch

    room = settings.length - len(settings.before)
    needed = settings.samples * room
    characters = needed * _CHARACTERS
    while True:
        used = _first_rows(rows, characters)
        ids = token_ids(settings.tokenizer, JOINER.join(text for text, *_ in used))
        if len(ids) >= needed or len(used) == len(rows):
            break
        characters *= 2
    token_count = min(needed, max(1, len(ids) // room) * room) if settings.training else needed
    if len(ids) < token_count:
        raise SourceError(
            f"too little text: {len(ids):,} tokens, where {settings.samples} samples need {needed:,}",
            f"lower samples or length (these tokens make {len(ids) // room} samples), or name a longer text",
        )
    body = torch.tensor(ids[:token_count]).reshape(-1, room)
    first = torch.tensor(settings.before, dtype=torch.long).expand(len(body), -1)
    input_ids = torch.cat([first, body], dim=1)
    return Batch(input_ids, torch.ones_like(input_ids, dtype=torch.bool)), used


def passages(settings: SampleSettings, rows: Sequence[Fields]) -> tuple[Batch, list[Fields]]:
    """Return an encoder's samples, one text each with special tokens around it, cut at the length, and the texts used.

    Raises SourceError when there are fewer texts than samples; for training, when there is none.
    """

    def cut(part: Sequence[Fields]) -> list[Sample | None]:
        return [(_with_special_tokens(settings, ids),) if ids else None for ids in _encode_texts(settings, part)]

    samples, used = _first_samples(settings, rows, cut)
    return Batch(*_padded(settings, [ids for (ids,) in samples])), used


def pairs(settings: SampleSettings, rows: Sequence[Fields], start: int) -> tuple[Batch, list[Fields]]:
    """Return an encoder-decoder's samples, a row's two texts each or its one text cut in the middle, and the rows used.

    The decoder reads ``start`` (its config's start token) and then its text without the last token, as in training. For
    training the last token is kept, as it must be predicted.
    Raises SourceError when there are fewer rows than samples; for training, when there is none.
    """

    def cut(part: Sequence[Fields]) -> list[Sample | None]:
        sources = _encode_texts(settings, part)
        if len(part[0]) == 1:
            halves = [(ids[: len(ids) // 2], ids[len(ids) // 2 :]) for ids in sources]
            encoded = [(first, _with_special_tokens(settings, second)) for first, second in halves]
        else:
            targets = [target for _, target in part]
            tokenized = settings.tokenizer(
                text_target=targets, truncation=True, max_length=settings.length, verbose=False
            )
            encoded = list(zip(sources, tokenized["input_ids"], strict=True))
        end = None if settings.training else -1
        return [
            (_with_special_tokens(settings, first), [start, *labels[:end]]) if first and labels else None
            for first, labels in encoded
        ]

    samples, used = _first_samples(settings, rows, cut)
    encoder, decoder = zip(*samples, strict=True)
    return Batch(*_padded(settings, encoder), *_padded(settings, decoder)), used


def _first_rows(rows: Sequence[Fields], characters: int) -> list[Fields]:
    """Return the first rows that have ``characters`` characters together; all rows where they have fewer."""
    used: list[Fields] = []
    for row in rows:
        if characters <= 0:
            break
        used.append(row)
        characters -= len(row[0])
    return used


def _first_samples(
    settings: SampleSettings, rows: Sequence[Fields], cut: Callable[[Sequence[Fields]], list[Sample | None]]
) -> tuple[list[Sample], list[Fields]]:
    """Return the first ``samples`` samples that ``cut`` makes, and their rows; later rows are not tokenised."""
    sampled: list[tuple[Fields, Sample]] = []
    for begin in range(0, len(rows), settings.samples):
        part = rows[begin : begin + settings.samples]
        sampled += [(row, sample) for row, sample in zip(part, cut(part), strict=True) if sample is not None]
        if len(sampled) >= settings.samples:
            break
    if len(sampled) < (1 if settings.training else settings.samples):
        count = sum(len(ids) for _, sample in sampled for ids in sample)
        raise SourceError(
            f"too little text: {len(sampled)} passages of {count:,} tokens in all, where {settings.samples} samples need "
            "a passage each",
            f"lower samples to {len(sampled)}, or name a text with more passages" if sampled else "name a longer text",
        )
    chosen = sampled[: settings.samples]
    return [sample for _, sample in chosen], [row for row, _ in chosen]


def _encode_texts(settings: SampleSettings, part: Sequence[Fields]) -> list[list[int]]:
    texts = [row[0] for row in part]
    return settings.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _with_special_tokens(settings: SampleSettings, ids: list[int]) -> list[int]:
    room = settings.length - len(settings.before) - len(settings.after)
    return [*settings.before, *ids[:room], *settings.after]


def _padded(settings: SampleSettings, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, (rows, longest row), padded on the right."""
    import torch

    shape = len(rows), max(len(row) for row in rows)
    ids, mask = torch.full(shape, settings.pad), torch.zeros(shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = True
    return ids, mask
