"""What passes in and out of a score: a task with its settings in, a score with every document's outcome out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.benchmarks.catalog import FAMILIES, Benchmark, all_tasks
from sparsebench.benchmarks.own import OwnData
from sparsebench.benchmarks.statistics import mean_stderr
from sparsebench.errors import BenchmarkError, SparsebenchError

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family

DAMAGED = "its weights overflow or are damaged: try dtype float32"
"""The way out where a model's numbers are not finite."""
Progress = Callable[[int, int], None]
"""(requests done, requests in all) of the task at hand."""
LogLikelihood = tuple[float, bool]
"""(log p of a token or a continuation, whether greedy decoding gives it)."""


@dataclass(frozen=True)
class TaskSpec:
    """A task as a manifest asks for it.

    ``limit`` scores only so many documents, drawn at random (``sampled``); ``labels`` names a classification head's
    outputs, in order, where the checkpoint does not; ``data`` is a source that stands in for the data of a task on pairs
    of sentences; ``batch`` is a number of sequences a forward pass, None the fastest way. Over data of ``own``, ``task`` is
    only what they are called.
    """

    task: str
    limit: int | None = None
    num_fewshot: int | None = None
    labels: tuple[str, ...] | None = None
    data: str | None = None
    batch: int | None = None
    own: OwnData | None = None

    @property
    def row(self) -> Benchmark | None:
        """Its row, of the table or of data of one's own; None for what lm-eval alone knows."""
        return self.own.row(self.task) if self.own else all_tasks().get(self.task)

    @property
    def known(self) -> Benchmark:
        """Its row. Raises BenchmarkError where there is none."""
        if row := self.row:
            return row
        raise BenchmarkError(f"there is no task {self.task!r}", "list the names with `sparsebench score --list`")

    @property
    def adapter(self) -> str:
        """The module of this room that scores it; what lm-eval alone knows is the harness's."""
        return self.row.adapter if self.row else "harness"

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that it is for. An encoder takes lm-eval's tasks where it has a masked-language-model head."""
        return self.row.families if self.row else FAMILIES


DRAW = 0
"""Seed of the draw of documents, wherever there is a ``limit``."""


def sampled(whole: int, limit: int | None) -> list[int]:
    """The places, in order, of the documents to score of ``whole``: all, or ``limit`` of them at random.

    The first ones are often no sample: data sets are sorted. The draw is by hash, the same on every machine, and a larger limit
    holds all of a smaller one's.
    """
    if limit is None or limit >= whole:
        return list(range(whole))
    shuffled = sorted(range(whole), key=lambda place: hashlib.sha256(f"{DRAW} {place}".encode()).digest())
    return sorted(shuffled[:limit])


@dataclass(frozen=True)
class Outcome:
    """One document: ``value`` is 1 or 0 (right or wrong), or what the metric ranks, with the gold ``label`` beside it.

    ``doc_hash`` is the sha1 of what the model was shown, so that two variants can be paired and checked. Documents of
    one ``cluster`` share a context (``hashes``); None is a document of its own.
    """

    doc_id: str
    doc_hash: str
    value: float
    label: float | None = None
    cluster: str | None = None


@dataclass(frozen=True)
class ScoreResult:
    """``score`` over ``n`` documents with its standard error; ``chance`` is what no skill gives, None where unknown.

    ``limited`` says that the task has more documents than were scored. ``protocol`` holds all that is needed to
    score the same way again: data, split, versions, batch size, precision, and what was odd.
    """

    task: str
    metric: str
    score: float
    stderr: float
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
        whole: int,
        chance: float | None,
        protocol: dict[str, str | int | float],
        scored: tuple[float, float] | None = None,
    ) -> ScoreResult:
        """The result over some of ``whole`` documents; ``scored`` is (score, standard error), default: their mean's."""
        found = tuple(outcomes)
        values = [one.value for one in found]
        score, stderr = scored or (sum(values) / len(values), mean_stderr(values))
        return cls(task.name, task.metric, score, stderr, len(found), len(found) < whole, chance, found, protocol)


Emit = Callable[[TaskSpec, ScoreResult | SparsebenchError], None]
"""Called once for each task, as it finishes, with its result or its error."""
