"""Compares two variants on every task that both were scored on, and by size, time and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import duckdb

from sparsebench.errors import UserError
from sparsebench.ledger import derive, query, sqlfiles, statistics
from sparsebench.ledger.naming import MeasuredVariant, measured_variants, resolve_variant
from sparsebench.ledger.query import Session
from sparsebench.ledger.statistics import Comparison, VerdictOverrides
from sparsebench.manifest.problems import did_you_mean

Values = dict[str, Any]


@dataclass(frozen=True)
class TaskComparison:
    """Two variants on one task: ``a`` and ``b`` score all documents of each, ``paired`` is B minus A over shared ones.

    ``overrides`` says what decides B's verdict before any test. A task that is invalid for A or for B is invalid here.
    """

    task: str
    metric: str
    a: float
    b: float
    n_a: int
    n_b: int
    limited: bool
    chance: float | None
    paired: Comparison
    overrides: VerdictOverrides
    p_holm: float | None = None
    verdict: str | None = None
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """All that the ledger has of both variants. Ratios are B over A; ``speedup`` is A's time over B's.

    ``tests`` is the number of tests that ``p_holm`` is corrected for, of all shared tasks.
    """

    a: MeasuredVariant
    b: MeasuredVariant
    scores: tuple[TaskComparison, ...]
    tests: int
    sizes: tuple[Values, ...]
    latency: tuple[Values, ...]
    memory: tuple[Values, ...]
    notes: tuple[str, ...]


def side_by_side(ledger: Path, a: str, b: str, tasks: Collection[str] = ()) -> SideBySide:
    """Compare the variants that ``a`` and ``b`` name (``naming``); with ``tasks``, on these only.

    Raises UserError for a name that fits no variant or several, or a task that not both were scored on.
    """
    with query.session(ledger) as ask:
        return _side_by_side(ask, a, b, tasks)


def _side_by_side(ask: Session, a: str, b: str, tasks: Collection[str]) -> SideBySide:
    variants = measured_variants(ask)
    first, second = resolve_variant(a, variants), resolve_variant(b, variants)
    scores_a, scores_b = (_by_task(_rows(ask, "scores", {"id": variant.id})) for variant in (first, second))
    shared = sorted(scores_a.keys() & scores_b.keys())
    shared_tasks = [task for task, _ in shared]
    for task in tasks:
        if task not in shared_tasks:
            hint = f"both were scored on {', '.join(shared_tasks)}" if shared_tasks else "no task is common to both"
            raise UserError(
                f"{first.name} and {second.name} do not share a task {task!r}", did_you_mean(task, shared_tasks) or hint
            )
    comparisons = [_compare(ask.connection, *_most_alike(scores_a[key], scores_b[key])) for key in shared]
    # Every shared task counts in the correction, whichever are shown.
    verdicts = statistics.holm_verdicts([task.paired for task in comparisons], [task.overrides for task in comparisons])
    tests = sum(p is not None for p, _ in verdicts)
    judged = [
        replace(task, p_holm=p, verdict=verdict) for task, (p, verdict) in zip(comparisons, verdicts, strict=True)
    ]
    tables = {name: tuple(_rows(ask, name, {"a": first.id, "b": second.id})) for name in ("sizes", "latency", "memory")}
    unshared = {task for task, _ in scores_a.keys() ^ scores_b.keys()} - set(shared_tasks)
    notes = tuple(_notes(first, second, unshared, tables))
    asked_tasks = tuple(task for task in judged if not tasks or task.task in tasks)
    return SideBySide(first, second, asked_tasks, tests, **tables, notes=notes)


def _rows(ask: Session, query_name: str, parameters: dict[str, Any]) -> list[Values]:
    return ask(sqlfiles.read(f"side_by_side/{query_name}"), parameters).dicts()


def _by_task(rows: Sequence[Values]) -> dict[tuple[str, str], list[Values]]:
    tasks: dict[tuple[str, str], list[Values]] = {}
    for row in rows:
        tasks.setdefault((row["task"], row["metric"]), []).append(row)
    return tasks


def _most_alike(scores_a: list[Values], scores_b: list[Values]) -> tuple[Values, Values]:
    """Return the two most similar records of one task: same settings, then most documents, same machine, newest."""
    pairs = list(product(scores_a, scores_b))
    same_settings = [(a, b) for a, b in pairs if a["settings"] == b["settings"]]
    return max(
        same_settings or pairs,
        key=lambda pair: (min(pair[0]["n"], pair[1]["n"]), pair[0]["machine"] == pair[1]["machine"]),
    )


def _compare(connection: duckdb.DuckDBPyConnection, a: Values, b: Values) -> TaskComparison:
    """Compare two records of one task."""
    notes = []
    if a["num_fewshot"] != b["num_fewshot"]:
        notes.append("different numbers of examples in the prompt")
    if a["dtype"] != b["dtype"]:
        notes.append(f"A was calculated in {a['dtype']}, B in {b['dtype']}")
    paired = statistics.not_reproducible(a["metric"])
    if paired.method not in (a["interval"], b["interval"]):
        (outcomes,) = derive.pairs(connection, [(b["record_id"], a["record_id"])])
        paired = statistics.compare(a["metric"], outcomes, a["chance"])
        if 0 < paired.n < min(a["n"], b["n"]):
            notes.append(f"only {paired.n} documents were shown to both, word for word")
    if paired.p is None:
        notes.append(paired.method.removeprefix("none: "))
    separable = False not in (a["separable"], b["separable"])
    return TaskComparison(
        task=a["task"],
        metric=a["metric"],
        a=a["score"],
        b=b["score"],
        n_a=a["n"],
        n_b=b["n"],
        limited=a["limited"] or b["limited"],
        chance=a["chance"],
        paired=paired,
        overrides=VerdictOverrides(separable, b["collapsed"] and not a["collapsed"], b["at_chance"]),
        note="; ".join(notes),
    )


def _notes(
    a: MeasuredVariant, b: MeasuredVariant, unshared: Collection[str], tables: dict[str, tuple[Values, ...]]
) -> Iterator[str]:
    """Yield what a reader must know before trusting a line."""
    if a.id == b.id:
        yield "A and B are the same variant"
    if a.model != b.model:
        yield "different models: scores are paired by document, times are not paired"
    elif a.dtype != b.dtype:
        yield f"different precisions: A {a.dtype}, B {b.dtype}"
    if "random" in (a.weights, b.weights):
        yield "random weights: only time, memory and size mean something"
    if unshared:
        yield f"scored for one of them only: {', '.join(sorted(unshared))}"
    missing = [name for name, rows in tables.items() if not rows]
    if missing:
        yield f"not measured for both in the same way: {', '.join(missing)}"
