"""Two variants side by side: how they are named, which documents are paired, and that the numbers are the ledger's own,
as are those of scores outside a ledger."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from math import hypot, log1p
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.cli.app import app
from sparsebench.errors import UserError
from sparsebench.ledger import naming, query
from sparsebench.ledger import scored as outside
from sparsebench.ledger.compare import SideBySide, side_by_side
from sparsebench.ledger.store import Ledger
from tests.ledger.made import Hold, Records, Scored, elsewhere, outcomes, windows, without_skill

WORN = "smol/magnitude/layer/90%"


@pytest.fixture(scope="module")
def worn(ledger: Path) -> SideBySide:
    """A worn variant beside the dense model."""
    return side_by_side(ledger, "smol/dense", WORN)


@pytest.fixture(scope="module")
def known(ledger: Path) -> list[naming.MeasuredVariant]:
    """The ledger's variants."""
    with query.session(ledger) as ask:
        return naming.measured_variants(ask)


def test_against_dense_it_says_what_the_view_says(ledger: Path, worn: SideBySide) -> None:
    rows = query.run(
        ledger, "FROM vs_dense WHERE model = 'smol' AND method = 'magnitude' AND sparsity = 0.9 ORDER BY task"
    ).dicts()
    assert [one.task for one in worn.scores] == [row["task"] for row in rows] == ["arc_easy", "piqa"]
    for one, row in zip(worn.scores, rows, strict=True):
        for name in ("difference", "low", "high", "p", "gained", "lost", "detectable", "retained", "retained_low"):
            assert getattr(one.paired, name) == pytest.approx(row[name]), name
        assert (one.p_holm, one.verdict) == (pytest.approx(row["p_holm"]), row["verdict"])
        assert (one.a, one.b, one.n_a, one.limited) == (row["dense_score"], row["score"], row["pairs"], True)


@pytest.mark.parametrize(
    ("dense", "variant", "floor", "verdict"),
    [
        # One window gives no test, and a perplexity of exp(12) needs none.
        (windows([300.0] * 1), windows([1200.0] * 1), None, "collapsed"),
        (outcomes([1] * 90 + [0] * 10), outcomes([1] * 50 + [0] * 50), outcomes([0] * 5 + [1] * 90 + [0] * 5), "invalid"),
        (outcomes([1] * 26 + [0] * 4), outcomes([0] * 4 + [1] * 22 + [0] * 4), outcomes([0] * 7 + [1] * 19 + [0] * 4),
         "at chance"),
        (outcomes([1] * 19 + [0] * 6), outcomes([0] * 4 + [1] * 15 + [0] * 6), None, "at chance"),
        (windows([300.0, 302.0, 303.0]), windows([330.0, 331.0, 334.0]), None, "worse"),
    ],
)  # fmt: skip
def test_what_overrides_a_test_in_the_view_does_so_everywhere(
    scored: Scored, tmp_path: Path, dense: Any, variant: Any, floor: Any, verdict: str
) -> None:
    base, made = scored(dense, variant)
    path = tmp_path / "o.duckdb"
    Ledger(path).ingest([base, made, *([without_skill(made, "zero-weights", floor)] if floor else [])])
    (one,) = side_by_side(path, base["variant"]["id"], made["variant"]["id"]).scores
    assert query.run(path, "SELECT verdict FROM vs_dense").rows == ((verdict,),)
    assert one.verdict == verdict
    if not floor:
        (row,) = outside.rows(*({side["task"]: read(side)} for side in (variant, dense)))
        assert row["verdict"] == verdict
        assert (row["p_holm"] is None) == (verdict == "collapsed")
        assert (row["p_holm"] or 1) > 0.05 or verdict != "at chance"
        assert row["loss_at_most"] is None or row["loss_at_most"] > abs(row["difference"]) > 0


def test_scores_of_one_machine_are_compared_where_there_are(scored: Scored, tmp_path: Path) -> None:
    dense, made = scored(outcomes([1] * 40), outcomes([1] * 20 + [0] * 20))
    later = elsewhere(dense, "second") | {"result": outcomes([1] * 30 + [0] * 10)}
    Ledger(tmp_path / "m.duckdb").ingest([dense, made, later])
    (one,) = side_by_side(tmp_path / "m.duckdb", dense["variant"]["id"], made["variant"]["id"]).scores
    assert (one.a, one.paired.difference) == (1.0, -0.5)


def test_the_other_way_round_everything_is_mirrored(ledger: Path, worn: SideBySide) -> None:
    back = side_by_side(ledger, WORN, "smol/dense")
    for one, other in zip(worn.scores, back.scores, strict=True):
        assert one.paired.difference == -other.paired.difference
        assert one.paired.low == pytest.approx(-other.paired.high)
        assert (one.paired.p, one.paired.detectable) == (other.paired.p, other.paired.detectable)
        assert {one.verdict, other.verdict} in ({"worse", "better"}, {"no difference detected"})
    for one, other in zip(worn.sizes, back.sizes, strict=True):
        assert one["ratio"] == pytest.approx(1 / other["ratio"])
    for one, other in zip(worn.latency, back.latency, strict=True):
        assert one["speedup"] == pytest.approx(1 / other["speedup"])
        assert one["speedup_low"] == pytest.approx(1 / other["speedup_high"])


def test_sizes_times_and_memory_are_the_views(ledger: Path, worn: SideBySide) -> None:
    where = "model = 'smol' AND method = 'magnitude' AND sparsity = 0.9"
    shares = dict(query.run(ledger, f"SELECT format, bytes / unpruned_bytes FROM sizes WHERE {where}").rows)
    assert {row["format"]: row["ratio"] for row in worn.sizes} == pytest.approx(shares)
    rows = query.run(
        ledger,
        f"SELECT engine, ranks, phase, speedup, speedup_low, speedup_high, verdict, ms, dense_ms FROM latency WHERE {where}",
    ).dicts()
    assert len(worn.latency) == len(rows) > 0
    for row in worn.latency:
        wanted = next(x for x in rows if all(x[key] == row[key] for key in ("engine", "ranks", "phase")))
        for name in ("speedup", "speedup_low", "speedup_high"):
            assert row[name] == pytest.approx(wanted[name])
        assert (row["verdict"], row["a_ms"], row["b_ms"]) == (wanted["verdict"], wanted["dense_ms"], wanted["ms"])
    assert len(worn.memory) == 2 and all(row["ratio"] == row["b"] / row["a"] for row in worn.memory)


def test_two_pruned_variants_are_timed_through_the_dense_model(ledger: Path) -> None:
    found = side_by_side(ledger, "smol/magnitude/layer/0.5", WORN)
    rows = query.run(
        ledger,
        "SELECT phase, ranks, sparsity, speedup, speedup_low, speedup_high, noise FROM latency WHERE model = 'smol'",
    ).dicts()
    for row in found.latency:
        half, most = (
            next(x for x in rows if x["sparsity"] == s and (x["phase"], x["ranks"]) == (row["phase"], row["ranks"]))
            for s in (0.5, 0.9)
        )
        assert row["speedup"] == pytest.approx(most["speedup"] / half["speedup"])
        assert row["speedup_high"] / row["speedup"] > most["speedup_high"] / most["speedup"]
        if row["noise"] is not None:
            assert log1p(row["noise"]) == pytest.approx(hypot(log1p(half["noise"]), log1p(most["noise"])))


@pytest.mark.parametrize(
    "name",
    [WORN, "smol/magnitude/0.9", "smol/0.90/layer", "smol/magnitude/0.9/seed0", "smol/magnitude/layer 90%/bfloat16"],
)
def test_a_variant_has_many_names(known: list[naming.MeasuredVariant], name: str) -> None:
    variants = [one for one in known if "random" not in one.recipe]
    found = naming.resolve_variant(name, variants)
    assert (found.name, found.weights) == (WORN, "real")
    assert naming.resolve_variant(found.id[:8], variants) == found


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smol/magnitud/0.9", f"did you mean {WORN} or"),
        ("smoll/dense", "did you mean smol/dense or"),
        ("nonsense", "the models are mini, smol"),
        (
            "smol/0.9",
            r"names 2 variants:\n    smol/magnitude/layer/90% .*\n    smol/random/layer/90% .*\n  → say which",
        ),
        ("smol", "names 4 variants:"),
        ("smol/magnitude/2:4", "did you mean smol/magnitude/layer/50%"),
    ],
)
def test_a_name_that_fits_not_one_is_explained(known: list[naming.MeasuredVariant], name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        naming.resolve_variant(name, known)


def test_variants_of_one_name_are_told_apart_and_a_name_in_full_means_just_that(
    known: list[naming.MeasuredVariant],
) -> None:
    """`smol/dense` is the dense model, also where a method has seen the dense model's inputs."""
    one, dense = (naming.resolve_variant(name, known) for name in (WORN, "smol/dense"))
    twin = replace(one, id="feedbeef0000", seed=1)
    with pytest.raises(UserError, match=r"\(id feedbeef00, bfloat16, seed 1"):
        naming.resolve_variant(WORN, [one, twin])
    assert naming.resolve_variant(f"{WORN}/seed1", [one, twin]) == twin
    found = [dense, replace(one, recipe=f"{one.recipe} propagate=dense")]
    assert naming.resolve_variant("smol/dense", found) == found[0]
    assert naming.resolve_variant("smol/magnitude/dense", found) == found[1]


RECIPES = [
    "dense", "sparsegpt/layer 50%", "sparsegpt/layer 2:4 50%", "sparsegpt/layer 50%, then int8", "int8",
    "int8 rounding=gptq", "int8, then sparsegpt/layer 50%", "wanda+owl/row 50%, then int4 group=64",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("m/int8/gptq", "int8 rounding=gptq"),
        ("m/sparsegpt/50%", "sparsegpt/layer 50%"),
        ("m/sparsegpt/2:4", "sparsegpt/layer 2:4 50%"),
        ("m/wanda+owl/int4", "wanda+owl/row 50%, then int4 group=64"),
        ("m/sparsegpt/0.5/int8", "sparsegpt/layer 50%, then int8"),
        ("m/int8/sparsegpt/0.5/bfloat16", "int8, then sparsegpt/layer 50%"),
        ("m/0.5/int4/group=64", "wanda+owl/row 50%, then int4 group=64"),
    ],
)
def test_a_variant_that_is_not_just_a_pruning_is_named_by_its_recipe(name: str, recipe: str) -> None:
    variants = [
        naming.MeasuredVariant(f"{at:08x}", "m", "real", "bfloat16", recipe, 0, "") for at, recipe in enumerate(RECIPES)
    ]
    assert naming.resolve_variant(name, variants).recipe == recipe
    for one in variants:
        assert naming.resolve_variant(f"m/{one.recipe}", variants) == naming.resolve_variant(one.name, variants) == one


@pytest.fixture
def two_models(scored: Scored, tmp_path: Path) -> tuple[Records, Callable[[], SideBySide]]:
    """Two dense models' records of piqa, the second shown fewer documents and one in other words; compares them."""
    first, _ = scored(outcomes([1] * 50 + [0] * 10))
    second = copy.deepcopy(first) | {"cell_id": "other", "result": outcomes([1] * 20 + [0] * 20)}
    second["variant"] |= {"id": "0123456789", "model": "other", "source": "path:other"}
    second["settings"] |= {"limit": 40}
    second["result"]["outcomes"][3]["doc_hash"] = "another prompt"

    def compared() -> SideBySide:
        Ledger(tmp_path / "two.duckdb").ingest([first, second])
        return side_by_side(tmp_path / "two.duckdb", "smol/dense", "other/dense")

    return [first, second], compared


def test_models_are_paired_on_the_documents_that_both_were_shown(two_models: Any) -> None:
    records, compared = two_models
    for record, dtype in zip(records, ("bfloat16", "float32"), strict=True):
        record["result"]["protocol"] = {"dtype": dtype}
    found = compared()
    (one,) = found.scores
    assert (one.paired.n, one.paired.lost, one.paired.gained) == (39, 20, 0)
    assert one.verdict == "worse"
    assert "only 39 documents were shown to both, word for word" in one.note
    assert "A was calculated in bfloat16, B in float32" in one.note
    assert any(note.startswith("different models") for note in found.notes)


def test_no_document_in_common_is_said(two_models: Any) -> None:
    (_, second), compared = two_models
    for at, document in enumerate(second["result"]["outcomes"]):
        document["doc_hash"] = f"other {at}"
    (one,) = compared().scores
    assert (one.verdict, one.paired.p, one.note) == (None, None, "no document in common")


def test_documents_of_one_cluster_count_once(two_models: Any, tmp_path: Path) -> None:
    (first, _), compared = two_models
    for at, document in enumerate(first["result"]["outcomes"]):
        document["cluster"] = f"c{at // 20}"
    (one,) = compared().scores
    assert (one.paired.clusters, one.paired.p) == (2, 1.0)
    assert one.verdict == "at chance", "half of B's answers of two are right"
    rows = query.run(tmp_path / "two.duckdb", "SELECT interval FROM scores ORDER BY interval").rows
    assert rows == (("Wilson",), ("Wilson over 3 clusters",))


def test_a_task_that_is_not_shared_is_named(ledger: Path) -> None:
    (one,) = side_by_side(ledger, "smol/dense", WORN, ["piqa"]).scores
    whole = next(each for each in side_by_side(ledger, "smol/dense", WORN).scores if each.task == "piqa")
    assert (one.task, one.p_holm) == ("piqa", whole.p_holm), "the correction is for every shared task"
    with pytest.raises(UserError, match="do not share a task 'piqua'\n  → did you mean `piqa`"):
        side_by_side(ledger, "smol/dense", WORN, ["piqua"])


def test_on_the_command_line(ledger: Path) -> None:
    words = ["compare", "smol/dense", WORN, "--ledger", str(ledger)]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert f"B  {WORN}" in shown.stdout and "detectable" in shown.stdout and "loss at" in shown.stdout
    asked = CliRunner().invoke(app, [*words, "--json"])
    loaded = json.loads(asked.stdout)
    assert loaded["b"]["name"] == WORN
    assert {one["task"]: one["verdict"] for one in loaded["scores"]} == {"arc_easy": "worse", "piqa": "worse"}
    assert {"difference", "low", "high", "detectable", "retained_low"} <= set(loaded["scores"][0]["paired"])


def test_a_correction_counts_the_tests_of_all_shared_tasks_and_no_invalid_one(scored: Scored, tmp_path: Path) -> None:
    records = []
    answers = {
        "piqa": [0] * 6 + [1] * 84 + [0] * 10,
        "arc_easy": [1] * 90 + [0] * 10,
        "winogrande": [1] * 50 + [0] * 50,
    }
    for task, values in answers.items():
        for record in scored(outcomes([1] * 90 + [0] * 10, task), outcomes(values, task)):
            key = f"{task} {record['cell_id']}"
            records.append(record | {"cell_id": key, "key": key})
    floor = without_skill(records[-1], "zero-weights", outcomes([0] * 5 + [1] * 90 + [0] * 5, "winogrande"))
    path = tmp_path / "t.duckdb"
    Ledger(path).ingest([*records, floor])
    a, b = (record["variant"]["id"] for record in records[:2])
    assert {one.task: one.verdict for one in side_by_side(path, a, b).scores}["winogrande"] == "invalid"
    shown = CliRunner().invoke(app, ["compare", a, b, "--ledger", str(path), "--task", "piqa"])
    assert "(p 0.031; 0.063 as one of 2 tests)" in shown.stdout, shown.output


def read(result: dict[str, Any]) -> ScoreResult:
    """A result as it was before it became a record."""
    return ScoreResult(**result | {"outcomes": tuple(Outcome(**one) for one in result["outcomes"])})


DENSE = read(outcomes([1] * 90 + [0] * 10, "t"))
POORER = read(outcomes([0] * 20 + [1] * 70 + [0] * 10, "t"))


def test_a_row_says_what_the_ledger_says(scored: Scored, hold: Hold) -> None:
    dense, variant = scored()
    (row,) = outside.rows({"piqa": read(variant["result"])}, {"piqa": read(dense["result"])})
    asked = "SELECT v.*, s.low AS own_low FROM vs_dense v JOIN scores s USING (record_id)"
    (wanted,) = hold([dense, variant])(asked).dicts()
    for name in ("difference", "retained", "p_holm", "detectable"):
        assert row[name] == pytest.approx(wanted[name])
    assert row["difference_low"] == pytest.approx(wanted["low"]) and row["low"] == pytest.approx(wanted["own_low"])
    assert (row["verdict"], row["other"]) == (wanted["verdict"], wanted["dense_score"])


def test_documents_are_paired_by_what_was_shown() -> None:
    others = tuple(replace(one, doc_hash="x") for one in DENSE.outcomes[:30])
    moved = replace(DENSE, outcomes=(*others, *DENSE.outcomes[30:]))
    assert outside.compare(POORER, moved).n == 70
    assert outside.compare(POORER, replace(DENSE, score=0.3)).method.startswith("none")
    assert outside.rows({"t": POORER}, {})[0]["verdict"] is None
    errors = replace(DENSE, metric="wer", score=0.3)
    assert not outside.compare(errors, errors).higher_is_better, "also where nothing is compared"


def test_alone_a_score_has_an_interval_and_what_it_could_show() -> None:
    (row,) = outside.rows({"t": POORER})
    assert row["low"] < row["score"] == 0.7 < row["high"]
    assert row["detectable"] == pytest.approx(0.088, abs=0.002)
    assert outside.rows({"t": read(outcomes([0.3, 0.5]))})[0]["detectable"] is None
    words = tuple(replace(one, label=5.0) for one in POORER.outcomes)
    (row,) = outside.rows({"t": replace(POORER, metric="per", score=0.14, outcomes=words)})
    assert row["low"] < 0.14 < row["high"] and row["detectable"] is None, (
        "errors of five symbols are not right and wrong"
    )


def test_outcomes_are_lines_with_both_sides(tmp_path: Path) -> None:
    outside.write_outcomes(tmp_path / "o.jsonl", {"t": POORER}, {"t": DENSE})
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert len(lines) == 100
    assert lines[0] == {"task": "t", "metric": "acc", "doc_id": "0", "doc_hash": "h0", "value": 0, "label": None,
                        "cluster": None, "against": 1}  # fmt: skip
    outside.write_outcomes(tmp_path / "o.jsonl", {"t": POORER})
    assert "against" not in json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
