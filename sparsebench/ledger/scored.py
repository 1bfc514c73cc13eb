"""Scores that are not in a ledger, judged as the ledger judges them: what ``sparsebench score`` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Comparison, Metric, Pairs, VerdictOverrides
from sparsebench.ledger.statistics.contract import ValuesAndLabels

Results = Mapping[str, ScoreResult]


def rows(results: Results, against: Results | None = None) -> list[dict[str, Any]]:
    """Return one row per task: the score and its interval and, with ``against``, the paired difference and verdict."""
    table = [_row(result) for result in results.values()]
    if any("divergence" in result.protocol for result in results.values()):
        for row, result in zip(table, results.values(), strict=True):
            row |= {name: result.protocol.get(name) for name in ("divergence", "same_top")}
    if against is None:
        for row, result in zip(table, results.values(), strict=True):
            mean = Metric.named(result.metric).pooling == "mean"
            binary = mean and all(outcome.value in (0, 1) for outcome in result.outcomes)
            row["detectable"] = statistics.detectable(result.n) if binary else None
        return table
    not_paired = statistics.not_compared("the other model has no score")
    comparisons = [
        compare(result, against[task]) if task in against else not_paired for task, result in results.items()
    ]
    overrides = [_overrides(row, against.get(row["task"])) for row in table]
    for row, comparison, (p, verdict) in zip(
        table, comparisons, statistics.holm_verdicts(comparisons, overrides), strict=True
    ):
        row["other"] = against[row["task"]].score if comparison is not not_paired else None
        row |= {
            "difference": comparison.difference, "difference_low": comparison.low, "difference_high": comparison.high,
            "retained": comparison.retained, "p_holm": p, "verdict": verdict, "detectable": comparison.detectable,
            "loss_at_most": comparison.loss_at_most,
        }  # fmt: skip
    return table


def _row(result: ScoreResult) -> dict[str, Any]:
    codes = statistics.encode_clusters(outcome.cluster for outcome in result.outcomes)
    interval = statistics.interval(result.metric, result.score, *_columns(result.outcomes), codes)
    return {
        "task": result.task, "metric": result.metric, "score": result.score, "low": interval.low, "high": interval.high,
        "stderr": result.stderr, "n": result.n, "limited": result.limited, "chance": _chance(result),
    }  # fmt: skip


def _overrides(row: Mapping[str, Any], dense: ScoreResult | None) -> VerdictOverrides:
    """Return what decides the verdict before any test. Only a ledger has floors: without them no task is invalid."""
    if dense is None:
        return VerdictOverrides()
    metric = Metric.named(row["metric"])
    limit = metric.collapsed_above
    return VerdictOverrides(
        collapsed=limit is not None and row["score"] > limit >= dense.score,
        at_chance=statistics.at_chance(row["low"], row["high"], row["chance"], metric.higher_is_better),
    )


def compare(variant: ScoreResult, dense: ScoreResult) -> Comparison:
    """Compare two scores of one task, on the documents that both models were shown, word for word."""
    if variant.metric != dense.metric or not (_explained(variant) and _explained(dense)):
        return statistics.not_reproducible(variant.metric)
    dense_outcomes = {_document(outcome): outcome for outcome in dense.outcomes}
    shared = [outcome for outcome in variant.outcomes if _document(outcome) in dense_outcomes]
    values, variant_labels = _columns(shared)
    dense_values, labels = _columns([dense_outcomes[_document(outcome)] for outcome in shared])
    codes = statistics.encode_clusters(outcome.cluster for outcome in shared)
    pairs = Pairs(values, dense_values, labels, codes, variant_labels)
    return statistics.compare(variant.metric, pairs, _chance(dense))


def _explained(result: ScoreResult) -> bool:
    return statistics.reproduces_score(result.metric, result.score, *_columns(result.outcomes))


def _chance(result: ScoreResult) -> float | None:
    """Return the score of guessing: the task's, else the metric's."""
    return Metric.named(result.metric).guessed if result.chance is None else result.chance


def write_outcomes(path: Path, results: Results, against: Results | None = None) -> None:
    """Write every document of every task as a line of JSON.

    With ``against``, a line also holds the other model's outcome (null: the document was not shown to it).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for task, result in results.items():
            other_outcomes = against[task].outcomes if against and task in against else ()
            values = {_document(outcome): outcome.value for outcome in other_outcomes}
            for outcome in result.outcomes:
                line = {"task": task, "metric": result.metric} | asdict(outcome)
                if against is not None:
                    line["against"] = values.get(_document(outcome))
                file.write(json.dumps(line) + "\n")


def protocol_and_outcomes(result: ScoreResult) -> dict[str, Any]:
    """Return the protocol and the outcomes as plain data for JSON."""
    return {"protocol": result.protocol, "outcomes": [asdict(outcome) for outcome in result.outcomes]}


def _document(outcome: Outcome) -> tuple[str, str]:
    """Return what names a document as it was shown."""
    return outcome.doc_id, outcome.doc_hash


def _columns(outcomes: Sequence[Outcome]) -> ValuesAndLabels:
    """Return the values and the labels (n,) of outcomes, float64; NaN stands for a missing label."""
    columns = ([outcome.value for outcome in outcomes], [outcome.label for outcome in outcomes])
    values, labels = (np.array(column, dtype=np.float64) for column in columns)
    return values, labels
