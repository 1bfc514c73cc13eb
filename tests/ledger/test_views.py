"""What the views say: pairing with dense whenever it comes, Holm, retained, verdicts, planned cells, the first runtime."""

from __future__ import annotations

import copy
import math
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sparsebench.ledger import query, statistics
from sparsebench.ledger.statistics import Pairs
from sparsebench.ledger.store import Ledger
from tests.ledger import samples


def of(found: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """The records with these values of stage, or of the variant's fields."""
    return [
        record
        for record in found
        if "variant" in record and all((record | record["variant"])[key] == value for key, value in wanted.items())
    ]


def outcomes(values: list[int], task: str = "piqa") -> dict[str, Any]:
    """A benchmark's result with these 0/1 outcomes."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": None} for at, value in enumerate(values)
    ]
    score = sum(values) / len(values)
    fixed = {"metric": "acc", "stderr": 0.0, "limited": False, "chance": 0.5, "protocol": {}}
    return fixed | {"task": task, "score": score, "n": len(values), "outcomes": documents}


@pytest.fixture
def scored(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The dense model's and one variant's record of one task, outcomes to be set."""
    dense, variant = (
        copy.deepcopy(of(found, stage="benchmarks", model="smol", method=method, sparsity=sparsity)[0])
        for method, sparsity in (("dense", 0.0), ("magnitude", 0.5))
    )
    return [dense, variant]


def test_the_share_of_parameters_that_is_gone(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "removed.duckdb"
    whole = next(one for one in of(found, stage="structure", model="smol", method="dense"))
    made = copy.deepcopy(of(found, stage="make", model="smol")[:2])
    parameters = sum(tensor["count"] for tensor in whole["result"]["tensors"])
    for record, kept in zip(made, (0.75, 1.0), strict=True):
        record["result"]["parameters"] = round(parameters * kept)
    Ledger(path).ingest(made)
    asked = "SELECT variant_id, parameters_removed FROM variants"
    assert {share for _, share in query.run(path, asked).rows} == {None}, "nothing says how many the dense model has"
    Ledger(path).ingest([whole])
    shares = dict(query.run(path, asked).rows)
    ids = [record["variant"]["id"] for record in (*made, whole)]
    assert [shares[one] for one in ids] == pytest.approx([0.25, 0, 0], abs=1e-4)


def test_operations_of_a_token_are_those_of_the_latest_structure(found: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = copy.deepcopy(next(one for one in of(found, stage="structure", model="smol", method="dense")))
    path = tmp_path / "operations.duckdb"
    old = copy.deepcopy(whole)
    del old["result"]["operations_token"]  # as records from before have it
    Ledger(path).ingest([old])
    asked = "SELECT operations_token FROM variants"
    assert query.run(path, asked).rows == ((None,),)
    whole["result"]["operations_token"] = 2.5e8
    whole["started_at"] = (samples.START + timedelta(days=1)).isoformat()
    Ledger(path).ingest([whole])
    assert query.run(path, asked).rows == ((2.5e8,),)


def test_weights_that_a_token_leaves_out_are_no_operations(found: list[dict[str, Any]], tmp_path: Path) -> None:
    making = copy.deepcopy(next(one for one in of(found, stage="make", model="smol")))
    its = [one for one in of(found, stage="structure", model="smol") if one["variant"] == making["variant"]]
    structure = copy.deepcopy(its[0])
    making["result"] |= {"read_share": 0.75, "prunable": 1000}
    structure["result"]["operations_token"] = 5000.0
    path = tmp_path / "skipping.duckdb"
    Ledger(path).ingest([making, structure])
    # A quarter of the 1,000 weights is neither multiplied nor added.
    assert query.run(path, "SELECT operations_token FROM variants").rows == ((4500.0,),)


def test_what_a_token_reads_is_all_but_where_its_making_says_otherwise(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "read.duckdb"
    old, skipping = (copy.deepcopy(one) for one in of(found, stage="make", model="smol")[:2])
    old["result"].pop("read_share", None)  # as records from before have it
    skipping["result"]["read_share"] = 0.6
    Ledger(path).ingest([old, skipping])
    shares = dict(query.run(path, "SELECT variant_id, read_share FROM variants").rows)
    assert [shares[one["variant"]["id"]] for one in (old, skipping)] == [1.0, 0.6]
    path = tmp_path / "bytes.duckdb"
    stored = [one for one in of(found, stage="storage") if one["variant"]["id"] in shares]
    Ledger(path).ingest([old, skipping, *stored])
    read = dict(
        query.run(
            path, "SELECT variant_id, min(round((bytes - read_bytes) / prunable_bytes, 6)) FROM sizes GROUP BY 1"
        ).rows
    )
    assert [read[one["variant"]["id"]] for one in (old, skipping)] == [0, 0.4]


def elsewhere(record: dict[str, Any], machine: str, days: int = 1) -> dict[str, Any]:
    """The same cell's record of another machine, some days later."""
    places = {
        "where": record["where"] | {"id": machine, "machine": machine},
        "environment": record["environment"] | {"id": machine, "machine": machine},
        "started_at": (samples.START + timedelta(days=days)).isoformat(),
    }
    return copy.deepcopy(record) | places


@pytest.mark.parametrize(("machine", "difference"), [("own", -0.5), ("second", -0.25), ("third", -0.25)])
def test_a_score_is_compared_with_one_dense_score_of_its_own_machine_if_it_can_be(
    scored: list[dict[str, Any]], tmp_path: Path, machine: str, difference: float
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 40), outcomes([1] * 20 + [0] * 20)
    second = elsewhere(dense, "second")
    second["result"] = outcomes([1] * 30 + [0] * 10)
    path = tmp_path / "machines.duckdb"
    Ledger(path).ingest([dense, second, variant if machine == "own" else elsewhere(variant, machine)])
    asked = "SELECT difference, difference = score - dense_score, tests, q_tests, p_holm = p AND q = p FROM vs_dense"
    assert query.run(path, asked).rows == ((difference, True, 1, 1, True),)
    assert query.run(path, "SELECT count(*) FROM results WHERE method <> 'dense'").rows == ((1,),)


def test_a_cell_that_two_machines_did_counts_once_and_the_manifests_own_before_anothers(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
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


def test_a_task_on_which_dense_itself_is_at_chance_cannot_tell(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    dense, variant = scored
    for right, cannot in ((80, False), (50, True)):
        dense["result"], variant["result"] = outcomes([1] * right + [0] * (100 - right)), outcomes([1, 0] * 50)
        path = tmp_path / f"{right}.duckdb"
        Ledger(path).ingest(copy.deepcopy(scored))
        for view in ("scores", "curves"):
            assert query.run(path, f"SELECT DISTINCT dense_at_chance FROM {view}").rows == ((cannot,),)
        lost = query.run(path, "SELECT variant_id FROM _ruined").rows
        assert lost == (() if cannot else ((variant["variant"]["id"],),)), "a variant cannot be ruined by such a task"


def test_more_zeros_than_a_ruined_variant_has_are_ruined_too(
    found: list[dict[str, Any]], scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 80 + [0] * 20), outcomes([1, 0] * 50)
    timed = {
        sparsity: next(iter(of(found, stage="latency", model="smol", method="magnitude", sparsity=sparsity)))
        for sparsity in {
            one["variant"]["sparsity"] for one in of(found, stage="latency", model="smol", method="magnitude")
        }
    }
    assert max(timed) > 0.5
    path = tmp_path / "ledger.duckdb"
    Ledger(path).ingest([dense, variant, *timed.values()])
    ruined = {row[0] for row in query.run(path, "SELECT variant_id FROM _ruined").rows}
    assert ruined == {one["variant"]["id"] for sparsity, one in timed.items() if sparsity >= 0.5} | {
        variant["variant"]["id"]
    }


@pytest.mark.parametrize(
    ("right", "task", "passes"),
    [(79, "piqa", True), (78, "piqa", False), (79, "perplexity", True), (78, "perplexity", False)],
)
def test_the_gate_asks_for_nineteen_twentieths_of_the_skill_and_a_tenth_of_the_perplexity(
    scored: list[dict[str, Any]], tmp_path: Path, right: int, task: str, passes: bool
) -> None:
    dense, variant = scored
    if task == "perplexity":
        base = [300.0 + at % 5 for at in range(30)]
        dense["result"], variant["result"] = (
            windows(base),
            windows([value + 9 if passes else value + 10 for value in base]),
        )
    else:
        dense["result"] = outcomes([1] * 80 + [0] * 20)
        variant["result"] = outcomes([1] * right + [0] * (100 - right))
    Ledger(tmp_path / "gate.duckdb").ingest(scored)
    (row,) = query.run(tmp_path / "gate.duckdb", "FROM gate").dicts()
    assert (row["variant_id"], row["passes"]) == (variant["variant"]["id"], passes)
    assert not row["ruined"] and row["tasks"] == 1
    assert row["weakest"] == (task if task == "piqa" else None)
    assert (row["ratio"] is None) == (task == "piqa")


def test_what_nobody_scored_fails_the_gate_where_fewer_zeros_do(
    found: list[dict[str, Any]], scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 80 + [0] * 20), outcomes([1] * 75 + [0] * 25)
    timed = of(found, stage="latency", model="smol", method="magnitude")
    Ledger(tmp_path / "gate.duckdb").ingest([dense, variant, *timed])
    told = dict(query.run(tmp_path / "gate.duckdb", "SELECT variant_id, passes FROM gate").rows)
    more = {one["variant"]["id"] for one in timed if one["variant"]["sparsity"] >= 0.5}
    assert len(more) > 1 and told == dict.fromkeys(more, False), "and fewer zeros have no row"


@pytest.mark.parametrize(
    ("dense", "variant", "verdict", "retained"),
    [
        ([1] * 80 + [0] * 20, [1] * 80 + [0] * 20, "no difference detected", 1.0),
        ([1] * 80 + [0] * 20, [0] * 20 + [1] * 60 + [0] * 20, "worse", 1 / 3),
        ([1] * 70 + [0] * 30, [1] * 90 + [0] * 10, "better", 2.0),
        ([1] * 80 + [0] * 20, [0, 1] * 10 + [1] * 60 + [0] * 20, "worse", 2 / 3),
        ([1, 0] * 50, [1, 0] * 50, "at chance", None),  # a dense model at chance has nothing to retain
    ],
)
def test_verdict_and_what_is_retained(
    scored: list[dict[str, Any]],
    tmp_path: Path,
    dense: list[int],
    variant: list[int],
    verdict: str,
    retained: float | None,
) -> None:
    for record, values in zip(scored, (dense, variant), strict=True):
        record["result"] = outcomes(values)
    Ledger(tmp_path / "v.duckdb").ingest(scored)
    row = query.run(tmp_path / "v.duckdb", "FROM vs_dense").dicts()[0]
    assert row["verdict"] == verdict
    assert row["retained"] == pytest.approx(retained)
    changes = [v - d for v, d in zip(variant, dense, strict=True)]
    assert (row["gained"], row["lost"]) == (changes.count(1), changes.count(-1))


def without_skill(record: dict[str, Any], name: str, values: list[int] | dict[str, Any]) -> dict[str, Any]:
    """The record of a floor in place of that of a variant."""
    result = values if isinstance(values, dict) else outcomes(values)
    made = copy.deepcopy(record) | {"cell_id": name, "key": name, "result": result}
    step = {"verb": "floor", "name": name, "settings": {}}
    made["variant"] |= {"id": name, "method": name, "recipe": name, "sparsity": 0.0, "granularity": "", "steps": [step]}
    return made


@pytest.mark.parametrize("late", [False, True])
def test_a_measured_floor_takes_the_place_of_chance_where_it_is_better(
    scored: list[dict[str, Any]], tmp_path: Path, late: bool
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 90 + [0] * 10), outcomes([1] * 80 + [0] * 20)
    floors = [
        without_skill(variant, "zero-weights", [1] * 40 + [0] * 60),
        without_skill(variant, "random-weights", [1] * 70 + [0] * 30),
    ]
    path = tmp_path / "f.duckdb"
    for batch in [scored, floors] if late else [[*floors, *scored]]:
        Ledger(path).ingest(batch)
    (row,) = query.run(path, "FROM vs_dense").dicts()
    assert (row["chance"], row["floor"], row["verdict"]) == (0.7, 0.7, "worse")
    assert row["retained"] == pytest.approx((0.8 - 0.7) / (0.9 - 0.7))
    asked = "SELECT recipe, floor, models, separable FROM floors"
    assert query.run(path, asked).rows == (("random-weights", 0.7, 2, True),)
    assert {row[0] for row in query.run(path, "SELECT DISTINCT method FROM results").rows} == {"dense", "magnitude"}


def test_a_floor_is_one_model_however_many_dense_scores_it_is_beside(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"] = outcomes([1] * 40)
    floor = without_skill(variant, "zero-weights", [0] * 40)
    Ledger(tmp_path / "floor.duckdb").ingest([dense, elsewhere(dense, "second"), floor])
    assert query.run(tmp_path / "floor.duckdb", "SELECT models FROM floors").rows == ((1,),)


def test_a_task_on_which_the_dense_model_is_no_better_than_none_is_invalid(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 90 + [0] * 10), outcomes([1] * 50 + [0] * 50)
    blind = without_skill(variant, "zero-weights", [0] * 5 + [1] * 85 + [1] * 5 + [0] * 5)
    Ledger(tmp_path / "i.duckdb").ingest([*scored, blind])
    (row,) = query.run(tmp_path / "i.duckdb", "FROM vs_dense").dicts()
    assert (row["verdict"], row["retained"]) == ("invalid", None)
    assert row["p"] < 1e-6, "what it is not to be told apart from is another matter"
    assert query.run(tmp_path / "i.duckdb", "SELECT DISTINCT dense_at_chance FROM scores").rows == ((True,),)
    assert (row["tests"], row["p_holm"], row["q_tests"], row["q"]) == (0, None, 0, None), "nor is it one of a family"


def errors(wrong: list[float]) -> dict[str, Any]:
    """A phoneme error rate's result over words of 10 phonemes each, of which so many are ``wrong``."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": 10.0} for at, value in enumerate(wrong)
    ]
    fixed = {"metric": "per", "stderr": 0.0, "limited": False, "chance": None, "protocol": {}, "task": "g2p_per"}
    return fixed | {"score": sum(wrong) / (10 * len(wrong)), "n": len(wrong), "outcomes": documents}


def test_the_floor_of_an_error_rate_is_used_in_its_own_direction(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = errors([1.0, 0.0] * 40), errors([4.0, 3.0] * 40)
    floors = [
        without_skill(variant, "zero-weights", errors([10.0] * 80)),
        without_skill(variant, "random-weights", errors([9.0, 7.0] * 40)),
    ]
    path = tmp_path / "e.duckdb"
    Ledger(path).ingest([*scored, *floors])
    (row,) = query.run(path, "FROM vs_dense").dicts()
    assert (row["chance"], row["floor"], row["verdict"]) == (pytest.approx(0.8), pytest.approx(0.8), "worse")
    assert row["retained"] == pytest.approx((0.8 - 0.35) / (0.8 - 0.05))
    assert row["retained_low"] < row["retained"] < row["retained_high"] < 1
    assert query.run(path, "SELECT bool_or(at_chance) FROM scores").rows == ((False,),)


def test_an_error_rate_of_one_is_that_of_writing_nothing(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = errors([1.0, 0.0] * 40), errors([10.0, 11.0] * 40)
    Ledger(tmp_path / "n.duckdb").ingest(scored)
    (row,) = query.run(tmp_path / "n.duckdb", "FROM vs_dense").dicts()
    assert (row["chance"], row["retained"]) == (1.0, pytest.approx((1 - 1.05) / (1 - 0.05)))
    guesses = query.run(tmp_path / "n.duckdb", "SELECT at_chance FROM scores ORDER BY score").rows
    assert guesses == ((False,), (True,))


def test_what_is_retained_of_a_perplexity_is_counted_in_logarithms(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    own = [300.0 + 7 * at for at in range(12)]
    dense["result"], variant["result"] = windows(own), windows([value + 100 + at % 3 for at, value in enumerate(own)])
    floor = without_skill(variant, "zero-weights", windows([1000.0] * 12))
    Ledger(tmp_path / "r.duckdb").ingest([*scored, floor])
    (row,) = query.run(tmp_path / "r.duckdb", "FROM vs_dense").dicts()
    assert row["chance"] == pytest.approx(math.exp(10))
    dense_loss = sum(own) / 1200
    assert row["retained"] == pytest.approx((10 - dense_loss - 1.01) / (10 - dense_loss))
    assert row["retained_low"] < row["retained"] < row["retained_high"] < 1


def test_a_variant_at_the_floor_is_not_credited_with_no_difference(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Thirty documents show no loss of four, but neither do they show that the variant is above the floor."""
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 26 + [0] * 4), outcomes([0] * 4 + [1] * 22 + [0] * 4)
    floor = without_skill(variant, "zero-weights", [0] * 7 + [1] * 19 + [0] * 4)
    Ledger(tmp_path / "c.duckdb").ingest([*scored, floor])
    (row,) = query.run(tmp_path / "c.duckdb", "SELECT p_holm, verdict, documents_to_clear FROM vs_dense").dicts()
    assert row["p_holm"] > 0.05
    assert (row["verdict"], row["documents_to_clear"]) == ("at chance", None)
    Ledger(tmp_path / "d.duckdb").ingest(scored)
    (alone,) = query.run(tmp_path / "d.duckdb", "SELECT p_holm, verdict FROM vs_dense").dicts()
    assert (alone["p_holm"], alone["verdict"]) == (row["p_holm"], "no difference detected")


def test_the_documents_that_would_rule_a_loss_out_do(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    """On as many documents of the same kind the one-sided limit lies below the margin; where it does already, none is named."""
    dense, variant = scored
    found = {}
    for times in (1, 8):
        kinds = [(1, 1)] * 320 + [(1, 0)] * 20 + [(0, 1)] * 20 + [(0, 0)] * 40
        dense["result"], variant["result"] = (outcomes([kind[side] for kind in kinds] * times) for side in (0, 1))
        path = tmp_path / f"{times}.duckdb"
        Ledger(path).ingest(copy.deepcopy(scored))
        (found[times],) = query.run(path, "SELECT pairs, loses_less, documents_to_clear FROM vs_dense").dicts()
    assert found[1]["loses_less"] is False and found[8]["loses_less"] is True
    assert found[8]["documents_to_clear"] is None
    (asked,) = query.run(tmp_path / "1.duckdb", "SELECT documents_to_clear(0.01, 0.1)").rows
    # Newcombe's interval is a little wider than the normal one behind the macro.
    assert asked[0] < found[1]["documents_to_clear"] < 1.06 * asked[0]


@pytest.mark.parametrize(("lost", "shown"), [(0, True), (3, True), (30, False)])
def test_what_is_shown_to_lose_less_than_a_point(
    scored: list[dict[str, Any]], tmp_path: Path, lost: int, shown: bool
) -> None:
    dense, variant = scored
    values = [1] * 1000 + [0] * 500
    dense["result"], variant["result"] = outcomes(values), outcomes([0] * lost + values[lost:])
    Ledger(tmp_path / "n.duckdb").ingest(scored)
    (row,) = query.run(tmp_path / "n.duckdb", "FROM vs_dense").dicts()
    assert row["loses_less"] is shown
    assert row["loss_at_most"] > lost / 1500


def windows(values: list[float]) -> dict[str, Any]:
    """Perplexity's result over windows of 100 tokens each."""
    documents = [
        {"doc_id": str(at), "doc_hash": f"h{at}", "value": value, "label": 100.0} for at, value in enumerate(values)
    ]
    score = math.exp(sum(values) / (100 * len(values)))
    fixed = {"metric": "perplexity", "stderr": 0.0, "limited": False, "chance": None, "protocol": {}}
    return fixed | {"task": "perplexity", "score": score, "n": len(values), "outcomes": documents}


@pytest.mark.parametrize(("shift", "verdict"), [(40.0, "worse"), (-40.0, "better"), (0.0, "no difference detected")])
def test_a_lower_perplexity_is_better_and_has_nothing_retained(
    scored: list[dict[str, Any]], tmp_path: Path, shift: float, verdict: str
) -> None:
    dense, variant = scored
    base = [300.0 + 7 * (at % 5) for at in range(30)]
    dense["result"], variant["result"] = windows(base), windows([value + shift for value in base])
    Ledger(tmp_path / "p.duckdb").ingest(scored)
    row = query.run(tmp_path / "p.duckdb", "FROM vs_dense").dicts()[0]
    assert row["verdict"] == verdict
    assert row["retained"] is None and row["chance"] is None
    assert row["difference"] == pytest.approx(variant["result"]["score"] - dense["result"]["score"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["ratio"] == pytest.approx(variant["result"]["score"] / dense["result"]["score"])
    assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
    assert row["pairs"] == 30
    rows = query.run(tmp_path / "p.duckdb", "SELECT score, low, high FROM scores").rows
    assert all(low < score < high for score, low, high in rows)


@pytest.mark.parametrize(("metric", "turned"), [("perplexity", -2.0), ("per", -2.0), ("acc", 2.0), ("perplex", 2.0)])
def test_less_of_some_metrics_is_better_to_sql_as_to_python(
    metric: str, turned: float, scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    scored[0]["result"]["metric"] = metric
    Ledger(tmp_path / "m.duckdb").ingest(scored[:1])
    assert query.run(tmp_path / "m.duckdb", "SELECT _goodness(2.0, higher_is_better) FROM scores").rows == ((turned,),)
    nothing = np.array([])
    assert statistics.compare(metric, Pairs(nothing, nothing, nothing)).higher_is_better == (turned > 0)


@pytest.mark.parametrize(
    ("metric", "score", "collapsed"),
    [("perplexity", 10_001.0, True), ("perplexity", 10_000.0, False), ("word_perplexity", 2e4, True),
     ("bits_per_byte", 2e4, False), ("users_perplexity", 2e4, False)],
)  # fmt: skip
def test_where_a_model_has_collapsed(
    scored: list[dict[str, Any]], tmp_path: Path, metric: str, score: float, collapsed: bool
) -> None:
    dense = scored[0]
    dense["result"] |= {"metric": metric, "score": score}
    Ledger(tmp_path / "c.duckdb").ingest([dense])
    assert query.run(tmp_path / "c.duckdb", "SELECT metric, collapsed FROM scores").rows == ((metric, collapsed),)


def test_a_metric_that_nobody_knows_is_better_when_higher(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    for record, values in zip(scored, ([0] * 20 + [1] * 20, [1] * 40), strict=True):
        record["result"] = outcomes(values) | {"metric": "users_perplexity"}
    path = tmp_path / "u.duckdb"
    Ledger(path).ingest(scored)
    assert query.run(path, "SELECT verdict, difference FROM vs_dense").rows == (("better", 0.5),)
    assert set(query.run(path, "SELECT DISTINCT higher_is_better, scale, collapsed FROM curves").rows) == {
        (True, "unknown", False)
    }


def test_every_task_of_ours_has_a_metric_that_is_known() -> None:
    from sparsebench.benchmarks.catalog import all_tasks

    for task in all_tasks().values():
        known = statistics.Metric.named(task.metric)
        assert known.scale != "unknown", f"{task.name}: ledger/views/00_metrics.sql does not know {task.metric}"
        assert known.higher_is_better == ("lower is better" not in task.description), task.name


def test_the_front_of_a_perplexity_is_where_it_is_low(found: list[dict[str, Any]], tmp_path: Path) -> None:
    records = copy.deepcopy([record for record in found if "variant" in record])
    for record in of(records, stage="benchmarks", model="smol"):
        variant = record["variant"]
        lost = {"dense": 0.0, "magnitude": 30 * variant["sparsity"], "random": 90.0}[variant["method"]]
        record["result"] = windows([300.0 + lost] * 30)
        record["settings"] = {"task": "perplexity"}
    Ledger(tmp_path / "f.duckdb").ingest(records)
    asked = """
        SELECT DISTINCT method, sparsity, on_front FROM pareto
        WHERE metric = 'perplexity' AND cost = 'bytes' ORDER BY ALL
    """
    assert query.run(tmp_path / "f.duckdb", asked).rows == (
        ("dense", 0.0, True),
        ("magnitude", 0.5, True),
        ("magnitude", 0.9, True),
        ("random", 0.9, False),
    )


def test_other_settings_are_not_compared_and_key_order_does_not_matter(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, _ = scored
    dense["settings"] = dict(reversed(dense["settings"].items()))
    Ledger(tmp_path / "same.duckdb").ingest(scored)
    assert query.run(tmp_path / "same.duckdb", "SELECT count(*) FROM vs_dense").rows == ((1,),)
    dense["settings"] = dense["settings"] | {"limit": 7}
    Ledger(tmp_path / "other.duckdb").ingest(scored)
    assert query.run(tmp_path / "other.duckdb", "SELECT count(*) FROM vs_dense").rows == ((0,),)


def test_cells_that_have_no_record_are_missing(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "part.duckdb"
    Ledger(path).ingest(found[:5])
    rows = dict(query.run(path, "SELECT status, count(*) FROM cells GROUP BY 1").rows)
    assert rows == {"done": 4, "missing": len(found[0]["cells"]) - 4}
    assert query.run(path, "SELECT count(*) FROM cells WHERE model IS NULL OR label IS NULL").rows == ((0,),)


def test_the_newest_plan_says_what_belongs_to_a_manifest(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "plans.duckdb"
    shorter = found[0] | {
        "written_at": (samples.START + timedelta(hours=1)).isoformat(),
        "cells": found[0]["cells"][:3],
    }
    Ledger(path).ingest([*found, shorter])
    assert query.run(path, "SELECT count(*) FROM cells").rows == ((3,),)


def test_a_cell_of_two_manifests_shows_in_both(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "two.duckdb"
    Ledger(path).ingest([*found, found[0] | {"manifest": "other"}])
    rows = query.run(path, "SELECT manifest, count(*) FROM results GROUP BY 1 ORDER BY 1").rows
    assert rows == (("other", 12), ("sample", 12))


def test_records_without_a_plan_show_as_well(found: list[dict[str, Any]], ledger: Path, tmp_path: Path) -> None:
    path = tmp_path / "bare.duckdb"
    Ledger(path).ingest(found[1:])
    asked = "SELECT * FROM results ORDER BY ALL"
    assert query.run(path, asked).rows == query.run(ledger, asked).rows


def test_a_variant_without_scores_has_one_row(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "unscored.duckdb"
    Ledger(path).ingest([record for record in found if record.get("stage") != "benchmarks"])
    rows = query.run(path, "SELECT task, count(*), count(bytes_packed) FROM results GROUP BY 1").rows
    assert rows == ((None, 8, 8),)


def test_times_that_were_taken_beside_other_jobs_say_so(found: list[dict[str, Any]], tmp_path: Path) -> None:
    path = tmp_path / "noisy.duckdb"
    noisy = {"alone": "device"}
    records = [
        one | ({"settings": one["settings"] | noisy} if "engine" in one.get("settings", {}) else {})
        for one in found[1:]
    ]
    Ledger(path).ingest(records)
    for view in ("latency", "memory", "results WHERE engine IS NOT NULL"):
        assert query.run(path, f"SELECT DISTINCT workload FROM {view}").rows == (("b1 p32 g8 beside other jobs",),)


def test_results_show_the_first_runtime(ledger: Path) -> None:
    rows = query.run(ledger, "SELECT DISTINCT engine, ranks, workload FROM results WHERE engine IS NOT NULL").rows
    assert rows == (("deepspeed", 1, "b1 p32 g8"),)
    shown = """
        SELECT model, prefill_ms, decode_ms, peak_bytes FROM results
        WHERE method = 'dense' AND task IN ('piqa', 'mrpc_pair')
    """
    phases = """
        SELECT model, sum(ms) FILTER (phase IN ('prefill', 'forward')), max(ms) FILTER (phase = 'decode'), any_value(peak)
        FROM latency
        JOIN (SELECT variant_id, ranks, peak_bytes AS peak FROM memory WHERE phase = 'overall') USING (variant_id, ranks)
        WHERE method = 'dense' AND ranks = 1 GROUP BY model
    """
    assert sorted(query.run(ledger, shown).rows) == sorted(query.run(ledger, phases).rows)


def tolerance_factor(n: int, size: float) -> float:
    """k of the bound m + k s under which 95% of a normal distribution lie, with 95% confidence: m is a mean of ``size`` values,
    s the standard deviation of ``n``."""
    return float(stats.nct.ppf(0.95, n - 1, stats.norm.ppf(0.95) * size**0.5)) / size**0.5


def noise_bound(half: float, n: int) -> float:
    """The noise floor, in logarithms, of an A/A run over ``n`` processes with a ratio of 1; ``half`` of its interval."""
    return tolerance_factor(n, 1) * half / float(stats.t.ppf(0.975, n - 1))


# Published one-sided factors for 95% of the distribution with 95% confidence.
@pytest.mark.parametrize(("n", "k"), [(2, 26.260), (3, 7.656), (5, 4.203), (10, 2.911), (20, 2.396), (30, 2.220)])
def test_the_noise_floor_is_a_tolerance_bound(ledger: Path, n: int, k: float) -> None:
    assert tolerance_factor(n, n) == pytest.approx(k, abs=1e-3)
    asked = f"SELECT noise_bound(exp(-0.3), exp(-0.5), exp(-0.1), {n}), noise_bound(1, exp(-0.2), exp(0.2), 2 * {n})"
    ((bound, more),) = query.run(ledger, asked).rows
    assert bound == pytest.approx(0.3 + noise_bound(0.2, n), rel=1e-4)
    # Beyond 30 the factor of 30 stands, which is a little larger.
    assert noise_bound(0.2, 2 * n) * (1 - 1e-4) < more < 1.01 * noise_bound(0.2, 2 * n)


@pytest.mark.parametrize("n", [2, 4, 5, 12])
@pytest.mark.parametrize("bias", [0.0, 1.0, 5.0])
def test_noise_floors_hold_95_of_100_further_comparisons_with_95_percent_confidence(
    ledger: Path, n: int, bias: float
) -> None:
    """Whether or not one of the two copies is slower as a rule; ``bias`` is in standard errors."""
    drawn = np.random.default_rng(n).normal(bias * n**-0.5, 1, size=(20_000, n))
    ((per_half,),) = query.run(ledger, f"SELECT noise_bound(1, exp(-1), exp(1), {n})").rows
    half = stats.t.ppf(0.975, n - 1) * drawn.std(axis=1, ddof=1) / n**0.5
    floors = (np.abs(drawn.mean(axis=1)) + per_half * half) * n**0.5
    held = stats.norm.cdf(floors - bias) - stats.norm.cdf(-floors - bias)
    confidence = (held >= 0.95).mean()
    assert confidence > 0.945
    if bias == 5:
        assert confidence < 0.955, "no wider than it says"


def test_latency_verdicts_follow_the_interval_and_the_noise(found: list[dict[str, Any]], tmp_path: Path) -> None:
    timed = copy.deepcopy([*of(found, stage="latency", model="mini")])
    timed = [record for record in timed if record["settings"]["ranks"] == 1]
    ratios = {0.0: (1.0, 0.95, 1.05), 0.5: (0.97, 0.96, 0.98), 0.9: (0.5, 0.4, 0.6)}
    for record in timed:
        ratio, low, high = ratios[record["variant"]["sparsity"]]
        record["result"]["differences"] = [{"phase": "forward", "ratio": ratio, "low": low, "high": high, "pairs": 4}]
    Ledger(tmp_path / "l.duckdb").ingest(timed)
    asked = "SELECT sparsity, speedup, verdict, noise, resolution FROM latency ORDER BY 1"
    runs = "SELECT DISTINCT noise_runs FROM latency"
    rows = query.run(tmp_path / "l.duckdb", asked).rows
    assert [row[2] for row in rows] == [None, "no difference detected", "faster"]
    assert rows[2][1] == pytest.approx(2.0)
    noise = math.exp(noise_bound(math.log(1.05 / 0.95) / 2, 4)) - 1
    assert rows[0][3] == pytest.approx(noise, rel=1e-4)
    assert [row[4] for row in rows] == pytest.approx([noise, noise, 1.5**0.5 - 1], rel=1e-4)
    assert query.run(tmp_path / "l.duckdb", runs).rows == ((4,),), "of one process, its pairs of blocks"
    for record in timed:
        record["result"]["differences"][0] |= {"processes": 6, "pairs": 12}
    Ledger(tmp_path / "p.duckdb").ingest(timed)
    assert query.run(tmp_path / "p.duckdb", runs).rows == ((6,),)
    same = query.run(tmp_path / "p.duckdb", asked).rows[2][3]
    next(one for one in timed if one["variant"]["sparsity"] == 0.9)["result"]["differences"][0]["processes"] = 3
    Ledger(tmp_path / "f.duckdb").ingest(timed)
    fewer = query.run(tmp_path / "f.duckdb", asked).rows[2][3]
    assert math.log1p(fewer) == pytest.approx(2**0.5 * math.log1p(same)), "half as many processes vary more"
    Ledger(tmp_path / "m.duckdb").ingest([one for one in timed if one["variant"]["sparsity"] == 0.9])
    alone = query.run(tmp_path / "m.duckdb", asked).rows
    assert [row[2:] for row in alone] == [("no noise floor", None, None)], "nothing tells chance by"


def test_a_speedup_is_the_kernels_part_times_the_zeros(found: list[dict[str, Any]], tmp_path: Path) -> None:
    timed = copy.deepcopy([*of(found, stage="latency", model="mini")])
    timed = [one for one in timed if one["settings"]["ranks"] == 1 and one["variant"]["sparsity"] in (0.0, 0.9)]
    dense = next(one for one in timed if one["variant"]["sparsity"] == 0)
    forced = copy.deepcopy(dense)
    forced["cell_id"] += "-forced"
    forced["settings"]["forced"] = True
    ratios = {"forced": (0.8, 0.78, 0.82), 0.0: (1.0, 0.99, 1.01), 0.9: (0.4, 0.38, 0.42)}
    for record in [*timed, forced]:
        ratio, low, high = ratios["forced" if record is forced else record["variant"]["sparsity"]]
        record["result"]["differences"] = [{"phase": "forward", "ratio": ratio, "low": low, "high": high, "pairs": 4}]
    Ledger(tmp_path / "l.duckdb").ingest([*timed, forced])
    asked = (
        "SELECT sparsity, speedup, kernel_speedup, zeros_speedup, noise FROM latency WHERE phase = 'forward' ORDER BY 1"
    )
    dense_row, pruned = query.run(tmp_path / "l.duckdb", asked).rows
    assert dense_row[1:3] == pytest.approx((1.0, 1.25)) and dense_row[3] is None
    assert pruned[1:4] == pytest.approx((2.5, 1.25, 2.0))
    noise = math.exp(noise_bound(math.log(1.01 / 0.99) / 2, 4)) - 1
    assert pruned[4] == pytest.approx(noise, rel=1e-4), "the kernel's own gain is no noise"
    drawn = query.run(tmp_path / "l.duckdb", "SELECT speedup FROM speedups WHERE sparsity = 0").rows
    assert drawn == ((pytest.approx(1.25),),), "a line of such an engine begins at what its kernel does"
    for record in timed:
        record["result"]["kernel"] = "dense torch linear ×12"
    Ledger(tmp_path / "d.duckdb").ingest([*timed, forced])
    parts = query.run(tmp_path / "d.duckdb", "SELECT DISTINCT zeros_speedup FROM latency WHERE sparsity > 0").rows
    assert parts == ((None,),), "what skips no zeros owes them nothing"


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [((0.5, 2.0), "not steady"), ((0.97, 0.99), "not steady"), ((0.4, 0.6), "faster"), ((1.5, 1.7), "slower")],
)
def test_a_phase_that_did_not_settle_decides_nothing_unless_all_of_its_interval_lies_beyond_the_noise(
    found: list[dict[str, Any]], tmp_path: Path, ends: tuple[float, float], verdict: str
) -> None:
    timed = copy.deepcopy([*of(found, stage="latency", model="mini")])
    timed = [one for one in timed if one["settings"]["ranks"] == 1 and one["variant"]["sparsity"] in (0.0, 0.5)]
    for record in timed:
        low, high = (0.95, 1.05) if record["variant"]["sparsity"] == 0 else ends
        middle = (low * high) ** 0.5
        record["result"]["differences"] = [{"phase": "forward", "ratio": middle, "low": low, "high": high, "pairs": 4}]
        for phase in record["result"]["phases"]:
            phase["steady"] = record["variant"]["sparsity"] == 0 or phase["side"] == "variant"
    Ledger(tmp_path / "l.duckdb").ingest(timed)
    rows = query.run(
        tmp_path / "l.duckdb", "SELECT verdict, steady FROM latency WHERE sparsity = 0.5 AND phase = 'forward'"
    ).rows
    assert rows == ((verdict, False),)


@pytest.mark.parametrize("processes", [1, 5])
def test_each_phase_has_its_own_noise_where_several_processes_told_it(
    found: list[dict[str, Any]], tmp_path: Path, processes: int
) -> None:
    itself = next(
        record
        for record in copy.deepcopy([*of(found, stage="latency", model="smol")])
        if record["variant"]["sparsity"] == 0 and record["settings"]["ranks"] == 1
    )
    for difference in itself["result"]["differences"]:
        wide = 1.1 if difference["phase"] == "generate" else 1.02
        difference |= {"ratio": 1.0, "low": 1 / wide, "high": wide, "pairs": 5, "processes": processes}
    Ledger(tmp_path / "l.duckdb").ingest([itself])
    asked = "SELECT phase, noise FROM latency WHERE phase IN ('prefill', 'decode', 'generate')"
    noise = dict(query.run(tmp_path / "l.duckdb", asked).rows)
    worst, quiet = (math.exp(noise_bound(math.log(wide), 5)) - 1 for wide in (1.1, 1.02))
    assert noise["generate"] == pytest.approx(worst, rel=1e-4)
    assert noise["decode"] == noise["prefill"] == pytest.approx(quiet if processes > 1 else worst, rel=1e-4)


def test_zeros_give_no_more_than_the_bytes_that_they_save(found: list[dict[str, Any]], tmp_path: Path) -> None:
    timed = [one for one in of(found, stage="latency", model="smol") if one["settings"]["ranks"] == 1]
    timed = copy.deepcopy([one for one in timed if one["variant"]["sparsity"] in (0.0, 0.9)])
    stored = of(found, stage="storage", model="smol")
    dense = next(one for one in timed if one["variant"]["sparsity"] == 0)
    forced = other_cell(dense, "forced", dense["result"], forced=True)
    Ledger(tmp_path / "b.duckdb").ingest([*timed, forced, *stored])
    asked = "SELECT phase, zeros_bound FROM latency WHERE sparsity = {} AND phase IN ('prefill', 'decode')"
    bounds = dict(query.run(tmp_path / "b.duckdb", asked.format(0.9)).rows)
    size = (
        "(SELECT prunable_bytes FROM sizes WHERE model = 'smol' AND method = '{}' AND format = '{}' AND sparsity = {})"
    )
    ratio = f"SELECT {size.format('dense', 'dense', 0)} / {size.format('magnitude', 'packed', 0.9)}"
    assert bounds == {"prefill": None, "decode": pytest.approx(query.run(tmp_path / "b.duckdb", ratio).rows[0][0])}
    assert dict(query.run(tmp_path / "b.duckdb", asked.format(0.0)).rows) == {"prefill": None, "decode": None}
    parts = of(found, stage="structure", model="smol")
    Ledger(tmp_path / "h.duckdb").ingest([*timed, forced, *stored, *parts])
    head = "(SELECT 2 * count FROM tensors WHERE model = 'smol' AND method = 'dense' AND kind = 'embedding')"
    ratio = (
        f"SELECT ({size.format('dense', 'dense', 0)} + {head}) / ({size.format('magnitude', 'packed', 0.9)} + {head})"
    )
    with_head = dict(query.run(tmp_path / "h.duckdb", asked.format(0.9)).rows)["decode"]
    assert with_head == pytest.approx(query.run(tmp_path / "h.duckdb", ratio).rows[0][0]), (
        "a token reads the output head too"
    )
    assert with_head < bounds["decode"]
    for record in timed:
        record["result"]["dtype"] = "float32"
    Ledger(tmp_path / "f.duckdb").ingest([*timed, forced, *stored])
    rows = query.run(tmp_path / "f.duckdb", asked.format(0.9)).rows
    assert {bound for _, bound in rows} == {None}, "the files are in another number format"


def test_engines_share_a_panel_where_one_of_them_ran_in_two_number_formats(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    timed = [one for one in of(found, stage="latency", model="mini") if one["settings"]["ranks"] == 1]
    others = []
    for engine, dtype in (("sparse", "bfloat16"), ("sparse", "float32")):
        result = {"engine": engine, "dtype": dtype}
        others += [other_cell(one, engine + dtype, one["result"] | result, engine=engine, dtype=dtype) for one in timed]
    Ledger(tmp_path / "p.duckdb").ingest([*timed, *others])
    asked = "SELECT panel, list(DISTINCT engine ORDER BY engine) FROM speedups GROUP BY panel ORDER BY panel"
    rows = query.run(tmp_path / "p.duckdb", asked).rows
    assert [(panel.rpartition(", ")[2], engines) for panel, engines in rows] == [
        ("bfloat16", ["deepspeed", "sparse"]), ("float32", ["sparse"]),
    ]  # fmt: skip


def test_memory_is_compared_with_that_of_its_own_place(found: list[dict[str, Any]], tmp_path: Path) -> None:
    """One kind of machine with two versions of CUDA: each variant has one row, beside the dense model of its own version."""
    weighed = [one for one in of(found, stage="memory", model="mini") if one["settings"]["ranks"] == 1]
    there = copy.deepcopy(weighed)
    for record in there:
        record["where"]["id"] = "newer"
        record["started_at"] = (samples.START + timedelta(days=1)).isoformat()
        record["result"]["peak_bytes"] *= 2 if record["variant"]["sparsity"] else 1
    Ledger(tmp_path / "m.duckdb").ingest([*weighed, *there])
    asked = "SELECT ratio FROM memory WHERE phase = 'overall' AND sparsity = 0.9 AND method = 'magnitude' ORDER BY ALL"
    assert query.run(tmp_path / "m.duckdb", asked).rows == ((1.0,), (2.0,))


def test_memory_is_per_rank_summed_and_overall(ledger: Path) -> None:
    rows = query.run(
        ledger, "SELECT phase, rank, peak_bytes FROM memory WHERE model = 'mini' AND ranks = 2 AND method = 'dense'"
    ).rows
    assert set(rows) == {
        ("overall", None, 110_000_000), ("load", None, 110_000_000), ("forward", None, 110_000_000),
        *((phase, rank, 45_000_000) for phase in ("load", "forward") for rank in (0, 1)),
    }  # fmt: skip


def test_what_gpus_processes_hold_is_summed_only_where_all_are_known(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    weighed = copy.deepcopy([one for one in of(found, stage="memory", model="mini") if one["settings"]["ranks"] == 2])[
        :1
    ]
    for row in weighed[0]["result"]["per_rank"]:
        row["cuda_process_bytes"] = 5 if row["rank"] == 0 or row["phase"] == "load" else None
    Ledger(tmp_path / "l.duckdb").ingest(weighed)
    asked = "SELECT phase, cuda_process_bytes FROM memory WHERE rank IS NULL AND phase <> 'overall' ORDER BY 1"
    assert query.run(tmp_path / "l.duckdb", asked).rows == (("forward", None), ("load", 10))


def test_structure_adds_up(ledger: Path) -> None:
    tensors = query.run(
        ledger, "SELECT sum(count), sum(zeros) FROM tensors WHERE model = 'mini' AND sparsity = 0.9 AND prunable"
    ).rows
    for scope in ("prunable", "layer", "layer and kind"):
        rows = query.run(
            ledger,
            f"""SELECT sum(params), sum(params * zero_share) FROM structure WHERE model = 'mini' AND sparsity = 0.9
                AND scope = '{scope}' AND scale = 'relative' AND threshold = 0.1""",
        ).rows
        assert rows[0] == pytest.approx([2 * value / 2 for value in tensors[0]])
    shares = query.run(ledger, "SELECT near_share + far_share, zero_share <= near_share FROM structure").rows
    assert all(total == pytest.approx(1) and ordered for total, ordered in shares)


def test_failures_carry_their_reason(found: list[dict[str, Any]], tmp_path: Path) -> None:
    record = copy.deepcopy(of(found, stage="latency")[0]) | {
        "status": "unsupported",
        "reason": "no GPT-2 in AutoTP",
        "result": None,
    }
    Ledger(tmp_path / "f.duckdb").ingest([record])
    assert query.run(tmp_path / "f.duckdb", "SELECT stage, status, reason FROM failures").rows == (
        ("latency", "unsupported", "no GPT-2 in AutoTP"),
    )


def test_labels_mark_weights_that_are_not_real(ledger: Path) -> None:
    asked = "SELECT model_label('m', 'real'), model_label('m', 'random'), model_label('m', 'dequantized'), method_label('dense', '', 'unstructured'), method_label('wanda', 'row', '2:4')"  # noqa: E501
    assert query.run(ledger, asked).rows == (("m", "m (random weights)", "m (dequantized)", "dense", "wanda 2:4"),)


def test_an_archive_shows_beside_the_unpruned_model_in_the_same_format(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    changed = copy.deepcopy(found)
    for record in changed:
        if record.get("stage") == "storage":
            packed = next(size for size in record["result"]["sizes"] if size["format"] == "packed")
            record["result"]["sizes"].append(packed | {"format": "archive", "bytes": packed["bytes"] // 2})
    path = tmp_path / "archived.duckdb"
    Ledger(path).ingest(changed)
    asked = "SELECT count(*), min(bytes_packed // 2 = bytes_archive), count(DISTINCT bytes_archive) > 2 FROM results"
    assert query.run(path, asked).rows == ((12, True, True),)
    asked = """
        SELECT s.format, count(*), min(s.unpruned_bytes = d.bytes), min(s.bytes < d.bytes)
        FROM sizes s JOIN sizes d ON d.method = 'dense' AND (d.model, d.format) = (s.model, s.format)
        WHERE s.sparsity > 0.4 AND s.format <> 'dense'
        GROUP BY ALL ORDER BY ALL
    """
    rows = query.run(path, asked).rows
    assert [(row[0], *row[2:]) for row in rows] == [("archive", True, True), ("packed", True, True)]


def test_where_nothing_is_sparse_the_dense_model_has_a_point_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "q.duckdb"
    Ledger(path).ingest(samples.sample(samples.manifest(variants=[{"quantize": "int8"}])))
    found = query.run(path, "SELECT DISTINCT method = 'dense', line = 'dense', resized FROM curves ORDER BY all").rows
    assert found == ((False, False, False), (True, True, False))


def recovered(record: dict[str, Any]) -> dict[str, Any]:
    """The same record of a variant that was trained behind what the given one's was made by."""
    other = copy.deepcopy(record)
    before = record["variant"]
    step = {"verb": "recover", "name": "reconstruct", "settings": {"epochs": 5}}
    other["variant"] |= {
        "id": "recovered",
        "recipe": f"{before['recipe']}, then reconstruct",
        "steps": [*before["steps"], step],
        "parents": [*before["parents"], before["id"]],
    }
    other |= {key: f"{record[key]}-recovered" for key in ("cell_id", "key")}
    return other


@pytest.mark.parametrize(
    ("results", "share", "gained"),
    [
        ([outcomes([1] * 90 + [0] * 10), outcomes([1] * 50 + [0] * 50), outcomes([1] * 80 + [0] * 20)], 0.75, 0.3),
        ([windows([300.0] * 9), windows([400.0] * 9), windows([350.0] * 9)], 0.5, None),
        ([windows([300.0] * 9), windows([400.0] * 9), windows([450.0] * 9)], -0.5, None),
        # A parent that had lost nothing has nothing to regain.
        ([outcomes([1] * 90 + [0] * 10), outcomes([1] * 95 + [0] * 5), outcomes([1] * 97 + [0] * 3)], None, 0.02),
        ([windows([300.0] * 9), windows([290.0] * 9), windows([295.0] * 9)], None, None),
    ],
)
def test_what_a_recovery_gave_back(
    results: list[dict[str, Any]],
    share: float | None,
    gained: float | None,
    found: list[dict[str, Any]],
    scored: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Of a score in its own unit, of a perplexity in logarithms; per hour that the making took."""
    dense, pruned = scored
    for record, result in zip(scored, results, strict=False):
        record["result"] = result
    after = recovered(pruned)
    after["result"] = results[2]
    making = recovered(next(one for one in of(found, stage="make") if one["variant"]["id"] == pruned["variant"]["id"]))
    making["result"] |= {"seconds": 1800.0, "trained_tokens": 65_536, "joules": 5e4, "energy_source": "RAPL package-0"}
    path = tmp_path / "recovered.duckdb"
    Ledger(path).ingest([dense, pruned, after, making])
    (row,) = query.run(path, "FROM recovered").dicts()
    assert row["recipe"].endswith(", then reconstruct")
    assert (row["before"], row["after"], row["dense_score"]) == tuple(results[place]["score"] for place in (1, 2, 0))
    assert row["regained"] == pytest.approx(share)
    more = math.log(row["before"] / row["after"]) if gained is None else gained
    assert row["gained"] == pytest.approx(more) and row["recovered_per_hour"] == pytest.approx(2 * more)
    assert (row["joules"], row["energy_source"]) == (5e4, "RAPL package-0")
    assert (row["trained_tokens"], row["hours"]) == (65_536, 0.5)


def test_how_a_training_went(found: list[dict[str, Any]], tmp_path: Path) -> None:
    making = copy.deepcopy(next(one for one in of(found, stage="make") if one["variant"]["sparsity"] == 0.5))
    making["result"] |= {"operations": 3e12, "trained_tokens": 80}
    making["result"]["curve"] = [
        {"step": 0, "tokens": 0, "loss": None, "held_out": 4.0},
        {"step": 10, "tokens": 80, "loss": 3.5, "held_out": 3.25},
    ]
    path = tmp_path / "trained.duckdb"
    Ledger(path).ingest([making])
    rows = query.run(path, "SELECT recipe, step, tokens, loss, held_out FROM training_curves").rows
    recipe = making["variant"]["recipe"]
    assert rows == ((recipe, 0, 0, None, 4.0), (recipe, 10, 80, 3.5, 3.25))
    assert query.run(path, "SELECT operations, joules, energy_source FROM variants").rows == ((3e12, None, None),)
    making["result"] |= {"joules": None, "energy_source": "none: no RAPL counters"}
    Ledger(tmp_path / "counted.duckdb").ingest([making])
    said = query.run(tmp_path / "counted.duckdb", "SELECT joules, energy_source FROM variants").rows
    assert said == ((None, "none: no RAPL counters"),)
    earlier = copy.deepcopy(making) | {"started_at": "2000-01-01T00:00:00+00:00"}
    earlier["where"] = {**earlier["where"], "id": "elsewhere"}
    earlier["result"] |= {"joules": 5e4, "energy_source": "RAPL package-0"}
    Ledger(tmp_path / "counted.duckdb").ingest([earlier])
    assert query.run(tmp_path / "counted.duckdb", "SELECT joules, energy_source FROM variants").rows == said


def test_how_evenly_experts_are_used_and_what_is_near_zero(found: list[dict[str, Any]], tmp_path: Path) -> None:
    making = copy.deepcopy(next(one for one in of(found, stage="make")))
    skip = {"threshold": 0.25, "skipped": 0.4, "uses": None, "together": None}
    experts = {"threshold": None, "skipped": None, "together": 1.5, "inside": 0.25}
    making["result"]["activity"] = [
        {"side": "decoder", "layer": 0, "module": "a", "near_zero": 0.1, **skip},
        {"side": "decoder", "layer": 1, "module": "b", "near_zero": 0.2, "uses": [0.5, 0.5, 0.5, 0.5], **experts},
        {"side": "decoder", "layer": 2, "module": "c", "near_zero": 0.3, "uses": [1.0, 0.0], **experts},
        {"side": "decoder", "layer": 3, "module": "d", "near_zero": 0.3, "uses": [0.75, 0.25], **experts},
        # Those that all tokens share are all that is active.
        {"side": "decoder", "layer": 4, "module": "e", "near_zero": 0.3, "uses": [0.0, 0.0], **experts},
    ]
    path = tmp_path / "activity.duckdb"
    Ledger(path).ingest([making])
    asked = (
        "module, near_zero, threshold, skipped, experts, idlest, busiest, busiest_to_mean, evenness, together, inside"
    )
    rows = query.run(path, f"SELECT {asked} FROM activity ORDER BY layer").rows
    assert rows[0] == ("a", 0.1, 0.25, 0.4, None, None, None, None, None, None, None)
    assert rows[1] == ("b", 0.2, None, None, 4, 0.5, 0.5, 1.0, pytest.approx(1), 1.5, 0.25)
    assert rows[2] == ("c", 0.3, None, None, 2, 0.0, 1.0, 2.0, 0.0, 1.5, 0.25)
    # -(3/4 log2(3/4) + 1/4 log2(1/4)) bits of one.
    assert rows[3] == ("d", 0.3, None, None, 2, 0.25, 0.75, 1.5, pytest.approx(0.8112781), 1.5, 0.25)
    assert rows[4] == ("e", 0.3, None, None, 2, 0.0, 0.0, None, None, 1.5, 0.25)


def test_a_recipe_is_told_by_its_kinds_and_in_a_few_words(tmp_path: Path) -> None:
    variants = [
        {"quantize": "int4", "rounding": "gptq"},
        [{"prune": "magnitude", "sparsity": 0.5}, {"recover": "reconstruct"}, {"quantize": "int8"}],
        [{"prune": "magnitude", "sparsity": 0.3}, {"prune": "random", "sparsity": 0.5}],
        {"prune": "elsa", "sparsity": 0.9, "source": "path:text.txt"},
        {"shrink": "l2", "parameters": 0.9},
    ]
    path = tmp_path / "recipes.duckdb"
    Ledger(path).ingest([samples.plan_record(samples.plan(samples.manifest(variants=variants)))])
    rows = query.run(path, "SELECT DISTINCT kind, words, chance FROM _recipes ORDER BY ALL").rows
    assert rows == (
        ("bits", "int4 GPTQ", False),
        ("smaller shapes", "l2 10%", False),
        ("zeros", "elsa 90% (2M tokens)", False),
        ("zeros", "magnitude 30%", False),
        ("zeros", "magnitude 30%, random 50%", True),
        ("zeros", "magnitude 50%", False),
        ("zeros + recovery", "magnitude 50%, blocks trained", False),
        ("zeros + recovery + bits", "magnitude 50%, blocks trained, int8", False),
    )


@pytest.mark.parametrize(
    ("placed", "where"),
    [
        ("", ""),
        (', "nodes": 2', " on 2 nodes"),
    ],
)
def test_a_workload_says_on_how_many_nodes_its_ranks_were(placed: str, where: str, ledger: Path) -> None:
    settings = '{"workload": {"batch": 1, "prompt": 128, "generate": 16}' + placed + "}"
    assert list(query.run(ledger, f"SELECT _workload('{settings}'::JSON)").rows) == [(f"b1 p128 g16{where}",)]


def other_cell(record: dict[str, Any], name: str, result: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The record of a cell of the same variant with other settings."""
    made = copy.deepcopy(record) | {key: f"{record[key]}-{name}" for key in ("cell_id", "key")}
    return made | {"settings": record["settings"] | settings, "result": result}


def test_a_score_on_some_documents_has_its_line_where_only_dense_was_scored_on_all(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    some = {"limited": True}
    dense["result"], variant["result"] = outcomes([1] * 40) | some, outcomes([1] * 20 + [0] * 20) | some
    every = other_cell(dense, "all", outcomes([1] * 50), limit=None)
    every["manifest"] = "whole"
    Ledger(tmp_path / "c.duckdb").ingest([*scored, every])
    asked = "SELECT DISTINCT n, sparsity, dense FROM curves ORDER BY ALL"
    assert query.run(tmp_path / "c.duckdb", asked).rows == ((40, 0.0, 1.0), (40, 0.5, 1.0), (50, 0.0, 1.0))


def test_scores_with_more_examples_in_the_prompt_have_a_panel_of_their_own(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 40), outcomes([1] * 20 + [0] * 20)
    shown = [
        other_cell(dense, "five", outcomes([1] * 40), num_fewshot=5),
        other_cell(variant, "five", outcomes([1] * 30 + [0] * 10), num_fewshot=5),
    ]
    Ledger(tmp_path / "e.duckdb").ingest([*scored, *shown])
    asked = "SELECT panel LIKE '%5 examples%' AS five, score FROM curves WHERE sparsity > 0 ORDER BY ALL"
    assert query.run(tmp_path / "e.duckdb", asked).rows == ((False, 0.5), (True, 0.75))
    assert query.run(tmp_path / "e.duckdb", "SELECT DISTINCT num_fewshot FROM results ORDER BY ALL").rows == (
        (5,),
        (None,),
    )


def test_another_limit_of_a_task_beats_nobody(found: list[dict[str, Any]], tmp_path: Path) -> None:
    records = copy.deepcopy(of(found, model="smol", method="dense"))
    (one,) = [each for each in of(records, stage="benchmarks") if each["result"]["task"] == "piqa"]
    one["result"] = outcomes([1] * 41 + [0] * 9)
    better = other_cell(one, "few", outcomes([1] * 9 + [0]), limit=10)
    Ledger(tmp_path / "p.duckdb").ingest([*records, better])
    asked = "SELECT n, bool_and(on_front) FROM pareto WHERE task = 'piqa' GROUP BY n ORDER BY n"
    assert query.run(tmp_path / "p.duckdb", asked).rows == ((10, True), (50, True))


def test_a_dense_score_that_was_measured_again_no_longer_makes_a_task_invalid(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = outcomes([1] * 50 + [0] * 50), outcomes([1] * 60 + [0] * 40)
    floor = without_skill(variant, "zero-weights", [1] * 49 + [0] * 51)
    again = copy.deepcopy(dense) | {"started_at": (samples.START + timedelta(days=1)).isoformat()}
    again["result"] = outcomes([1] * 90 + [0] * 10)
    path = tmp_path / "again.duckdb"
    Ledger(path).ingest([*scored, floor])
    assert query.run(path, "SELECT verdict FROM vs_dense").rows == (("invalid",),)
    Ledger(path).ingest([again])
    assert query.run(path, "SELECT verdict FROM vs_dense").rows == (("worse",),)


def test_windows_that_only_one_of_two_perplexities_has_give_no_ratio(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = windows([300.0] * 12), windows([340.0] * 12)
    for document in variant["result"]["outcomes"][5:]:
        document["doc_hash"] = "other tokens"
    Ledger(tmp_path / "w.duckdb").ingest(scored)
    assert query.run(tmp_path / "w.duckdb", "SELECT pairs, ratio FROM vs_dense").rows == ((5, None),)
    assert query.run(tmp_path / "w.duckdb", "SELECT DISTINCT sparsity FROM curves").rows == ((0.0,),)


def test_two_windows_are_two_though_they_show_no_difference(scored: list[dict[str, Any]], tmp_path: Path) -> None:
    dense, variant = scored
    dense["result"], variant["result"] = windows([300.0, 310.0]), windows([340.0, 330.0])
    Ledger(tmp_path / "f.duckdb").ingest(scored)
    assert query.run(tmp_path / "f.duckdb", "SELECT pairs, verdict FROM vs_dense").rows == ((2, None),)
    assert query.run(tmp_path / "f.duckdb", "SELECT sparsity FROM curves ORDER BY ALL").rows == ((0.0,), (0.5,))


def test_the_parameters_of_a_checkpoint_are_known_under_any_name(found: list[dict[str, Any]], tmp_path: Path) -> None:
    whole = next(one for one in of(found, stage="structure", model="smol", method="dense"))
    made = copy.deepcopy(of(found, stage="make", model="smol")[0])
    made["variant"] |= {"model": "called otherwise"}
    made["result"]["parameters"] = sum(tensor["count"] for tensor in whole["result"]["tensors"]) // 2
    Ledger(tmp_path / "n.duckdb").ingest([made, whole])
    asked = "SELECT parameters_removed FROM variants WHERE recipe <> 'dense'"
    ((share,),) = query.run(tmp_path / "n.duckdb", asked).rows
    assert share == pytest.approx(0.5, abs=1e-4)


def test_memory_of_another_machine_does_not_stand_beside_times(found: list[dict[str, Any]], tmp_path: Path) -> None:
    records = copy.deepcopy(of(found, model="mini", method="dense"))
    away = [elsewhere(one, "second") for one in records if one["stage"] == "memory"]
    path = tmp_path / "two.duckdb"
    Ledger(path).ingest([*records, *away])
    asked = "SELECT DISTINCT machine, prefill_ms IS NULL, peak_bytes IS NULL FROM results"
    (here,) = {one["environment"]["machine"] for one in records}
    assert query.run(path, asked).rows == ((here, False, False),)
    Ledger(tmp_path / "apart.duckdb").ingest([*(one for one in records if one["stage"] != "memory"), *away])
    assert query.run(tmp_path / "apart.duckdb", asked).rows == ((here, False, True),)


def test_the_weights_of_the_first_result_to_arrive_count_whatever_its_clock_said(
    scored: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = scored[0] | {"content": "own", "started_at": (samples.START + timedelta(days=9)).isoformat()}
    late = elsewhere(first, "second", days=1) | {"content": "other"}
    Ledger(tmp_path / "w.duckdb").ingest([first, late])
    assert query.run(tmp_path / "w.duckdb", "SELECT content FROM variants").rows == (("own",),)


def test_a_range_without_numbers_is_none(found: list[dict[str, Any]], tmp_path: Path) -> None:
    Ledger(tmp_path / "r.duckdb").ingest(found[:1])
    pairs = ("1e0, 2e0", "1.1e0, 1.2e0", "NULL::DOUBLE, NULL::DOUBLE")
    asked = "SELECT " + ", ".join(f"range_label('{{:.0f}}', {pair})" for pair in pairs)
    assert query.run(tmp_path / "r.duckdb", asked).rows == (("1 to 2", "1", None),)


def test_every_speed_stands_beside_the_fastest_engine_for_the_dense_model(ledger: Path) -> None:
    keys = "model, workload, phase"
    dense: dict[tuple[str, ...], float] = {}
    for *at, ms in query.run(ledger, f"SELECT {keys}, ms FROM latency WHERE method = 'dense'").rows:
        dense[tuple(at)] = min(ms, dense.get(tuple(at), math.inf))
    asked = f"SELECT {keys}, ms, speedup_over_best, best_16_ms, tokens_per_second, test FROM throughput"
    rows = query.run(ledger, asked).rows
    assert len(rows) == len(query.run(ledger, "SELECT DISTINCT variant_id, engine, ranks, phase FROM latency").rows)
    for model, workload, phase, ms, over_best, best, tokens, test in rows:
        assert best == pytest.approx(dense[model, workload, phase])
        assert over_best == pytest.approx(best / ms)
        expected = {"prefill": (32e3 / ms, "pp 32"), "forward": (32e3 / ms, "pp 32"), "decode": (1e3 / ms, "tg")}
        assert (tokens, test) == (pytest.approx(expected[phase][0]), expected[phase][1]) if phase in expected else True
    assert {test for *_, test in rows} == {"pp 32", "tg", "32 + 8"}


def test_the_units_of_a_rounded_variant(found: list[dict[str, Any]], tmp_path: Path) -> None:
    """Its file's bits over all parameters, the bytes that a token reads, and its place among the dense models."""
    path = tmp_path / "rounded.duckdb"
    kept = [
        copy.deepcopy(record)
        for record in found
        if record.get("variant", {}).get("model") == "smol" and record["stage"] in ("make", "storage", "latency")
    ]
    for record in kept:
        if record["variant"]["steps"]:
            settings = {"type": "Q4_K_M", "importance": False}
            record["variant"]["steps"] = [{"verb": "quantize", "name": "gguf", "settings": settings}]
    Ledger(path).ingest(kept)
    asked = "SELECT t.*, f.dense_bytes, f.parameters FROM throughput t JOIN _formats f USING (variant_id) WHERE phase = 'decode'"
    answer = query.run(path, asked)
    rows = [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]
    rounded = [row for row in rows if row["method"] != "dense"]
    assert rounded
    for row in rows:
        assert row["bits_per_weight"] == pytest.approx(8 * row["dense_bytes"] / row["parameters"])
        assert row["gb_per_second"] == pytest.approx(row["dense_bytes"] / row["ms"] / 1e6)
        assert row["best_4_ms"] == pytest.approx(min(one["ms"] for one in rounded)) and row["best_8_ms"] is None
