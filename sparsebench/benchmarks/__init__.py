"""Scores per document: through lm-eval's harness, and by our own adapters for tasks that it cannot run."""

from sparsebench.benchmarks import heuristics
from sparsebench.benchmarks.catalog import Benchmark, all_tasks, data_sources
from sparsebench.benchmarks.contract import Outcome, ScoredModel, ScoreResult, TaskSpec, sampled
from sparsebench.benchmarks.index import is_task, task_names
from sparsebench.benchmarks.overlap import FittedTexts, overlaps
from sparsebench.benchmarks.own import KINDS, OwnData, OwnTaskKind, benchmark_of, find_benchmark, kind_of
from sparsebench.benchmarks.scoring import PROTOCOL_KEYS, score, takes

__all__ = [
    "KINDS", "PROTOCOL_KEYS", "VERSION", "Benchmark", "FittedTexts", "Outcome", "OwnData", "OwnTaskKind", "ScoreResult",
    "ScoredModel", "TaskSpec", "all_tasks", "benchmark_of", "data_sources", "find_benchmark",
    "heuristics", "is_task", "kind_of", "overlaps", "sampled", "score", "takes", "task_names",
]  # fmt: skip

VERSION = 2
"""Bumped by hand when a change here can change a score."""
