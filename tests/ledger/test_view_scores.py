"""Views of scores: intervals, verdicts, floors, what is retained, and the gate."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsebench.benchmarks.catalog import all_tasks
from sparsebench.ledger import query, statistics
from sparsebench.ledger.statistics import Pairs
from sparsebench.ledger.store import Ledger
from tests.ledger import samples
from tests.ledger.made import Hold, Records, Scored, elsewhere, errors, of, other_cell, outcomes, windows, without_skill


def test_a_task_on_which_dense_itself_is_at_chance_cannot_tell(scored: Scored, hold: Hold) -> None:
    for right, cannot in ((80, False), (50, True)):
        dense, variant = scored(outcomes([1] * right + [0] * (100 - right)), outcomes([1, 0] * 50))
        ask = hold([dense, variant])
        for view in ("scores", "curves"):
            assert ask(f"SELECT DISTINCT dense_at_chance FROM {view}").rows == ((cannot,),)
        lost = ask("SELECT variant_id FROM _ruined").rows
        assert lost == (() if cannot else ((variant["variant"]["id"],),)), "a variant cannot be ruined by such a task"


@pytest.mark.parametrize(("right", "ruined"), [(12, True), (35, False)])
def test_a_variant_that_is_shown_to_keep_less_than_a_twentieth_of_the_skill_is_ruined(
    scored: Scored, hold: Hold, right: int, ruined: bool
) -> None:
    """Where chance is zero, a few right answers are above it. Of 35, which are 5%, that little is not shown."""
    sides = [outcomes([1] * count + [0] * (1000 - count)) | {"chance": 0.0} for count in (700, right)]
    ask = hold(scored(*sides))
    assert ask("SELECT at_chance FROM scores WHERE sparsity > 0").rows == ((False,),)
    (row,) = ask("FROM gate").dicts()
    assert row["ruined"] == ruined and not row["passes"]


def test_more_zeros_are_ruined_too(found: Records, scored: Scored, hold: Hold) -> None:
    dense, variant = scored(outcomes([1] * 80 + [0] * 20), outcomes([1, 0] * 50))
    timed = of(found, stage="latency", model="smol", method="magnitude")
    assert max(one["variant"]["sparsity"] for one in timed) > 0.5
    ruined = {row[0] for row in hold([dense, variant, *timed])("SELECT variant_id FROM _ruined").rows}
    more = {one["variant"]["id"] for one in timed if one["variant"]["sparsity"] >= 0.5}
    assert ruined == more | {variant["variant"]["id"]}


BASE = [300.0 + at % 5 for at in range(30)]
WHOLE = outcomes([1] * 80 + [0] * 20)


@pytest.mark.parametrize(
    ("dense", "variant", "passes"),
    [
        (WHOLE, outcomes([1] * 79 + [0] * 21), True),
        (WHOLE, outcomes([1] * 78 + [0] * 22), False),
        (windows(BASE), windows([value + 9 for value in BASE]), True),
        (windows(BASE), windows([value + 10 for value in BASE]), False),
    ],
)
def test_the_gate_asks_for_nineteen_twentieths_of_the_skill_and_a_tenth_of_the_perplexity(
    scored: Scored, hold: Hold, dense: dict, variant: dict, passes: bool
) -> None:
    records = scored(dense, variant)
    (row,) = hold(records)("FROM gate").dicts()
    assert (row["variant_id"], row["passes"]) == (records[1]["variant"]["id"], passes)
    assert not row["ruined"] and row["tasks"] == 1
    assert row["weakest"] == ("piqa" if dense["task"] == "piqa" else None)
    assert (row["ratio"] is None) == (dense["task"] == "piqa")


def _of_two_names(first: Records, second: Records) -> Records:
    """Another manifest calls the checkpoint differently and scores another task."""
    for record in second:
        record |= {key: f"{record[key]}-arc" for key in ("cell_id", "key")} | {"manifest": "second"}
        record["settings"] |= {"task": "arc_easy"}
    plans = [_plan_of(records, model) for records, model in ((first, "smol"), (second, "smol-again"))]
    return [*plans, *first, *second]


def test_a_variant_of_two_names_is_judged_once(found: Records, scored: Scored, hold: Hold) -> None:
    first = scored(outcomes([1] * 80 + [0] * 20), outcomes([1] * 80 + [0] * 20))
    second = scored(outcomes([1] * 80 + [0] * 20, "arc_easy"), outcomes([1] * 60 + [0] * 40, "arc_easy"))
    sizes = [size for record in first for size in of(found, stage="storage", id=record["variant"]["id"])]
    ask = hold(_of_two_names([*first, *sizes], second))
    (row,) = ask("FROM gate").dicts()
    assert (row["tasks"], row["weakest"], row["passes"]) == (2, "arc_easy", False)
    (lost,) = ask("FROM _losses").dicts()
    assert (lost["tasks"], lost["losses"], lost["cleared"]) == (2, 1, 0)
    assert 0 < lost["share"] < 1


def test_of_tasks_that_keep_as_little_the_first_by_name_is_weakest(scored: Scored, hold: Hold) -> None:
    values = outcomes([1] * 80 + [0] * 20)
    records = scored(values, values)
    for task in ("zebra", "arc_easy"):
        result = outcomes([1] * 80 + [0] * 20, task)
        records += [other_cell(record, task, result, task=task) for record in records[:2]]
    for order in (records, records[::-1]):
        assert hold(order)("SELECT weakest FROM gate").rows == (("arc_easy",),)


def _plan_of(records: Records, model: str) -> dict[str, Any]:
    """A plan of these cells that calls the model so."""
    names = ("cell_id", "key", "stage", "settings")
    cells = [
        {name: one[name] for name in names} | {"label": "", "variant": one["variant"] | {"model": model}}
        for one in records
    ]
    base = {"format": 2, "kind": "plan", "machine": "", "written_at": samples.START.isoformat()}
    return base | {"manifest": records[0]["manifest"], "cells": cells}


def test_what_nobody_scored_fails_the_gate(found: Records, scored: Scored, hold: Hold) -> None:
    timed = of(found, stage="latency", model="smol", method="magnitude")
    records = scored(WHOLE, outcomes([1] * 75 + [0] * 25))
    told = dict(hold([*records, *timed])("SELECT variant_id, passes FROM gate").rows)
    more = {one["variant"]["id"] for one in timed if one["variant"]["sparsity"] >= 0.5}
    assert len(more) > 1 and told == dict.fromkeys(more, False), "and fewer zeros have no row"


@pytest.mark.parametrize("late", [False, True])
def test_a_better_floor_takes_the_place_of_chance(scored: Scored, tmp_path: Path, late: bool) -> None:
    records = scored(outcomes([1] * 90 + [0] * 10), outcomes([1] * 80 + [0] * 20))
    floors = [
        without_skill(records[1], "zero-weights", [1] * 40 + [0] * 60),
        without_skill(records[1], "random-weights", [1] * 70 + [0] * 30),
    ]
    path = tmp_path / "f.duckdb"
    for batch in [records, floors] if late else [[*floors, *records]]:
        Ledger(path).ingest(batch)
    with query.session(path) as ask:
        (row,) = ask("FROM vs_dense").dicts()
        found = ask("SELECT recipe, floor, models, separable FROM floors").rows
        methods = ask("SELECT DISTINCT method FROM results").rows
    assert (row["chance"], row["floor"], row["verdict"]) == (0.7, 0.7, "worse")
    assert row["retained"] == pytest.approx((0.8 - 0.7) / (0.9 - 0.7))
    assert found == (("random-weights", 0.7, 2, True),)
    assert {*methods} == {("dense",), ("magnitude",)}


def test_a_floor_is_one_model_however_many_dense_scores_it_is_beside(scored: Scored, hold: Hold) -> None:
    dense, variant = scored(outcomes([1] * 40))
    floor = without_skill(variant, "zero-weights", [0] * 40)
    assert hold([dense, elsewhere(dense, "second"), floor])("SELECT models FROM floors").rows == ((1,),)


def test_a_task_without_a_better_dense_model_is_invalid(scored: Scored, hold: Hold) -> None:
    records = scored(outcomes([1] * 90 + [0] * 10), outcomes([1] * 50 + [0] * 50))
    ask = hold([*records, without_skill(records[1], "zero-weights", [0] * 5 + [1] * 90 + [0] * 5)])
    (row,) = ask("FROM vs_dense").dicts()
    assert (row["verdict"], row["retained"]) == ("invalid", None)
    assert row["p"] < 1e-6, "what it is not to be told apart from is another matter"
    assert ask("SELECT DISTINCT dense_at_chance FROM scores").rows == ((True,),)
    assert (row["tests"], row["p_holm"], row["q_tests"], row["q"]) == (0, None, 0, None), "nor is it one of a family"


def test_the_floor_of_an_error_rate_is_used_in_its_own_direction(scored: Scored, hold: Hold) -> None:
    records = scored(errors([1.0, 0.0] * 40), errors([4.0, 3.0] * 40))
    zero, random = errors([10.0] * 80), errors([9.0, 7.0] * 40)
    floors = [without_skill(records[1], f"{name}-weights", one) for name, one in (("zero", zero), ("random", random))]
    ask = hold([*records, *floors])
    (row,) = ask("FROM vs_dense").dicts()
    assert (row["chance"], row["floor"], row["verdict"]) == (pytest.approx(0.8), pytest.approx(0.8), "worse")
    assert row["retained"] == pytest.approx((0.8 - 0.35) / (0.8 - 0.05))
    assert row["retained_low"] < row["retained"] < row["retained_high"] < 1
    assert ask("SELECT bool_or(at_chance) FROM scores").rows == ((False,),)


def test_an_error_rate_of_one_is_that_of_writing_nothing(scored: Scored, hold: Hold) -> None:
    ask = hold(scored(errors([1.0, 0.0] * 40), errors([10.0, 11.0] * 40)))
    (row,) = ask("FROM vs_dense").dicts()
    assert (row["chance"], row["retained"]) == (1.0, pytest.approx((1 - 1.05) / (1 - 0.05)))
    assert ask("SELECT at_chance FROM scores ORDER BY score").rows == ((False,), (True,))


def test_what_is_retained_of_a_perplexity_is_counted_in_logarithms(scored: Scored, hold: Hold) -> None:
    own = [300.0 + 7 * at for at in range(12)]
    records = scored(windows(own), windows([value + 100 + at % 3 for at, value in enumerate(own)]))
    floor = without_skill(records[1], "zero-weights", windows([1000.0] * 12))
    (row,) = hold([*records, floor])("FROM vs_dense").dicts()
    assert row["chance"] == pytest.approx(math.exp(10))
    dense_loss = sum(own) / 1200
    assert row["retained"] == pytest.approx((10 - dense_loss - 1.01) / (10 - dense_loss))
    assert row["retained_low"] < row["retained"] < row["retained_high"] < 1


def test_a_variant_at_the_floor_is_not_credited_with_no_difference(scored: Scored, hold: Hold) -> None:
    """Thirty documents show no loss of four, but neither do they show that the variant is above the floor."""
    records = scored(outcomes([1] * 26 + [0] * 4), outcomes([0] * 4 + [1] * 22 + [0] * 4))
    floor = without_skill(records[1], "zero-weights", [0] * 7 + [1] * 19 + [0] * 4)
    (row,) = hold([*records, floor])("SELECT p_holm, verdict, documents_to_clear FROM vs_dense").dicts()
    assert row["p_holm"] > 0.05
    assert (row["verdict"], row["documents_to_clear"]) == ("at chance", None)
    (alone,) = hold(records)("SELECT p_holm, verdict FROM vs_dense").dicts()
    assert (alone["p_holm"], alone["verdict"]) == (row["p_holm"], "no difference detected")


def test_the_documents_that_would_rule_a_loss_out_do(scored: Scored, hold: Hold) -> None:
    """On as many documents of the same kind the one-sided limit lies below the margin; where it does already, none is named."""
    kinds = [(1, 1)] * 320 + [(1, 0)] * 20 + [(0, 1)] * 20 + [(0, 0)] * 40
    for times in (1, 8):
        ask = hold(scored(*(outcomes([kind[side] for kind in kinds] * times) for side in (0, 1))))
        (found,) = ask("SELECT loses_less, documents_to_clear, documents_to_clear(0.01, 0.1) FROM vs_dense").rows
        assert found[0] is (times == 8)
        # Newcombe's interval is a little wider than the normal one behind the macro.
        assert found[1] is None if times == 8 else found[2] < found[1] < 1.06 * found[2]


@pytest.mark.parametrize(("lost", "shown"), [(0, True), (3, True), (30, False)])
def test_shown_to_lose_less_than_a_point(scored: Scored, hold: Hold, lost: int, shown: bool) -> None:
    values = [1] * 1000 + [0] * 500
    (row,) = hold(scored(outcomes(values), outcomes([0] * lost + values[lost:])))("FROM vs_dense").dicts()
    assert row["loses_less"] is shown
    assert row["loss_at_most"] > lost / 1500


@pytest.mark.parametrize(("shift", "verdict"), [(40.0, "worse"), (-40.0, "better"), (0.0, "no difference detected")])
def test_a_lower_perplexity_is_better(scored: Scored, hold: Hold, shift: float, verdict: str) -> None:
    base = [300.0 + 7 * (at % 5) for at in range(30)]
    dense, variant = (windows([value + more for value in base]) for more in (0.0, shift))
    ask = hold(scored(dense, variant))
    (row,) = ask("FROM vs_dense").dicts()
    assert (row["verdict"], row["pairs"], row["retained"], row["chance"]) == (verdict, 30, None, None)
    assert row["difference"] == pytest.approx(variant["score"] - dense["score"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["ratio"] == pytest.approx(variant["score"] / dense["score"])
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert all(low < score < high for score, low, high in ask("SELECT score, low, high FROM scores").rows)


@pytest.mark.parametrize(("metric", "turned"), [("perplexity", -2.0), ("per", -2.0), ("acc", 2.0), ("perplex", 2.0)])
def test_sql_and_python_agree_on_what_is_better(metric: str, turned: float, scored: Scored, hold: Hold) -> None:
    dense, _ = scored()
    dense["result"]["metric"] = metric
    assert hold([dense])("SELECT _goodness(2.0, higher_is_better) FROM scores").rows == ((turned,),)
    nothing = np.array([])
    assert statistics.compare(metric, Pairs(nothing, nothing, nothing)).higher_is_better == (turned > 0)


@pytest.mark.parametrize(
    ("metric", "score", "collapsed"),
    [("perplexity", 10_001.0, True), ("perplexity", 10_000.0, False), ("word_perplexity", 2e4, True),
     ("bits_per_byte", 2e4, False), ("users_perplexity", 2e4, False)],
)  # fmt: skip
def test_a_model_collapsed(scored: Scored, hold: Hold, metric: str, score: float, collapsed: bool) -> None:
    dense, _ = scored()
    dense["result"] |= {"metric": metric, "score": score}
    assert hold([dense])("SELECT metric, collapsed FROM scores").rows == ((metric, collapsed),)


def test_a_metric_that_nobody_knows_is_better_when_higher(scored: Scored, hold: Hold) -> None:
    sides = [outcomes(values) | {"metric": "users_perplexity"} for values in ([0] * 20 + [1] * 20, [1] * 40)]
    ask = hold(scored(*sides))
    assert ask("SELECT verdict, difference FROM vs_dense").rows == (("better", 0.5),)
    assert set(ask("SELECT DISTINCT higher_is_better, scale, collapsed FROM curves").rows) == {(True, "unknown", False)}


def test_every_task_of_ours_has_a_metric_that_is_known() -> None:
    for task in all_tasks().values():
        known = statistics.Metric.named(task.metric)
        assert known.scale != "unknown", f"{task.name}: ledger/views/00_metrics.sql does not know {task.metric}"
        assert known.higher_is_better == ("lower is better" not in task.description), task.name


def test_windows_that_only_one_of_two_perplexities_has_give_no_ratio(scored: Scored, hold: Hold) -> None:
    records = scored(windows([300.0] * 12), windows([340.0] * 12))
    for document in records[1]["result"]["outcomes"][5:]:
        document["doc_hash"] = "other tokens"
    ask = hold(records)
    assert ask("SELECT pairs, ratio FROM vs_dense").rows == ((5, None),)
    assert ask("SELECT DISTINCT sparsity FROM curves").rows == ((0.0,),)


def test_two_windows_are_two_though_they_show_no_difference(scored: Scored, hold: Hold) -> None:
    ask = hold(scored(windows([300.0, 310.0]), windows([340.0, 330.0])))
    assert ask("SELECT pairs, verdict FROM vs_dense").rows == ((2, None),)
    assert ask("SELECT sparsity FROM curves ORDER BY ALL").rows == ((0.0,), (0.5,))
