"""What perplexity and pseudo-perplexity share: the running text of a task, its scored windows, and their result."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import bounded, sources
from sparsebench.benchmarks.catalog import Benchmark
from sparsebench.benchmarks.contract import DAMAGED, Outcome, ScoreResult, TaskSpec
from sparsebench.benchmarks.statistics import ratio
from sparsebench.errors import BenchmarkError
from sparsebench.models.files.text import JOINER
from sparsebench.sources.text import each_text, is_plain, read_texts


def wikitext(path: Path) -> str:
    """Read a raw WikiText file as published evaluations do: its lines, blank ones emptied, joined with blank lines."""
    return JOINER.join(line if line.strip() else "" for line in bounded.lines(path, BenchmarkError, "\n"))


def window_length(spec: TaskSpec, longest: int | None, default: int) -> int:
    """Return a task's window for a model that takes ``longest`` tokens (None: any number).

    The task's own window counts; without one, ``default`` or the model's maximum if that is less. Raises BenchmarkError
    when the task's own window is longer than the model takes.
    """
    if spec.own:
        stated = spec.own.window
    elif spec.required_benchmark.form == "published":
        stated = spec.required_benchmark.tokens
    else:
        stated = None  # the row's number of tokens is a window of the usual length, shortened to what the model takes
    if stated and longest and stated > longest:
        raise BenchmarkError(
            f"task {spec.task}: a window of {stated:,} tokens, where the model takes at most {longest:,}",
            f"`length: {longest}` or less",
        )
    return stated or min(default, longest or default)


@dataclass(frozen=True)
class RunningText:
    """A task's text: its passages (``passages`` of them), joined with blank lines."""

    text: str
    passages: int

    @classmethod
    def of(cls, spec: TaskSpec, cache: sources.Cache) -> RunningText:
        """Fetch and join a task's passages. A passage repeated in a built-in task's data counts once; a user's data and
        published texts keep their repeats.
        """
        task = spec.required_benchmark
        path = spec.own.fetch(cache) if spec.own else sources.fetch(sources.parse(task.data[0]), cache)
        if task.form == "published":
            # In a raw file the rows are lines; in the hub's table they are records.
            passages = [wikitext(path)] if is_plain(path) else [text for (text,) in each_text(path, *task.fields)]
        elif task.form == "passages":
            passages = [text for (text,) in each_text(path, *task.fields) if text.strip()]
        else:
            passages = [text for (text,) in read_texts(path, *task.fields).rows]
        return cls(JOINER.join(passages), len(passages))

    @property
    def protocol(self) -> dict[str, Any]:
        """What a result records of the text."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"passages": self.passages, "joiner": "blank line", "text_sha256": digest}


@dataclass(frozen=True)
class ScoredWindow:
    """A scored window: its ``number`` in the text (from 0), the ``ids`` that the model saw, its summed negative
    log-likelihood ``nll`` (nats), and how many ``tokens`` are scored.
    """

    number: int
    ids: Iterable[int]
    nll: float
    tokens: int


def perplexity_result(
    task: Benchmark, windows: Sequence[ScoredWindow], available: int, protocol: Mapping[str, Any]
) -> ScoreResult:
    """Return the perplexity over ``windows``, out of ``available``. An outcome is a window, its label the tokens scored.

    Raises BenchmarkError when the perplexity is more than a double holds.
    """
    values, counts = [window.nll for window in windows], [window.tokens for window in windows]
    score, error = pooled_perplexity(values, counts, task.name), ratio(values, counts)[1]
    return ScoreResult.of(
        task,
        (Outcome(str(window.number), _hash_of(window.ids), window.nll, float(window.tokens)) for window in windows),
        available,
        chance=None,
        scored=(score, None if error is None else score * error),
        protocol={
            **protocol,
            "documents": available,
            "scored_tokens": sum(counts),
            "stderr": "delta method: score times the standard error of the mean over tokens, a ratio of sums over windows",
        },
    )


def _hash_of(ids: Iterable[int]) -> str:
    return hashlib.sha1(" ".join(map(str, ids)).encode()).hexdigest()


def bits_per_byte(values: Sequence[float], size: int) -> dict[str, int | float]:
    """Return the fields of a result for negative log-likelihoods (nats) of ``size`` bytes of text; none for 0 bytes."""
    return {"scored_bytes": size, "bits_per_byte": math.fsum(values) / math.log(2) / size} if size else {}


def to_dense_ids(ids: Sequence[int], original: Sequence[int] | None) -> Sequence[int]:
    """Return tokens by the dense model's ids; ``original`` maps a trimmed vocabulary to them (None: not trimmed)."""
    return ids if original is None else [original[token] for token in ids]


def check_finite(task: str, value: float, number: int, windows: int) -> None:
    """Raise BenchmarkError if the likelihood ``value`` of window ``number`` (from 1) of ``windows`` is not finite."""
    if not math.isfinite(value):
        raise BenchmarkError(f"{task}: the likelihood of window {number} of {windows} is not finite", DAMAGED)


def pooled_perplexity(values: Sequence[float], counts: Sequence[int], task: str = "perplexity") -> float:
    """Return exp(Σ values / Σ counts). Raises BenchmarkError when that is more than a double holds."""
    mean = math.fsum(values) / sum(counts)
    try:
        return math.exp(mean)
    except OverflowError:
        raise BenchmarkError(
            f"{task}: a perplexity too large for a number (the mean negative log-likelihood is {mean:.4g} nats a token)",
            "the model has collapsed: remove less, or check its weights",
        ) from None
