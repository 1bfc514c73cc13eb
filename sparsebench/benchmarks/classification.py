"""Classification with the checkpoint's own head, whose outputs are matched to the data's classes by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult, TaskSpec, drawn
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.errors import BenchmarkError

_SPELLINGS = {
    **dict.fromkeys(("entail", "entails"), "entailment"),
    **dict.fromkeys(("contradict", "contradicts"), "contradiction"),
    **dict.fromkeys(("paraphrase", "duplicate"), "equivalent"),
    **dict.fromkeys(("notparaphrase", "notduplicate"), "notequivalent"),
    "nonentailment": "notentailment",
    "pos": "positive",
    "neg": "negative",
}
_NOT_ENTAILED = {"neutral": "notentailment", "contradiction": "notentailment"}


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Return the accuracy of the most probable class. A document whose logits are not finite counts as wrong.

    Raises BenchmarkError when the head's outputs do not fit the data's classes, or no document has finite logits.
    """
    outputs = head_labels(encoder.config, spec.labels)
    meaning = match(outputs, task)
    every = documents(task, cache)
    numbers, rows = drawn(every, spec.limit)
    texts = [tuple(str(row[field]) for field in task.fields) for row in rows]
    logits = encoder.logits(texts)
    if logits.shape[1] != len(outputs):
        raise BenchmarkError(
            f"task {task.name}: the head has {logits.shape[1]} outputs, not {len(outputs)}: {', '.join(outputs)}",
            "give one label per output, in their order",
        )
    finite = np.isfinite(logits).all(axis=1)
    if not finite.any():
        raise BenchmarkError(
            f"task {task.name}: the head's outputs are not finite on any of {len(rows)} documents", DAMAGED
        )
    gold = [int(row["label"]) for row in rows]
    values = [
        float(bool(sound) and meaning[int(best)] == label)
        for sound, best, label in zip(finite, logits.argmax(axis=1), gold, strict=True)
    ]
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_shown(*text), value, cluster=hashes.of_context(text[0]))
            for number, text, value in zip(numbers, texts, values, strict=True)
        ),
        whole=len(every),
        chance=max(Counter(gold).values()) / len(gold),
        protocol=encoder.protocol(task, rows) | {"labels": ", ".join(outputs), "non_finite": int((~finite).sum())},
    )


def head_labels(config: dict[str, Any], given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a head's outputs, in order: those given, else the checkpoint's ``id2label``.

    Raises BenchmarkError when the checkpoint does not name them, or only numbers them.
    """
    if given:
        return tuple(given)
    named = {int(key): str(value) for key, value in (config.get("id2label") or {}).items()}
    names = tuple(named[key] for key in sorted(named))
    if not names or any(re.fullmatch(r"(?i)(label_?)?\d+", name) for name in names):
        raise BenchmarkError(
            f"the checkpoint does not name its head's outputs: {', '.join(names) or 'no id2label in config.json'}",
            "give the model `labels:` in the manifest, one per output, such as [contradiction, entailment, neutral]",
        )
    return names


def match(outputs: Sequence[str], task: Benchmark) -> list[int]:
    """Return the class (its position in ``task.classes``) that each output of the head stands for.

    On a two-class entailment task a three-way NLI head's neutral and contradiction both mean "not entailed"
    (as in McCoy et al. 2019). Raises BenchmarkError when an output has no class, or a class no output.
    """
    classes = [_plain(name) for name in task.classes]
    plain = [_plain(name) for name in outputs]
    if "notentailment" in classes:
        plain = [_NOT_ENTAILED.get(name, name) for name in plain]
    if set(plain) != set(classes):
        raise BenchmarkError(
            f"task {task.name} has classes {', '.join(task.classes)}; the head's outputs are {', '.join(outputs)}",
            "choose a task that the head was trained for, or correct the model's `labels:`",
        )
    return [classes.index(name) for name in plain]


def _plain(name: str) -> str:
    letters = re.sub(r"[^a-z]", "", name.lower())
    return _SPELLINGS.get(letters, letters)
