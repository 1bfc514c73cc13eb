"""Compares two variants on every task that both were scored on, and by size, time and memory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import duckdb

from sparsebench.errors import UserError
from sparsebench.ledger import derive, query, sqlfiles, statistics
from sparsebench.ledger.naming import MeasuredVariant, known, resolve
from sparsebench.ledger.statistics import Comparison, Standing

Values = dict[str, Any]


@dataclass(frozen=True)
class TaskComparison:
    """Two variants on one task: ``a`` and ``b`` score all documents of each, ``paired`` is B minus A over shared ones.

    ``stood`` says what decides B's verdict before any test. A task that is invalid for A or for B is invalid here.
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
    stood: Standing
    p_holm: float | None = None
    verdict: str | None = None
    note: str = ""


@dataclass(frozen=True)
class SideBySide:
    """All that the ledger has of both variants. Ratios are B over A; ``speedup`` is A's time over B's."""

    a: MeasuredVariant
    b: MeasuredVariant
    scores: tuple[TaskComparison, ...]
    sizes: tuple[Values, ...]
    latency: tuple[Values, ...]
    memory: tuple[Values, ...]
    notes: tuple[str, ...]


def side_by_side(ledger: Path, a: str, b: str, tasks: Collection[str] = ()) -> SideBySide:
    """Compare the variants that ``a`` and ``b`` name (``naming``); with ``tasks``, on these only.

    Raises UserError for a name that fits no variant or several, or a task that not both were scored on.
    """
    variants = known(ledger)
    first, second = resolve(a, variants), resolve(b, variants)
    ids = {"a": first.id, "b": second.id}
    own, other = (_rows(ledger, "scores", {"id": one.id}) for one in (first, second))
    shared = sorted({_task(row) for row in own} & {_task(row) for row in other})
    _check(tasks, shared, first, second)
    with query.reader(ledger) as connection:
        scored = [
            _paired(
                connection, [row for row in own if _task(row) == task], [row for row in other if _task(row) == task]
            )
            for task in shared
        ]
    left = {row["task"] for row in [*own, *other]} - {task for task, _ in shared}
    tables = {name: tuple(_rows(ledger, name, ids)) for name in ("sizes", "latency", "memory")}
    # Every shared task counts in the correction, whichever are shown.
    judged = tuple(one for one in _judged(scored) if not tasks or one.task in tasks)
    return SideBySide(first, second, judged, **tables, notes=tuple(_notes(first, second, left, tables)))


def _rows(ledger: Path, name: str, parameters: dict[str, Any]) -> list[Values]:
    return query.run(ledger, sqlfiles.read(f"side_by_side/{name}"), parameters).dicts()


def _task(row: Values) -> tuple[str, str]:
    return row["task"], row["metric"]


def _check(tasks: Collection[str], shared: Sequence[tuple[str, str]], a: MeasuredVariant, b: MeasuredVariant) -> None:
    from sparsebench.manifest.problems import did_you_mean

    names = [task for task, _ in shared]
    for task in tasks:
        if task not in names:
            both = f"both were scored on {', '.join(names)}" if names else "no task is common to both"
            raise UserError(f"{a.name} and {b.name} do not share a task {task!r}", did_you_mean(task, names) or both)


def _paired(connection: duckdb.DuckDBPyConnection, own: list[Values], other: list[Values]) -> TaskComparison:
    """Compare the two most similar records of one task: same settings, then most documents, same machine, newest."""
    choices = [(x, y) for x in own for y in other]
    same = [pair for pair in choices if pair[0]["settings"] == pair[1]["settings"]]
    x, y = max(
        same or choices, key=lambda pair: (min(pair[0]["n"], pair[1]["n"]), pair[0]["machine"] == pair[1]["machine"])
    )
    notes = []
    if x["num_fewshot"] != y["num_fewshot"]:
        notes.append("different numbers of examples in the prompt")
    if x["dtype"] != y["dtype"]:
        notes.append(f"A was calculated in {x['dtype']}, B in {y['dtype']}")
    paired = statistics.unexplained(x["metric"])
    if paired.method not in (x["interval"], y["interval"]):
        (pairs,) = derive.pairs(connection, [(y["record_id"], x["record_id"])])
        paired = statistics.compare(x["metric"], pairs, x["chance"])
        if 0 < paired.n < min(x["n"], y["n"]):
            notes.append(f"only {paired.n} documents were shown to both, word for word")
    if paired.p is None:
        notes.append(paired.method.removeprefix("none: "))
    return TaskComparison(
        x["task"], x["metric"], x["score"], y["score"], x["n"], y["n"], x["limited"] or y["limited"], x["chance"], paired,
        Standing(False not in (x["separable"], y["separable"]), y["collapsed"] and not x["collapsed"], y["at_chance"]),
        note="; ".join(notes),
    )  # fmt: skip


def _judged(scored: Sequence[TaskComparison]) -> Iterator[TaskComparison]:
    """Correct the p values for the number of tasks, and judge by them."""
    verdicts = statistics.judged([one.paired for one in scored], [one.stood for one in scored])
    for one, (p, verdict) in zip(scored, verdicts, strict=True):
        yield replace(one, p_holm=p, verdict=verdict)


def _notes(
    a: MeasuredVariant, b: MeasuredVariant, left: Collection[str], tables: dict[str, tuple[Values, ...]]
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
    if left:
        yield f"scored for one of them only: {', '.join(sorted(left))}"
    missing = [name for name, rows in tables.items() if not rows]
    if missing:
        yield f"not measured for both in the same way: {', '.join(missing)}"
