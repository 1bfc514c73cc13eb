"""Scores per document: through lm-eval's harness, and by adapters of our own for what it cannot ask."""

from sparsebench.benchmarks.catalog import Benchmark, all_tasks, data_sources, families
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec, sampled
from sparsebench.benchmarks.index import known, names
from sparsebench.benchmarks.overlap import Fitted, overlaps
from sparsebench.benchmarks.scoring import check, score

__all__ = [
    "VERSION",
    "Benchmark",
    "Fitted",
    "Outcome",
    "ScoreResult",
    "TaskSpec",
    "all_tasks",
    "check",
    "data_sources",
    "families",
    "known",
    "names",
    "overlaps",
    "sampled",
    "score",
]

VERSION = 2
"""Bumped by hand when a change here can change a score."""
