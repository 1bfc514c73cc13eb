"""What the checkpoint's own head makes of texts: its outputs are matched to the data's classes by name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult, TaskSpec, drawn, refuse_all_non_finite
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.heads import REGRESSION
from sparsebench.benchmarks.own import KINDS
from sparsebench.benchmarks.pairs import gold_number
from sparsebench.benchmarks.statistics import RESAMPLES, SEED, macro_f1, pearson, pooled, spearman
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.labels import class_numbers, head_outputs
from sparsebench.sources.text import read_records

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
    """Score what the head makes of each text: accuracy, macro F1, or the correlation of a regression head's numbers.

    A document whose logits are not finite counts as wrong; such a number has no rank, and is an error. For macro F1 an
    outcome's value is the number of the class chosen, -1 for none, and its label that of the right one. Raises
    BenchmarkError or ModelError when the head's outputs do not fit the data, or no document has finite logits.
    """
    task = _with_pairs(task, spec, cache)
    all_documents = documents(task, spec, cache)
    numbers, rows = drawn(all_documents, spec.limit)
    columns = (task.fields[0], *task.fields[2:]) if spec.own else task.fields
    texts = [tuple(str(row[column]) for column in columns) for row in rows]
    if task.metric in REGRESSION:
        return _regression(encoder, task, numbers, rows, texts, len(all_documents))
    if spec.own:
        outputs = tuple(spec.labels or head_outputs(encoder.config))
        class_of_output = [*range(len(outputs))]
        gold = class_numbers(outputs, [str(row[task.fields[1]]) for row in rows])
    else:
        outputs = head_labels(encoder.config, spec.labels)
        class_of_output = match(outputs, task)
        gold = [int(row["label"]) for row in rows]
    logits = encoder.logits(texts)
    check_output_count(task, logits.shape[1], outputs)
    finite = np.isfinite(logits).all(axis=1)
    non_finite = int((~finite).sum())
    refuse_all_non_finite(task.name, "the head's outputs", non_finite, len(rows))
    predicted = np.where(finite, np.array(class_of_output)[logits.argmax(axis=1)], -1).tolist()
    correct = [float(number == label) for number, label in zip(predicted, gold, strict=True)]
    commonest, count = Counter(gold).most_common(1)[0]
    values, score_and_error, chance = correct, None, count / len(gold)
    labels: list[float | None] = [None] * len(gold)
    if task.metric == "macro_f1":
        values, labels = [float(number) for number in predicted], [float(number) for number in gold]
        score_and_error = pooled(macro_f1, np.array(values), np.array(gold, dtype=float))
        chance = float(macro_f1(np.full(len(gold), commonest), np.array(gold), np.ones((1, len(gold))))[0])
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(*text), value, label, cluster=hashes.of_context(text[0]))
            for number, text, value, label in zip(numbers, texts, values, labels, strict=True)
        ),
        available=len(all_documents),
        chance=chance,
        scored=score_and_error,
        protocol=encoder.protocol(task, rows) | {"labels": ", ".join(outputs)[:500], "non_finite": non_finite},
    )


def _regression(
    encoder: Encoder,
    task: Benchmark,
    numbers: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[tuple[str, ...]],
    available: int,
) -> ScoreResult:
    """Return the correlation of the head's numbers with those of the data. An outcome's label is the latter."""
    gold = np.array([gold_number(task, task.fields[1], number, row) for number, row in zip(numbers, rows, strict=True)])
    logits = encoder.logits(texts)
    if logits.shape[1] != 1:
        problem = f"task {task.name}: its head gives {logits.shape[1]} numbers, and {task.metric} is of one"
        raise BenchmarkError(problem, "a head with one output")
    values = logits[:, 0].astype(np.float64)
    if not np.isfinite(values).all():
        raise BenchmarkError(f"task {task.name}: a number of the head's is not finite", DAMAGED)
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(*text), float(value), float(label), hashes.of_context(text[0]))
            for number, text, value, label in zip(numbers, texts, values, gold, strict=True)
        ),
        available,
        chance=0.0,
        scored=pooled(spearman if task.metric == "spearman" else pearson, values, gold),
        protocol=encoder.protocol(task, rows) | {"stderr": f"bootstrap, {RESAMPLES} resamples, seed {SEED}"},
    )


def _with_pairs(task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> Benchmark:
    """Return the task with the column of second texts, where a user's own file has one under its usual name."""
    if spec.own and len(task.fields) == 2:
        (pair,) = KINDS[spec.own.kind].optional
        first = next(read_records(spec.own.fetch(cache)), {})
        if pair in first:
            return replace(task, fields=(*task.fields, pair))
    return task


def head_labels(config: dict[str, Any], labels: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a head's outputs, in order: those given, else the checkpoint's ``id2label``.

    Raises BenchmarkError when the checkpoint does not name them, or only numbers them.
    """
    if labels:
        return tuple(labels)
    names = tuple(head_outputs(config))
    if not names or any(re.fullmatch(r"(?i)(label_?)?\d+", name) for name in names):
        raise BenchmarkError(
            f"the checkpoint does not name its head's outputs: {', '.join(names) or 'no id2label in config.json'}",
            "give the model `labels:` in the manifest, one per output, such as [contradiction, entailment, neutral]",
        )
    return names


def check_output_count(task: Benchmark, count: int, outputs: Sequence[str]) -> None:
    """Raise BenchmarkError unless a head of ``count`` outputs has one for each name."""
    if count != len(outputs):
        raise BenchmarkError(
            f"task {task.name}: the head has {count} outputs, not {len(outputs)}: {', '.join(outputs)}",
            "give one label per output, in their order",
        )


def match(outputs: Sequence[str], task: Benchmark) -> list[int]:
    """Return the class (its position in ``task.classes``) that each output of the head stands for.

    On a two-class entailment task a three-way NLI head's neutral and contradiction both mean "not entailed"
    (as in McCoy et al. 2019). Raises BenchmarkError when an output has no class, or a class no output.
    """
    classes = [_normalized_name(name) for name in task.classes]
    normalized = [_normalized_name(name) for name in outputs]
    if "notentailment" in classes:
        normalized = [_NOT_ENTAILED.get(name, name) for name in normalized]
    if set(normalized) != set(classes):
        raise BenchmarkError(
            f"task {task.name} has classes {', '.join(task.classes)}; the head's outputs are {', '.join(outputs)}",
            "choose a task that the head was trained for, or correct the model's `labels:`",
        )
    return [classes.index(name) for name in normalized]


def _normalized_name(name: str) -> str:
    letters = re.sub(r"[^a-z]", "", name.lower())
    return _SPELLINGS.get(letters, letters)
