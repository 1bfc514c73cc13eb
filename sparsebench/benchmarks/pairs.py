"""Pairs of sentences, ranked by cosine similarity (MTEB, Muennighoff et al. 2023, section 3.1).

Measured is whether true pairs rank above others, or whether the ranking agrees with people's scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsebench import sources
from sparsebench.benchmarks import hashes, own
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult, TaskSpec, drawn
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.statistics import RESAMPLES, SEED, average_precision, pooled, spearman
from sparsebench.errors import BenchmarkError


def score(encoder: Encoder, task: Benchmark, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Score the ranking by cosine similarity: average precision, or Spearman's correlation with gold scores.

    An outcome's value is the similarity; its label is the pair's gold score (1 for a true pair). Raises BenchmarkError
    when a vector is not finite (it has no rank), a label is not a number (for average precision, 0 or 1), or all pairs
    have the same label.
    """
    all_documents = documents(task, spec, cache)
    numbers, rows = drawn(all_documents, spec.limit)
    first, second = ([str(row[field]) for row in rows] for field in task.fields[:2])
    is_ranking, column = task.metric == "ap", task.fields[2]
    gold = np.array([gold_number(task, column, number, row) for number, row in zip(numbers, rows, strict=True)])
    if is_ranking and (neither := np.flatnonzero((gold != 0) & (gold != 1))).size:
        first_wrong = neither[0]
        raise own.unusable(task.name, numbers[first_wrong] + 1, column, rows[first_wrong][column], "0 or 1")
    if np.ptp(gold) == 0:
        raise BenchmarkError(
            f"task {task.name}: the {len(rows)} pairs all have {column} {gold[0]:g}",
            "raise `limit`" if len(rows) < len(all_documents) else "choose data in which they differ",
        )
    vectors = unit_vectors(encoder.embed(first + second), task)
    similarity = (vectors[: len(rows)] * vectors[len(rows) :]).sum(axis=1).astype(np.float64)
    return ScoreResult.of(
        task,
        (
            Outcome(str(number), hashes.of_prompt(*texts), float(similar), float(label))
            for number, texts, similar, label in zip(
                numbers, zip(first, second, strict=True), similarity, gold, strict=True
            )
        ),
        available=len(all_documents),
        chance=float(gold.mean()) if is_ranking else 0.0,
        protocol=encoder.protocol(task, rows, spec.data)
        | {"pooling": encoder.pooling.mode, "stderr": f"bootstrap, {RESAMPLES} resamples, seed {SEED}"},
        scored=pooled(average_precision if is_ranking else spearman, similarity, gold),
    )


def gold_number(task: Benchmark, column: str, position: int, row: Mapping[str, Any]) -> float:
    """Return a document's gold score or label. Raises BenchmarkError if it is not a finite number."""
    value = row[column]
    try:
        number = float(value)
    except (ValueError, TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise own.unusable(task.name, position + 1, column, value, "a number")
    return number


def unit_vectors(vectors: np.ndarray, task: Benchmark) -> np.ndarray:
    """Scale vectors (n, width) to length 1, except zero vectors. Raises BenchmarkError unless all are finite."""
    check_vectors(vectors, task)
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)


def check_vectors(vectors: np.ndarray, task: Benchmark) -> None:
    """Raise BenchmarkError unless all sentence vectors (n, width) are finite."""
    non_finite = int((~np.isfinite(vectors)).any(axis=1).sum())
    if non_finite:
        raise BenchmarkError(
            f"task {task.name}: the sentence vectors of {non_finite} of {len(vectors)} texts are not finite", DAMAGED
        )
