"""Scores that are not in a ledger, judged as the ledger judges them: what ``sparsebench score`` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Comparison, Interval, Metric, Pairs, Standing

Results = Mapping[str, "ScoreResult"]


def rows(results: Results, against: Results | None = None) -> list[dict[str, Any]]:
    """Return one row per task: the score and its interval and, with ``against``, the paired difference and verdict."""
    found = [_row(result) for result in results.values()]
    if against is None:
        for row, result in zip(found, results.values(), strict=True):
            mean = Metric.named(result.metric).pooling == "mean"
            binary = mean and all(outcome.value in (0, 1) for outcome in result.outcomes)
            row["detectable"] = statistics.detectable(result.n) if binary else None
        return found
    missing = statistics.none("the other model has no score")
    pairs = [compare(result, against[task]) if task in against else missing for task, result in results.items()]
    stood = [_standing(row, against.get(row["task"])) for row in found]
    for row, shown, (p, verdict) in zip(found, pairs, statistics.judged(pairs, stood), strict=True):
        row["other"] = against[row["task"]].score if shown is not missing else None
        row |= {
            "difference": shown.difference, "difference_low": shown.low, "difference_high": shown.high,
            "retained": shown.retained, "p_holm": p, "verdict": verdict, "detectable": shown.detectable,
            "loss_at_most": shown.loss_at_most,
        }  # fmt: skip
    return found


def _standing(row: Mapping[str, Any], dense: ScoreResult | None) -> Standing:
    """Return what decides the verdict before any test. Only a ledger has floors: without them no task is invalid."""
    if dense is None:
        return Standing()
    metric, chance = Metric.named(row["metric"]), row["chance"]
    limit = metric.collapsed_above
    return Standing(
        collapsed=limit is not None and row["score"] > limit >= dense.score,
        at_chance=statistics.at_chance(row["low"], row["high"], chance, metric.higher_is_better),
    )


def interval(result: ScoreResult) -> Interval:
    """Return the 95% interval of a score."""
    values, labels = _columns(result.outcomes)
    codes = statistics.codes(outcome.cluster for outcome in result.outcomes)
    return statistics.interval(result.metric, result.score, values, labels, codes)


def compare(variant: ScoreResult, dense: ScoreResult) -> Comparison:
    """Compare two scores of one task, on the documents that both models were shown, word for word."""
    if variant.metric != dense.metric or not all(map(_explained, (variant, dense))):
        return statistics.unexplained(variant.metric)
    other = {(outcome.doc_id, outcome.doc_hash): outcome for outcome in dense.outcomes}
    both = [(one, other[key]) for one in variant.outcomes if (key := (one.doc_id, one.doc_hash)) in other]
    values, owns = _columns([one for one, _ in both])
    others, labels = _columns([one for _, one in both])
    codes = statistics.codes(one.cluster for one, _ in both)
    return statistics.compare(variant.metric, Pairs(values, others, labels, codes, owns), _chance(dense))


def _chance(result: ScoreResult) -> float | None:
    """Return the score of guessing: the task's, else the metric's."""
    return Metric.named(result.metric).guessed if result.chance is None else result.chance


def _explained(result: ScoreResult) -> bool:
    return statistics.explains(result.metric, result.score, *_columns(result.outcomes))


def write_outcomes(path: Path, results: Results, against: Results | None = None) -> None:
    """Write every document of every task as a line of JSON.

    With ``against``, a line also holds the other model's outcome (null: the document was not shown to it).
    """
    with path.open("w", encoding="utf-8") as file:
        for task, result in results.items():
            other = {} if against is None or task not in against else {
                (one.doc_id, one.doc_hash): one.value for one in against[task].outcomes
            }  # fmt: skip
            for outcome in result.outcomes:
                line = {"task": task, "metric": result.metric} | asdict(outcome)
                if against is not None:
                    line["against"] = other.get((outcome.doc_id, outcome.doc_hash))
                file.write(json.dumps(line) + "\n")


def whole(result: ScoreResult) -> dict[str, Any]:
    """Return the protocol and the outcomes as plain data for JSON."""
    kept = asdict(result)
    return {"protocol": kept["protocol"], "outcomes": kept["outcomes"]}


def _row(result: ScoreResult) -> dict[str, Any]:
    around = interval(result)
    return {
        "task": result.task, "metric": result.metric, "score": result.score, "low": around.low, "high": around.high,
        "stderr": result.stderr, "n": result.n, "limited": result.limited, "chance": _chance(result),
    }  # fmt: skip


def _columns(outcomes: Sequence[Outcome]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the values and the labels (n,) of outcomes, float64; NaN stands for a missing label."""
    values = np.array([one.value for one in outcomes], dtype=np.float64)
    return values, np.array([np.nan if one.label is None else one.label for one in outcomes], dtype=np.float64)
