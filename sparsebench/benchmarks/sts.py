"""Semantic textual similarity: do cosines rank pairs as people do? (MTEB, Muennighoff et al. 2023, section 3.1.)"""

from __future__ import annotations

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec
from sparsebench.benchmarks.encoder import Encoder, documents
from sparsebench.benchmarks.pairs import unit
from sparsebench.benchmarks.statistics import RESAMPLES, SEED, bootstrap_stderr, spearman
from sparsebench.benchmarks.task import Task
from sparsebench.errors import BenchmarkError


def score(encoder: Encoder, task: Task, spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    """Spearman's correlation of cosine similarity and gold score; an outcome holds the two as value and label.

    Raises BenchmarkError when a vector is not finite (it has no rank), or all gold scores are the same.
    """
    import numpy as np

    every = documents(task, cache, spec.data)
    rows = every[: spec.limit]
    first, second = ([str(row[field]) for row in rows] for field in task.fields[:2])
    gold = np.array([float(row[task.fields[2]]) for row in rows])
    if np.ptp(gold) == 0:
        raise BenchmarkError(f"task {task.name}: the first {len(rows)} pairs all score {gold[0]:g}", "raise `limit`")
    vectors = unit(encoder.embed(first + second), task)
    similarity = (vectors[: len(rows)] * vectors[len(rows) :]).sum(axis=1).astype(np.float64)
    return ScoreResult(
        task=task.name,
        metric=task.metric,
        score=spearman(similarity, gold),
        stderr=bootstrap_stderr(spearman, similarity, gold),
        n=len(rows),
        limited=len(rows) < len(every),
        chance=0.0,
        outcomes=tuple(
            Outcome(str(place), hashes.of_shown(*texts), float(similarity[place]), float(gold[place]))
            for place, texts in enumerate(zip(first, second, strict=True))
        ),
        protocol=encoder.protocol(task, rows, spec.data)
        | {"pooling": encoder.pooling.mode, "stderr": f"bootstrap, {RESAMPLES} resamples, seed {SEED}"},
    )
