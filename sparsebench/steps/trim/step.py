"""``trim`` as a step of a recipe: the pass that trims the vocabulary, and how the text is read before and after."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from sparsebench import bounded, sources
from sparsebench.errors import ModelError, UserError
from sparsebench.manifest.problems import did_you_mean
from sparsebench.models.files.text import JOINER, load_tokenizer
from sparsebench.sources.reference import Reference
from sparsebench.sources.text import read_texts
from sparsebench.steps.calibration import named_text
from sparsebench.steps.contract import Context, Emit, Step, StepReport, reported
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.trim import companions, weights
from sparsebench.steps.trim.settings import Corpus
from sparsebench.steps.trim.vocabulary import Vocabulary


def make_trimmed(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every trimmed version of the model in ``parent``, each in its folder; each step fails alone.

    Raises UnsupportedError, before any text is read, for a tokenizer that cannot be rewritten.
    """
    tokenizer = load_tokenizer(parent)
    vocabulary = Vocabulary.read(parent, tokenizer)
    for step, folder in reported([*targets.items()], context.progress):
        with failing_alone(step, emit):
            usage = None if step.name == "list" else _text_usage(step, tokenizer, context)
            chosen = usage.often(step.settings.min_count) if usage else _file_tokens(step, vocabulary)
            emit(step, _write_trimmed(parent, folder, step, vocabulary, chosen, usage, context))


def _text_usage(step: Step, tokenizer: Any, context: Context) -> Usage:
    """Read and tokenize the step's text."""
    settings: Corpus = step.settings
    source, column = named_text(settings)
    fetch = context.fetch_file or (lambda text: sources.fetch(sources.parse(text), sources.Cache()))
    read = read_texts(fetch(source), *filter(None, (column, settings.target)))
    return token_usage(tokenizer, [text for row in read.rows for text in row], context.family == "decoder")


def _file_tokens(step: Step, vocabulary: Vocabulary) -> frozenset[int]:
    """Return the tokens that a file lists. Raises UserError with file and line for a token that the tokenizer lacks."""
    path = Reference.parse(step.settings.file).unchanged_file("a text file with a token a line", UserError)
    ids = set()
    for number, line in enumerate(bounded.lines(path, UserError), start=1):
        token = line.rstrip("\r\n")
        if token and token not in vocabulary.ids:
            hint = did_you_mean(token, vocabulary.ids) or "spell tokens as tokenizer.json does"
            raise UserError(f"{path}:{number}: the tokenizer has no token {token[:100]!r}", hint)
        if token:
            ids.add(vocabulary.ids[token])
    return frozenset(ids)


def _write_trimmed(
    parent: Path,
    folder: Path,
    step: Step,
    vocabulary: Vocabulary,
    chosen: frozenset[int],
    usage: Usage | None,
    context: Context,
) -> StepReport:
    """Write the model with the ``chosen`` tokens, read the text again with its tokenizer, and return the report.

    Added tokens may lie behind the model's last row, as Gemma 3's image token does in its text models: they stay behind
    it. Raises ModelError where a token that the text or the configuration uses lies there, and where the text is read
    otherwise than before although all of its tokens are kept.
    """
    started = time.perf_counter()
    needed = chosen | companions.named_ids(parent)
    kept_ids = vocabulary.closure(needed, step.settings.characters)
    rows = weights.existing_rows(parent, kept_ids, needed)
    new_ids = {token_id: number for number, token_id in enumerate(kept_ids)}
    notes = [f"{len(kept_ids):,} of {len(vocabulary.ids):,} tokens stay"]
    with weights.begin_trimmed(parent, context.family, rows, folder) as writer:
        companions.rewrite_companions(writer.partial, new_ids, len(rows), vocabulary.reduced(kept_ids))
        tokenizer = load_tokenizer(writer.partial)
        numbers = {vocabulary.tokens[token_id]: number for token_id, number in new_ids.items()}
        check_ids(tokenizer, numbers, parent)
        reading = None
        if usage:
            reading = retokenized(tokenizer, usage, new_ids)
            if set(usage.counts) <= set(new_ids) and not reading.same:
                raise ModelError(
                    f"{parent}: the trimmed tokenizer reads the text otherwise than before, though its tokens all stay",
                    "leave the model out of this step, and report its tokenizer",
                )
            notes.append(_note(usage, reading))
        text = asdict(reading) if reading else None
        writer.close({"trimmed": {"tokens": len(kept_ids), "of": len(vocabulary.ids), "text": text}})
    return step_report(folder, context.family, seconds=time.perf_counter() - started, note="; ".join(notes))


def _note(usage: Usage, reading: RetokenizedText) -> str:
    if reading.same:
        return f"the text takes {usage.tokens:,} tokens, the same as before"
    growth = f"the text takes {reading.tokens:,} tokens, {reading.tokens / usage.tokens - 1:.2%} more than before"
    return f"{growth} ({reading.unknown:,} of them unknown, which were not)" if reading.unknown else growth


TEXTS_AT_ONCE = 256
"""Texts tokenized at once."""


@dataclass
class Usage:
    """A model's tokenization of some ``texts``: ``counts`` of each token id, and the ids in ``batches``.

    ``joined`` texts are separated by a blank line, as for decoders.
    """

    texts: Sequence[str]
    joined: bool
    counts: dict[int, int]
    batches: list[npt.NDArray[np.int32]]

    @property
    def tokens(self) -> int:
        """The number of tokens that the text takes, without special ones."""
        return sum(self.counts.values())

    def often(self, times: int) -> frozenset[int]:
        """Return the tokens that the texts use at least so many ``times``."""
        return frozenset(token_id for token_id, count in self.counts.items() if count >= times)


@dataclass(frozen=True)
class RetokenizedText:
    """The same text after a trim: the ``tokens`` that it takes, how many more of them than before are ``unknown``, and
    whether they are the ``same`` tokens as before."""

    tokens: int
    unknown: int
    same: bool


def token_usage(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], joined: bool) -> Usage:
    """Tokenize the texts and count each token."""
    batches = list(_encode(tokenizer, texts, joined))
    counts = np.bincount(np.concatenate(batches)) if batches else np.zeros(0, dtype=np.int64)
    used_ids = np.flatnonzero(counts)
    return Usage(texts, joined, dict(zip(used_ids.tolist(), counts[used_ids].tolist(), strict=True)), batches)


def retokenized(tokenizer: PreTrainedTokenizerBase, before: Usage, new: Mapping[int, int]) -> RetokenizedText:
    """Tokenize the texts of ``before`` with the trimmed tokenizer and compare; ``new`` maps kept ids to new ids."""
    table = np.full(max([*before.counts, *new], default=0) + 1, -1, dtype=np.int32)
    table[list(new)] = list(new.values())
    unknown_id = tokenizer.unk_token_id
    old_ids = {new_id: old for old, new_id in new.items()}
    tokens, unknown, same = 0, -before.counts.get(old_ids.get(unknown_id, -1), 0), True
    for after_ids, before_ids in zip(_encode(tokenizer, before.texts, before.joined), before.batches, strict=True):
        tokens += after_ids.size
        unknown += 0 if unknown_id is None else int(np.count_nonzero(after_ids == unknown_id))
        same = same and np.array_equal(after_ids, table[before_ids])
    return RetokenizedText(tokens, unknown, same)


def check_ids(tokenizer: PreTrainedTokenizerBase, expected: Mapping[str, int], folder: Path) -> None:
    """Raise ModelError where the trimmed tokenizer, as transformers loads it, gives a token another id than its row."""
    ids: dict[str, int] = tokenizer.get_vocab()
    for token in {**expected, **ids}:
        if ids.get(token) != expected.get(token):
            problem = f"{folder}: transformers reads the token {token!r} of the trimmed tokenizer as {ids.get(token)}"
            hint = "leave the model out of this step, and report its tokenizer"
            raise ModelError(f"{problem}, where its row is {expected.get(token)}", hint)


def _encode(tokenizer: Any, texts: Sequence[str], joined: bool) -> Iterator[npt.NDArray[np.int32]]:
    """Yield the token ids of ``TEXTS_AT_ONCE`` texts at a time, in one flat array."""
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        part = texts[start : start + TEXTS_AT_ONCE]
        # The last text too is followed by the joiner, which separates it from the next batch.
        inputs = [JOINER.join([*part, ""])] if joined else list(part)
        rows = tokenizer(inputs, add_special_tokens=False, verbose=False)["input_ids"]
        yield np.fromiter((token for row in rows for token in row), dtype=np.int32)
