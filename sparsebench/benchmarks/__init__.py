"""Scores per document: lm-eval's harness for decoders and encoder-decoders, adapters of our own for encoders."""

from sparsebench.benchmarks.catalog import TASKS, data_sources, families
from sparsebench.benchmarks.contract import Outcome, ScoreResult, TaskSpec
from sparsebench.benchmarks.index import known, names
from sparsebench.benchmarks.overlap import overlaps
from sparsebench.benchmarks.scoring import check, score
from sparsebench.benchmarks.task import Task

__all__ = [
    "TASKS",
    "VERSION",
    "Outcome",
    "ScoreResult",
    "Task",
    "TaskSpec",
    "check",
    "data_sources",
    "families",
    "known",
    "names",
    "overlaps",
    "score",
]

VERSION = 2
"""Bumped by hand when a change here can change a score."""
