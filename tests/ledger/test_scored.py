"""Scores outside a ledger are judged as inside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.ledger import query, scored
from sparsebench.ledger.store import Ledger
from tests.ledger.made import of


def result(values: list[float], task: str = "t") -> ScoreResult:
    outcomes = tuple(Outcome(str(at), f"h{at}", value) for at, value in enumerate(values))
    return ScoreResult(task, "acc", float(np.mean(values)), 0.01, len(values), False, 0.5, outcomes, {})


DENSE = result([1.0] * 90 + [0.0] * 10)
WORN = result([0.0] * 20 + [1.0] * 70 + [0.0] * 10)


def test_a_row_says_what_the_ledger_says(found: list[dict], tmp_path: Path) -> None:
    dense, variant = (
        of(found, stage="benchmarks", model="smol", method=method)[0] for method in ("dense", "magnitude")
    )
    sides = [
        ScoreResult(**{**r["result"], "outcomes": tuple(Outcome(**one) for one in r["result"]["outcomes"])})
        for r in (variant, dense)
    ]
    Ledger(tmp_path / "l.duckdb").ingest([dense, variant])
    row = scored.rows({"piqa": sides[0]}, {"piqa": sides[1]})[0]
    wanted = query.run(
        tmp_path / "l.duckdb", "SELECT v.*, s.low AS own_low FROM vs_dense v JOIN scores s USING (record_id)"
    ).dicts()[0]
    for name in ("difference", "retained", "p_holm", "detectable"):
        assert row[name] == pytest.approx(wanted[name])
    assert row["difference_low"] == pytest.approx(wanted["low"]) and row["low"] == pytest.approx(wanted["own_low"])
    assert (row["verdict"], row["other"]) == (wanted["verdict"], wanted["dense_score"])


def test_documents_are_paired_by_what_was_shown() -> None:
    moved = replace(
        DENSE, outcomes=tuple(replace(one, doc_hash="x") if at < 30 else one for at, one in enumerate(DENSE.outcomes))
    )
    assert scored.compare(WORN, moved).n == 70
    assert scored.compare(WORN, replace(DENSE, score=0.3)).method.startswith("none")
    assert scored.rows({"t": WORN}, {})[0]["verdict"] is None
    errors = replace(DENSE, metric="wer", score=0.3)
    assert not scored.compare(errors, errors).higher_is_better, "also where nothing is compared"


def test_alone_a_score_has_an_interval_and_what_it_could_show() -> None:
    row = scored.rows({"t": WORN})[0]
    assert row["low"] < row["score"] == 0.7 < row["high"]
    assert row["detectable"] == pytest.approx(0.088, abs=0.002)
    assert scored.rows({"t": result([0.3, 0.5])})[0]["detectable"] is None
    words = tuple(replace(one, label=5.0) for one in WORN.outcomes)
    row = scored.rows({"t": replace(WORN, metric="per", score=0.14, outcomes=words)})[0]
    assert row["low"] < 0.14 < row["high"] and row["detectable"] is None, (
        "errors of five symbols are not right and wrong"
    )


def test_outcomes_are_lines_with_both_sides(tmp_path: Path) -> None:
    scored.write_outcomes(tmp_path / "o.jsonl", {"t": WORN}, {"t": DENSE})
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(lines) == 100
    assert lines[0] == {"task": "t", "metric": "acc", "doc_id": "0", "doc_hash": "h0", "value": 0.0, "label": None,
                        "cluster": None, "against": 1.0}  # fmt: skip
    scored.write_outcomes(tmp_path / "o.jsonl", {"t": WORN})
    assert "against" not in json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])


def test_a_collapse_and_a_score_at_chance_override_the_test_as_in_the_ledger() -> None:
    def windows(losses: list[float]) -> ScoreResult:
        outcomes = tuple(Outcome(str(at), f"h{at}", value, 100.0) for at, value in enumerate(losses))
        score = float(np.exp(sum(losses) / (100 * len(losses))))
        return ScoreResult("t", "perplexity", score, 0.0, len(losses), False, None, outcomes, {})

    # One window gives no test, and a perplexity of exp(12) needs none.
    (row,) = scored.rows({"t": windows([1200.0])}, {"t": windows([300.0])})
    assert (row["p_holm"], row["verdict"]) == (None, "collapsed")
    (row,) = scored.rows({"t": windows([330.0, 331.0, 334.0])}, {"t": windows([300.0, 302.0, 303.0])})
    assert row["verdict"] == "worse" and row["loss_at_most"] > row["difference"] > 0
    few = result([0.0] * 4 + [1.0] * 15 + [0.0] * 6)
    (row,) = scored.rows({"t": few}, {"t": result([1.0] * 19 + [0.0] * 6)})
    assert row["p_holm"] > 0.05
    assert row["verdict"] == "at chance"
