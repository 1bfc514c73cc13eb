"""Which record counts for a cell, and with which others it is compared."""

import copy
from datetime import timedelta
from pathlib import Path

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from tests.ledger import samples
from tests.ledger.made import Ask, Hold, Records, Scored, elsewhere, of, other_cell, outcomes, windows, without_skill


@pytest.mark.parametrize(("machine", "difference"), [("own", -0.5), ("second", -0.25), ("third", -0.25)])
def test_a_score_is_compared_with_one_dense_score_of_its_own_machine_if_it_can_be(
    scored: Scored, hold: Hold, machine: str, difference: float
) -> None:
    dense, variant = scored(outcomes([1] * 40), outcomes([1] * 20 + [0] * 20))
    second = elsewhere(dense, "second") | {"result": outcomes([1] * 30 + [0] * 10)}
    ask = hold([dense, second, variant if machine == "own" else elsewhere(variant, machine)])
    asked = "SELECT difference, difference = score - dense_score, tests, q_tests, p_holm = p AND q = p FROM vs_dense"
    assert ask(asked).rows == ((difference, True, 1, 1, True),)
    assert ask("SELECT count(*) FROM results WHERE method <> 'dense'").rows == ((1,),)


def test_a_cell_of_two_machines_counts_once_its_own_first(found: Records, tmp_path: Path) -> None:
    path = tmp_path / "machines.duckdb"
    theirs = [elsewhere(record, "second") | {"manifest": "theirs"} for record in found[1:]]
    Ledger(path).ingest(found + theirs)
    machines = dict(query.run(path, "SELECT manifest, list(DISTINCT machine) FROM scores GROUP BY manifest").rows)
    assert machines == {"sample": [found[1]["environment"]["machine"]], "theirs": ["second"]}
    counts = "SELECT stage, count(*), count(DISTINCT cell_id) FROM cells WHERE manifest = '{}' GROUP BY stage"
    for manifest in machines:
        for stage, rows, cells in query.run(path, counts.format(manifest)).rows:
            assert rows == (2 if stage in ("latency", "memory") else 1) * cells, (manifest, stage)
    asked = "SELECT tests, q_tests FROM vs_dense WHERE manifest = '{}' ORDER BY ALL"
    assert query.run(path, asked.format("sample")).rows == query.run(path, asked.format("theirs")).rows
    Ledger(path).ingest([elsewhere(record, "second", days=2) for record in found[1:]])
    assert query.run(path, "SELECT DISTINCT machine FROM scores").rows == (("second",),), "the newest of its own"


def test_the_front_of_a_perplexity_is_where_it_is_low(found: Records, hold: Hold) -> None:
    records = copy.deepcopy([record for record in found if "variant" in record])
    for record in of(records, stage="benchmarks", model="smol"):
        variant = record["variant"]
        lost = {"dense": 0.0, "magnitude": 30 * variant["sparsity"], "random": 90.0}[variant["method"]]
        record |= {"result": windows([300.0 + lost] * 30), "settings": {"task": "perplexity"}}
    asked = "SELECT DISTINCT method, on_front FROM pareto WHERE metric = 'perplexity' AND cost = 'bytes' ORDER BY ALL"
    assert hold(records)(asked).rows == (("dense", True), ("magnitude", True), ("random", False))


def test_other_settings_are_not_compared_whatever_their_order(scored: Scored, hold: Hold) -> None:
    dense, variant = scored()
    dense["settings"] = dict(reversed(dense["settings"].items()))
    assert hold([dense, variant])("SELECT count(*) FROM vs_dense").rows == ((1,),)
    dense["settings"] |= {"limit": 7}
    assert hold([dense, variant])("SELECT count(*) FROM vs_dense").rows == ((0,),)


def test_cells_are_the_newest_plans_and_missing_without_a_record(found: Records, hold: Hold) -> None:
    ask = hold(found[:5])
    rows = dict(ask("SELECT status, count(*) FROM cells GROUP BY 1").rows)
    assert rows == {"done": 4, "missing": len(found[0]["cells"]) - 4}
    assert ask("SELECT count(*) FROM cells WHERE model IS NULL OR label IS NULL").rows == ((0,),)
    later = (samples.START + timedelta(hours=1)).isoformat()
    shorter = found[0] | {"written_at": later, "cells": found[0]["cells"][:3]}
    assert hold([*found, shorter])("SELECT count(*) FROM cells").rows == ((3,),)


def test_results_show_each_manifest_and_what_has_no_plan_or_score(found: Records, ask: Ask, hold: Hold) -> None:
    both = hold([*found, found[0] | {"manifest": "other"}])
    rows = both("SELECT manifest, count(*) FROM results GROUP BY 1 ORDER BY 1").rows
    assert rows == (("other", 12), ("sample", 12))
    asked = "SELECT * FROM results ORDER BY ALL"
    assert hold(found[1:])(asked).rows == ask(asked).rows
    unscored = hold([record for record in found if record.get("stage") != "benchmarks"])
    assert unscored("SELECT task, count(*), count(bytes_packed) FROM results GROUP BY 1").rows == ((None, 8, 8),)


def test_a_score_on_some_documents_has_its_line_beside_one_on_all(scored: Scored, hold: Hold) -> None:
    some = scored(*(outcomes(values) | {"limited": True} for values in ([1] * 40, [1] * 20 + [0] * 20)))
    every = other_cell(some[0], "all", outcomes([1] * 50), limit=None) | {"manifest": "whole"}
    asked = "SELECT DISTINCT n, sparsity, dense FROM curves ORDER BY ALL"
    assert hold([*some, every])(asked).rows == ((40, 0.0, 1.0), (40, 0.5, 1.0), (50, 0.0, 1.0))


def test_scores_with_more_examples_have_a_panel_of_their_own(scored: Scored, hold: Hold) -> None:
    dense, variant = scored(outcomes([1] * 40), outcomes([1] * 20 + [0] * 20))
    shown = [
        other_cell(dense, "five", outcomes([1] * 40), num_fewshot=5),
        other_cell(variant, "five", outcomes([1] * 30 + [0] * 10), num_fewshot=5),
    ]
    ask = hold([dense, variant, *shown])
    asked = "SELECT panel LIKE '%5 examples%' AS five, score FROM curves WHERE sparsity > 0 ORDER BY ALL"
    assert ask(asked).rows == ((False, 0.5), (True, 0.75))
    assert ask("SELECT DISTINCT num_fewshot FROM results ORDER BY ALL").rows == ((5,), (None,))


def test_another_limit_of_a_task_beats_nobody(found: Records, hold: Hold) -> None:
    records = copy.deepcopy(of(found, model="smol", method="dense"))
    (one,) = [each for each in of(records, stage="benchmarks") if each["result"]["task"] == "piqa"]
    one["result"] = outcomes([1] * 41 + [0] * 9)
    better = other_cell(one, "few", outcomes([1] * 9 + [0]), limit=10)
    asked = "SELECT n, bool_and(on_front) FROM pareto WHERE task = 'piqa' GROUP BY n ORDER BY n"
    assert hold([*records, better])(asked).rows == ((10, True), (50, True))


def test_a_task_is_invalid_until_dense_is_measured_again(scored: Scored, tmp_path: Path) -> None:
    dense, variant = scored(outcomes([1] * 50 + [0] * 50), outcomes([1] * 60 + [0] * 40))
    path = tmp_path / "again.duckdb"
    Ledger(path).ingest([dense, variant, without_skill(variant, "zero-weights", [1] * 49 + [0] * 51)])
    assert query.run(path, "SELECT verdict FROM vs_dense").rows == (("invalid",),)
    dense |= {"started_at": (samples.START + timedelta(days=1)).isoformat(), "result": outcomes([1] * 90 + [0] * 10)}
    Ledger(path).ingest([dense])
    assert query.run(path, "SELECT verdict FROM vs_dense").rows == (("worse",),)
