"""What every perplexity shares: passages joined to one text, and windows of it pooled to one number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult
from sparsebench.benchmarks.statistics import mean_stderr
from sparsebench.errors import BenchmarkError
from sparsebench.sources.text import read_texts

JOINER = "\n\n"


@dataclass(frozen=True)
class RunningText:
    """A task's ``passages``, joined with blank lines."""

    text: str
    passages: int

    @classmethod
    def of(cls, task: Benchmark, cache: sources.Cache) -> RunningText:
        """Fetch and join what the task reads."""
        rows = read_texts(sources.fetch(sources.parse(task.data[0]), cache), *task.fields).rows
        return cls(JOINER.join(passage for (passage,) in rows), len(rows))

    @property
    def protocol(self) -> dict[str, Any]:
        """What a result says of it."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"passages": self.passages, "joiner": "blank line", "text_sha256": digest}


@dataclass(frozen=True)
class Scored:
    """A window: the ``ids`` that the model saw, its summed negative log-likelihood (nats), and how many tokens were scored."""

    ids: Iterable[int]
    value: float
    tokens: int


def result(task: Benchmark, windows: Sequence[Scored], whole: int, protocol: Mapping[str, Any]) -> ScoreResult:
    """The perplexity over ``windows``, the first of ``whole``; an outcome is a window, its label the tokens scored.

    Raises BenchmarkError where the result is more than a double holds.
    """
    score = pooled([window.value for window in windows], [window.tokens for window in windows])
    hashes = [hashlib.sha1(" ".join(map(str, window.ids)).encode()).hexdigest() for window in windows]
    return ScoreResult.of(
        task,
        (
            Outcome(str(place), shown, window.value, float(window.tokens))
            for place, (shown, window) in enumerate(zip(hashes, windows, strict=True))
        ),
        whole,
        chance=None,
        scored=(score, score * mean_stderr([window.value / window.tokens for window in windows])),
        protocol={
            **protocol,
            "documents": whole,
            "scored_tokens": sum(window.tokens for window in windows),
            "stderr": "delta method: score times the standard error of the windows' mean log-likelihoods",
        },
    )


def check_finite(task: str, value: float, place: int, windows: int) -> None:
    """Raise BenchmarkError for the likelihood of window ``place`` (from 1) of ``windows`` where it is not finite."""
    if not math.isfinite(value):
        raise BenchmarkError(f"{task}: the likelihood of window {place} of {windows} is not finite", DAMAGED)


def pooled(values: Sequence[float], counts: Sequence[int]) -> float:
    """exp(Σ values / Σ counts). Raises BenchmarkError where that is more than a double holds."""
    mean = math.fsum(values) / sum(counts)
    try:
        return math.exp(mean)
    except OverflowError:
        raise BenchmarkError(
            f"perplexity: a mean negative log-likelihood of {mean:.4g} nats a token is beyond any perplexity",
            "the model is broken: nothing can be compared with it",
        ) from None
