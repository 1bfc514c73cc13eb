"""Scores of rules that need no model: the words that texts have in common, or the length of an answer.

Pairs and passages are ranked by the cosine of their sets of words. Among choices, the shortest or the longest is the
answer. Prompts, documents and metrics are those that a model is scored on, so both can be paired document by document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sparsebench import sources
from sparsebench.benchmarks import hashes
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import EmitScore, ScoreResult, TaskSpec, task_protocol
from sparsebench.benchmarks.scoring import with_protocol
from sparsebench.errors import SparsebenchError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np

_MOST_NUMBERS = 1 << 28
"""Most numbers in a (texts, words) table. With more words, some words share a column."""
_RANKING_ADAPTERS = ("pairs", "retrieval")
_WITHOUT_CHOICES = ("open", "majority")
"""Chance rules of tasks without choices, and of tasks with the same choices for every document."""


def has_heuristic(benchmark: Benchmark | None) -> bool:
    """Return whether a task has a heuristic. True for one that only lm-eval has (None): its documents decide later."""
    if benchmark is None or benchmark.adapter in _RANKING_ADAPTERS:
        return True
    return benchmark.adapter == "harness" and benchmark.chance not in _WITHOUT_CHOICES


def score(tasks: Sequence[TaskSpec], cache: sources.Cache, emit: EmitScore) -> None:
    """Score the heuristic of every task; ``emit`` gets each result or error as it comes.

    A task without a heuristic gets UnsupportedError.
    """
    for spec in tasks:
        try:
            emit(spec, with_protocol(_score(spec, cache), spec))
        except SparsebenchError as error:
            emit(spec, error)


def _score(spec: TaskSpec, cache: sources.Cache) -> ScoreResult:
    if not has_heuristic(spec.benchmark):
        raise UnsupportedError(f"task {spec.task}: no heuristic is known for it", "leave it out by `select`")
    if spec.adapter in _RANKING_ADAPTERS:
        module: Any = import_module(f"sparsebench.benchmarks.{spec.adapter}")
        return module.score(_WordEncoder(), spec.required_benchmark, spec, cache)
    from sparsebench.benchmarks.harness import LengthHarness  # lm-eval takes seconds to import

    results = [LengthHarness(sign).score(spec, cache) for sign in (-1, 1)]
    return max(results, key=lambda result: result.score)


class _WordEncoder:
    """A substitute for an encoder: a text's vector says which words it has."""

    pooling = SimpleNamespace(mode="words")

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return one row per text, float32 (n, words): 1 for each word of the text, ignoring case."""
        import numpy as np

        bags = [set(re.findall(r"\w+", text.lower())) for text in texts]
        column_of = {word: number for number, word in enumerate(sorted(set().union(*bags)))}
        width = max(1, min(len(column_of), _MOST_NUMBERS // max(1, len(texts))))
        vectors = np.zeros((len(texts), width), dtype=np.float32)
        for vector, bag in zip(vectors, bags, strict=True):
            vector[[column_of[word] % width for word in bag]] = 1
        return vectors

    def protocol(
        self, task: Benchmark, rows: Sequence[Mapping[str, Any]], data: str | None = None
    ) -> dict[str, str | int | float]:
        """Return an encoder's protocol without the fields that depend on a model."""
        return {
            **task_protocol(task, "sparsebench heuristics", data),
            "heuristic": "words in common",
            "documents_sha256": hashes.of_documents(rows),
        }
