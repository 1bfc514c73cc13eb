"""Tags of words, such as the names of people and places: F1 over whole entities, as CoNLL's conlleval counts them.

    F1 = 2 right / (found + there)        an entity is right if its kind, first word and last word are

A word's tag is the checkpoint's own head's output for the word's first token (Devlin et al. 2019, section 5.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparsebench import sources
from sparsebench.benchmarks import hashes, own
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.classification import check_output_count, head_labels
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec, drawn, refuse_all_non_finite
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.statistics import ratio
from sparsebench.errors import BenchmarkError

OUTSIDE = "O"
_MARKS = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S"}
"""The marks of IOB, IOBES and BILOU. A tag without a mark counts as inside (I)."""

Entity = tuple[str, int, int]
"""Kind, first word, last word."""


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Return F1 over the entities of all documents.

    A document's outcome is twice the number of right entities; its label is the number found plus the number there. A
    word beyond the model's longest input is outside all entities. Raises BenchmarkError when a record's words and tags
    do not match, the head lacks a tag, there is no entity, or no document has finite logits.
    """
    all_documents = documents(task, spec, cache)
    numbers, rows = drawn(all_documents, spec.limit)
    sentences = [_sentence(task, number, row) for number, row in zip(numbers, rows, strict=True)]
    outputs = head_labels(encoder.config, spec.labels)
    unknown = sorted({tag for _, tags in sentences for tag in tags} - set(outputs) - {OUTSIDE})
    if unknown:
        raise BenchmarkError(
            f"task {task.name}: the data have the tag {unknown[0]!r}; the head's outputs are {', '.join(outputs)}",
            "choose data that the head was trained for, or correct the model's `labels:`",
        )
    gold_entities = [entities(tags) for _, tags in sentences]
    if not any(gold_entities):
        raise BenchmarkError(f"task {task.name}: no entity in {len(rows)} documents", "give it more documents")
    predicted_tags, counts = tags_of(encoder, [words for words, _ in sentences], outputs, task)
    predicted_entities = [entities(tags) for tags in predicted_tags]
    values = [2.0 * len(gold & tagged) for gold, tagged in zip(gold_entities, predicted_entities, strict=True)]
    labels = [float(len(gold) + len(tagged)) for gold, tagged in zip(gold_entities, predicted_entities, strict=True)]
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(*words), value, label)
            for number, (words, _), value, label in zip(numbers, sentences, values, labels, strict=True)
        ),
        available=len(all_documents),
        chance=0.0,
        scored=ratio(values, labels),
        protocol=encoder.protocol(task, rows) | {"labels": ", ".join(outputs)[:500], **counts},
    )


def tags_of(
    encoder: Encoder, sentences: Sequence[Sequence[str]], outputs: Sequence[str], task: Benchmark
) -> tuple[list[list[str]], dict[str, int]]:
    """Return the head's tag of every word, and the numbers of words cut off and of documents with non-finite logits."""
    if not encoder.tokenizer.is_fast:
        raise BenchmarkError(
            f"task {task.name}: its tokenizer does not say where in a text a token stands",
            "give the model a tokenizer.json",
        )
    texts = [" ".join(words) for words in sentences]
    encoded = encoder.tokenizer(texts, truncation=True, max_length=encoder.max_length, return_offsets_mapping=True)
    model: Any = encoder.tagger
    padded_left = encoder.tokenizer.padding_side == "left"

    def likeliest_outputs(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the likeliest output of each token, -1 if its logits are not finite."""
        logits = model(**batch).logits.float()
        check_output_count(task, logits.shape[-1], outputs)
        return logits.argmax(dim=-1).masked_fill(~logits.isfinite().all(dim=-1), -1)

    tagged, cut_words, non_finite = [], 0, 0
    rows = encoder.outputs([(text,) for text in texts], encoder.max_length, likeliest_outputs)
    for words, text, offsets, row in zip(sentences, texts, encoded["offset_mapping"], rows, strict=True):
        token_outputs = row[-len(offsets) :] if padded_left else row[: len(offsets)]
        first = _first_tokens(words, text, offsets, token_outputs)
        cut_words += len(words) - len(first)
        non_finite += any(tag < 0 for tag in first.values())
        tagged.append([outputs[first[word]] if first.get(word, -1) >= 0 else OUTSIDE for word in range(len(words))])
    refuse_all_non_finite(task.name, "the head's outputs", non_finite, len(texts))
    return tagged, {"cut_words": cut_words, "non_finite": non_finite}


def _first_tokens(
    words: Sequence[str], text: str, offsets: Sequence[tuple[int, int]], token_outputs: np.ndarray
) -> dict[int, int]:
    """Return the output chosen for the first token of each word (by its number), for words that have a token."""
    word_at, offset = {}, 0
    for number, word in enumerate(words):
        word_at[offset + len(word) - len(word.lstrip())] = number
        offset += len(word) + 1
    tags: dict[int, int] = {}
    for (start, end), tag in zip(offsets, token_outputs, strict=True):
        # A byte-level token may begin with the space before its word. A special token's offsets are empty.
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        if start < end and first in word_at:
            tags.setdefault(word_at[first], int(tag))
    return tags


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return a sentence's entities from its words' tags, in IOB1, IOB2, IOBES or BILOU; as lenient as conlleval.

    An entity begins at B or S, where the kind changes, or at an inside tag with no open entity before it. It ends at E
    or S, where the next one begins, or before an outside tag.
    """
    closed: set[Entity] = set()
    open_kind, first, is_closed = "", 0, True
    for number, tag in enumerate([*tags, OUTSIDE]):
        mark, kind = _mark_and_kind(tag)
        begins = kind and (mark in "BS" or kind != open_kind or is_closed)
        if open_kind and (begins or not kind):
            closed.add((open_kind, first, number - 1))
        if begins or not kind:
            open_kind, first = kind, number
        is_closed = not kind or mark in "ES"
    return closed


def _mark_and_kind(tag: str) -> tuple[str, str]:
    """Return a tag's mark and its kind of entity; both are empty outside."""
    mark, _, kind = tag.partition("-")
    if tag == OUTSIDE:
        return "", ""
    return (_MARKS[mark], kind) if kind and mark in _MARKS else ("I", tag)


def _sentence(task: Benchmark, number: int, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return a record's words and their tags, each read from a list or from a text with spaces between them."""
    columns = [value.split() if isinstance(value, str) else value for value in (row[name] for name in task.fields)]
    for name, value in zip(task.fields, columns, strict=True):
        if not isinstance(value, list) or not all(map(own.has_text, value)):
            raise own.unusable(task.name, number + 1, name, value, "a list of words, or of tags such as B-PER")
    words, tags = columns
    if len(words) != len(tags) or not words:
        raise own.unusable(
            task.name, number + 1, task.fields[1], tags, f"a list of {len(words)} tags, one for each word"
        )
    return words, tags
