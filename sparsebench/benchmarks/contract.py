"""The input and output of scoring: a task with its settings, and a score with every document's outcome."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sparsebench.benchmarks.catalog import LM_EVAL_FAMILIES, Benchmark
from sparsebench.benchmarks.own import OwnData, find_benchmark
from sparsebench.errors import BenchmarkError, SparsebenchError
from sparsebench.manifest.names import Family

DAMAGED = "its weights overflow or are damaged: try dtype float32"
"""The hint for a model whose numbers are not finite."""
Progress = Callable[[int, int], None]
"""Called with (requests done, requests in all) of the current task."""
LogLikelihood = tuple[float, bool]
"""(log p of a token or a continuation, whether greedy decoding would produce it)."""


@dataclass(frozen=True)
class TaskSpec:
    """A task with its settings from a manifest.

    - ``limit``: the number of documents to score, drawn at random (``sampled``); None for all.
    - ``labels``: the names of a classification head's outputs, in order, if the checkpoint does not name them.
    - ``data``: a source that replaces the data of a task on pairs of sentences.
    - ``batch``: sequences per forward pass; None for the fastest way.
    - ``own``: the user's own data. ``task`` is then only their name.
    - ``divergence``: whether a perplexity's tokens are compared with the dense model's, too.
    """

    task: str
    limit: int | None = None
    num_fewshot: int | None = None
    labels: tuple[str, ...] | None = None
    data: str | None = None
    batch: int | None = None
    own: OwnData | None = None
    divergence: bool = False

    @property
    def benchmark(self) -> Benchmark | None:
        """The task's benchmark, of the table or over the user's own data; None for a task that only lm-eval has."""
        return find_benchmark(self.task, self.own)

    @property
    def required_benchmark(self) -> Benchmark:
        """The task's benchmark. Raises BenchmarkError if there is none."""
        if benchmark := self.benchmark:
            return benchmark
        raise BenchmarkError(f"there is no task {self.task!r}", "list the names with `sparsebench score --list`")

    @property
    def adapter(self) -> str:
        """The module that scores the task; ``harness`` for a task that only lm-eval has."""
        return self.benchmark.adapter if self.benchmark else "harness"

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that the task is for. An encoder needs a masked-language-model head for lm-eval's tasks."""
        return self.benchmark.families if self.benchmark else LM_EVAL_FAMILIES


DRAW_SEED = 0
"""Seed for drawing documents under a ``limit``."""


AnyDocument = TypeVar("AnyDocument")


def drawn(documents: Sequence[AnyDocument], limit: int | None) -> tuple[list[int], list[AnyDocument]]:
    """Return the places in the data of the documents to score, and these documents."""
    numbers = sampled(len(documents), limit)
    return numbers, [documents[number] for number in numbers]


def sampled(available: int, limit: int | None) -> list[int]:
    """Return the sorted positions of the documents to score, out of ``available``: all, or ``limit`` of them at random.

    The first documents are often no random sample, since data sets are sorted. The draw is by hash: it is the same on
    every machine, and a larger limit's draw includes a smaller one's.
    """
    if limit is None or limit >= available:
        return list(range(available))
    shuffled = sorted(range(available), key=lambda number: hashlib.sha256(f"{DRAW_SEED} {number}".encode()).digest())
    return sorted(shuffled[:limit])


@dataclass(frozen=True)
class Outcome:
    """One document's result: ``value`` is 1 or 0 (right or wrong), or what the metric pools together with ``label``.

    ``doc_hash`` is the sha1 of what the model was shown, so that two variants' outcomes can be paired and checked.
    Documents of one ``cluster`` share a context (``hashes``); None is a cluster of its own.
    """

    doc_id: str
    doc_hash: str
    value: float
    label: float | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class ScoreResult:
    """A task's ``score`` over ``n`` documents with its standard error; ``chance`` is the score without skill, if known.

    ``stderr`` is None for one document, which does not show how much documents vary.
    ``limited`` says that the task has more documents than were scored. ``protocol`` holds all that is needed to score
    the same way again (data, split, versions, batch size, precision), and anything unusual.
    """

    task: str
    metric: str
    score: float
    stderr: float | None
    n: int
    limited: bool
    chance: float | None
    outcomes: tuple[Outcome, ...]
    protocol: dict[str, str | int | float]

    @classmethod
    def of(
        cls,
        task: Benchmark,
        outcomes: Iterable[Outcome],
        available: int,
        chance: float | None,
        protocol: dict[str, str | int | float],
        scored: tuple[float, float | None] | None = None,
    ) -> ScoreResult:
        """Make a result over some of ``available`` documents. ``scored`` is (score, standard error), default the mean's."""
        outcomes = tuple(outcomes)
        values = [outcome.value for outcome in outcomes]
        score, stderr = scored or (sum(values) / len(values), mean_stderr(values))
        n = len(outcomes)
        return cls(task.name, task.metric, score, stderr, n, n < available, chance, outcomes, protocol)


def task_protocol(task: Benchmark, harness: str, data: str | None = None) -> dict[str, str]:
    """Return what each of our own adapters records of a task; ``data`` is a source in place of the task's own."""
    return {
        "harness": harness,
        "task_version": str(task.version),
        "data": data or " ".join(task.data) or "hub " + "/".join(task.hub or ()),
        "chance_rule": task.chance,
    }


def refuse_all_non_finite(task: str, numbers: str, non_finite: int, documents: int) -> None:
    """Raise BenchmarkError where the ``numbers``, such as the head's outputs, are finite on none of the documents."""
    if non_finite == documents:
        raise BenchmarkError(f"task {task}: {numbers} are not finite on any of {documents} documents", DAMAGED)


def mean_stderr(values: Sequence[float]) -> float | None:
    """Return the standard error of the mean, as lm-eval does: sqrt(p(1-p)/(n-1)) for 0/1 values; None for one value."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    # In lm-eval's order of operations, so that the digits agree.
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)


@dataclass(frozen=True)
class ScoredModel:
    """A model's folder, and the precision and device in which it is scored (``auto``: the checkpoint's precision).

    ``dense`` is the dense model's folder, for tasks that ask for the divergence from it.
    """

    folder: Path
    family: Family
    dtype: str = "auto"
    device: str = "cpu"
    dense: Path | None = None


EmitScore = Callable[[TaskSpec, ScoreResult | SparsebenchError], None]
"""Called once for each task, as it finishes, with its result or its error."""
