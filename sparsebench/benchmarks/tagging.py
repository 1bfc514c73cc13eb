"""Tags of words, such as the names of people and places: F1 over whole entities, as CoNLL's conlleval counts them.

    F1 = 2 right / (found + there)        an entity is right if its kind, first word and last word are

A word's tag is the checkpoint's own head's output for the word's first token (Devlin et al. 2019, section 5.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.classification import head_labels
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult, TaskSpec, sampled
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.statistics import ratio
from sparsebench.errors import BenchmarkError

if TYPE_CHECKING:
    import numpy as np
    import torch

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
    every = documents(task, cache, own_data=spec.own)
    places = sampled(len(every), spec.limit)
    rows = [every[place] for place in places]
    read = [_sentence(task, place, row) for place, row in zip(places, rows, strict=True)]
    outputs = head_labels(encoder.config, spec.labels)
    unknown = sorted({tag for _, tags in read for tag in tags} - set(outputs) - {OUTSIDE})
    if unknown:
        raise BenchmarkError(
            f"task {task.name}: the data have the tag {unknown[0]!r}; the head's outputs are {', '.join(outputs)}",
            "choose data that the head was trained for, or correct the model's `labels:`",
        )
    there = [entities(tags) for _, tags in read]
    if not any(there):
        raise BenchmarkError(f"task {task.name}: no entity in {len(rows)} documents", "give it more documents")
    written, told = tags_of(encoder, [words for words, _ in read], outputs, task)
    found = [entities(tags) for tags in written]
    values = [2.0 * len(gold & own) for gold, own in zip(there, found, strict=True)]
    labels = [float(len(gold) + len(own)) for gold, own in zip(there, found, strict=True)]
    return ScoreResult.of(
        task,
        (
            Outcome(str(place), hashes.of_shown(*words), value, label)
            for place, (words, _), value, label in zip(places, read, values, labels, strict=True)
        ),
        whole=len(every),
        chance=0.0,
        scored=ratio(values, labels),
        protocol=encoder.protocol(task, rows) | {"labels": ", ".join(outputs)[:500], **told},
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
    left = encoder.tokenizer.padding_side == "left"

    def best(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the likeliest output of each token, -1 if its logits are not finite."""
        logits = model(**batch).logits.float()
        if logits.shape[-1] != len(outputs):
            raise BenchmarkError(
                f"task {task.name}: the head has {logits.shape[-1]} outputs, not {len(outputs)}: {', '.join(outputs)}",
                "give one label per output, in their order",
            )
        return logits.argmax(dim=-1).masked_fill(~logits.isfinite().all(dim=-1), -1)

    found, cut, broken = [], 0, 0
    rows = encoder.rows([(text,) for text in texts], encoder.max_length, best)
    for words, text, offsets, row in zip(sentences, texts, encoded["offset_mapping"], rows, strict=True):
        chosen = row[-len(offsets) :] if left else row[: len(offsets)]
        own = _first_tokens(words, text, offsets, chosen)
        cut += len(words) - len(own)
        broken += any(tag < 0 for tag in own.values())
        found.append([outputs[own[word]] if own.get(word, -1) >= 0 else OUTSIDE for word in range(len(words))])
    if broken == len(texts):
        raise BenchmarkError(
            f"task {task.name}: the head's outputs are not finite on any of {len(texts)} documents", DAMAGED
        )
    return found, {"cut_words": cut, "non_finite": broken}


def _first_tokens(
    words: Sequence[str], text: str, offsets: Sequence[tuple[int, int]], chosen: np.ndarray
) -> dict[int, int]:
    """Return the output chosen for the first token of each word (by its number), for words that have a token."""
    starts, at = {}, 0
    for number, word in enumerate(words):
        starts[at] = number
        at += len(word) + 1
    found: dict[int, int] = {}
    for (start, end), tag in zip(offsets, chosen, strict=True):
        # A byte-level token may begin with the space before its word. A special token's offsets are empty.
        first = start + len(text[start:end]) - len(text[start:end].lstrip())
        if start < end and first in starts:
            found.setdefault(starts[first], int(tag))
    return found


def entities(tags: Sequence[str]) -> set[Entity]:
    """Return a sentence's entities from its words' tags, in IOB1, IOB2, IOBES or BILOU; as lenient as conlleval.

    An entity begins at B or S, where the kind changes, or at an inside tag with no open entity before it. It ends at E
    or S, where the next one begins, or before an outside tag.
    """
    found: set[Entity] = set()
    kind, first, over = "", 0, True
    for place, tag in enumerate([*tags, OUTSIDE]):
        mark, own = _parts(tag)
        begins = own and (mark in "BS" or own != kind or over)
        if kind and (begins or not own):
            found.add((kind, first, place - 1))
        if begins or not own:
            kind, first = own, place
        over = not own or mark in "ES"
    return found


def _parts(tag: str) -> tuple[str, str]:
    """Return a tag's mark and its kind of entity; both are empty outside."""
    mark, _, kind = tag.partition("-")
    if tag == OUTSIDE:
        return "", ""
    return (_MARKS[mark], kind) if kind and mark in _MARKS else ("I", tag)


def _sentence(task: Benchmark, place: int, row: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return a record's words and their tags, each read from a list or from a text with spaces between them."""
    both = [value.split() if isinstance(value, str) else value for value in (row[name] for name in task.fields)]
    what = f"task {task.name}: record {place + 1} of the data"
    for name, value in zip(task.fields, both, strict=True):
        if not isinstance(value, list) or not all(isinstance(one, str) and one.strip() for one in value):
            raise BenchmarkError(
                f"{what} has {name} {str(value)[:40]}, which is no list of words", "tags are names, such as B-PER"
            )
    words, tags = both
    if len(words) != len(tags) or not words:
        raise BenchmarkError(f"{what} has {len(words)} words and {len(tags)} tags", "give each word a tag")
    return words, tags
