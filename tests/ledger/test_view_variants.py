"""Views of variants: their parameters, operations, sizes, trainings and recipes."""

import copy
import math
from datetime import timedelta
from pathlib import Path

import pytest

from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from tests.ledger import samples
from tests.ledger.made import Ask, Hold, Records, Scored, elsewhere, of, outcomes, recovered, windows


def test_the_share_of_parameters_that_is_gone(found: Records, tmp_path: Path) -> None:
    path = tmp_path / "removed.duckdb"
    (whole,) = of(found, stage="structure", model="smol", method="dense")
    made = copy.deepcopy(of(found, stage="make", model="smol")[:3])
    parameters = sum(tensor["count"] for tensor in whole["result"]["tensors"])
    for record, kept in zip(made, (0.75, 1.0, 0.5), strict=True):
        record["result"]["parameters"] = round(parameters * kept)
    made[2]["variant"] |= {"model": "the same checkpoint by another name"}
    Ledger(path).ingest(made)
    asked = "SELECT variant_id, parameters_removed FROM variants"
    assert {share for _, share in query.run(path, asked).rows} == {None}, "nothing says how many the dense model has"
    Ledger(path).ingest([whole])
    shares = dict(query.run(path, asked).rows)
    ids = [record["variant"]["id"] for record in (*made, whole)]
    assert [shares[one] for one in ids] == pytest.approx([0.25, 0, 0.5, 0], abs=1e-4)


def test_operations_of_a_token_are_those_of_the_latest_structure(found: Records, tmp_path: Path) -> None:
    path, asked = tmp_path / "operations.duckdb", "SELECT operations_token FROM variants"
    (whole,) = copy.deepcopy(of(found, stage="structure", model="smol", method="dense"))
    del whole["result"]["operations_token"]  # as records from before have it
    Ledger(path).ingest([whole])
    assert query.run(path, asked).rows == ((None,),)
    whole["result"]["operations_token"] = 2.5e8
    whole["started_at"] = (samples.START + timedelta(days=1)).isoformat()
    Ledger(path).ingest([whole])
    assert query.run(path, asked).rows == ((2.5e8,),)


def test_weights_that_a_token_leaves_out_are_no_operations(found: Records, hold: Hold) -> None:
    making = copy.deepcopy(of(found, stage="make", model="smol")[0])
    structure = copy.deepcopy(of(found, stage="structure", model="smol", variant=making["variant"])[0])
    making["result"] |= {"read_share": 0.75, "prunable": 1000}
    structure["result"]["operations_token"] = 5000.0
    # A quarter of the 1,000 weights is neither multiplied nor added.
    assert hold([making, structure])("SELECT operations_token FROM variants").rows == ((4500.0,),)


def test_what_a_token_reads_is_all_but_where_its_making_says_otherwise(found: Records, hold: Hold) -> None:
    old, skipping = (copy.deepcopy(one) for one in of(found, stage="make", model="smol")[:2])
    old["result"].pop("read_share", None)  # as records from before have it
    skipping["result"]["read_share"] = 0.6
    shares = dict(hold([old, skipping])("SELECT variant_id, read_share FROM variants").rows)
    assert [shares[one["variant"]["id"]] for one in (old, skipping)] == [1.0, 0.6]
    stored = [one for one in of(found, stage="storage") if one["variant"]["id"] in shares]
    asked = "SELECT variant_id, min(round((bytes - read_bytes) / prunable_bytes, 6)) FROM sizes GROUP BY 1"
    read = dict(hold([old, skipping, *stored])(asked).rows)
    assert [read[one["variant"]["id"]] for one in (old, skipping)] == [0, 0.4]


def test_structure_adds_up(ask: Ask) -> None:
    tensors = ask(
        "SELECT sum(count), sum(zeros) FROM tensors WHERE model = 'mini' AND sparsity = 0.9 AND prunable"
    ).rows
    for scope in ("prunable", "layer", "layer and kind"):
        rows = ask(
            f"""SELECT sum(params), sum(params * zero_share) FROM structure WHERE model = 'mini' AND sparsity = 0.9
                AND scope = '{scope}' AND scale = 'relative' AND threshold = 0.1"""
        ).rows
        assert rows[0] == pytest.approx([2 * value / 2 for value in tensors[0]])
    shares = ask("SELECT near_share + far_share, zero_share <= near_share FROM structure").rows
    assert all(total == pytest.approx(1) and ordered for total, ordered in shares)


def test_labels_mark_weights_that_are_not_real(ask: Ask) -> None:
    asked = "SELECT model_label('m', 'real'), model_label('m', 'random'), model_label('m', 'dequantized'), method_label('dense', '', 'unstructured'), method_label('wanda', 'row', '2:4')"  # noqa: E501
    assert ask(asked).rows == (("m", "m (random weights)", "m (dequantized)", "dense", "wanda 2:4"),)


def test_an_archive_shows_beside_the_unpruned_model_in_the_same_format(found: Records, hold: Hold) -> None:
    changed = copy.deepcopy(found)
    for record in changed:
        if record.get("stage") == "storage":
            packed = next(size for size in record["result"]["sizes"] if size["format"] == "packed")
            record["result"]["sizes"].append(packed | {"format": "archive", "bytes": packed["bytes"] // 2})
    ask = hold(changed)
    asked = "SELECT count(*), min(bytes_packed // 2 = bytes_archive), count(DISTINCT bytes_archive) > 2 FROM results"
    assert ask(asked).rows == ((12, True, True),)
    asked = """
        SELECT s.format, count(*), min(s.unpruned_bytes = d.bytes), min(s.bytes < d.bytes)
        FROM sizes s JOIN sizes d ON d.method = 'dense' AND (d.model, d.format) = (s.model, s.format)
        WHERE s.sparsity > 0.4 AND s.format <> 'dense'
        GROUP BY ALL ORDER BY ALL
    """
    rows = ask(asked).rows
    assert [(row[0], *row[2:]) for row in rows] == [("archive", True, True), ("packed", True, True)]


def test_where_nothing_is_sparse_the_dense_model_has_a_point_of_its_own(hold: Hold) -> None:
    ask = hold(samples.sample(samples.manifest(variants=[{"quantize": "int8"}])))
    found = ask("SELECT DISTINCT method = 'dense', line = 'dense', resized FROM curves ORDER BY all").rows
    assert found == ((False, False, False), (True, True, False))


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
    results: Records, share: float | None, gained: float | None, found: Records, scored: Scored, hold: Hold
) -> None:
    """Of a score in its own unit, of a perplexity in logarithms; per hour that the making took."""
    dense, pruned = scored(*results[:2])
    after = recovered(pruned) | {"result": results[2]}
    making = recovered(next(one for one in of(found, stage="make") if one["variant"]["id"] == pruned["variant"]["id"]))
    making["result"] |= {"seconds": 1800.0, "trained_tokens": 65_536, "joules": 5e4, "energy_source": "RAPL package-0"}
    (row,) = hold([dense, pruned, after, making])("FROM recovered").dicts()
    assert row["recipe"].endswith(", then reconstruct")
    assert (row["before"], row["after"], row["dense_score"]) == tuple(results[place]["score"] for place in (1, 2, 0))
    assert row["regained"] == pytest.approx(share)
    more = math.log(row["before"] / row["after"]) if gained is None else gained
    assert row["gained"] == pytest.approx(more) and row["recovered_per_hour"] == pytest.approx(2 * more)
    assert (row["joules"], row["energy_source"]) == (5e4, "RAPL package-0")
    assert (row["trained_tokens"], row["hours"]) == (65_536, 0.5)


def test_how_a_training_went(found: Records, hold: Hold) -> None:
    making = copy.deepcopy(next(one for one in of(found, stage="make") if one["variant"]["sparsity"] == 0.5))
    making["result"] |= {"operations": 3e12, "trained_tokens": 80}
    making["result"]["curve"] = [
        {"step": 0, "tokens": 0, "loss": None, "held_out": 4.0},
        {"step": 10, "tokens": 80, "loss": 3.5, "held_out": 3.25},
    ]
    ask = hold([making])
    rows = ask("SELECT recipe, step, tokens, loss, held_out FROM training_curves").rows
    recipe = making["variant"]["recipe"]
    assert rows == ((recipe, 0, 0, None, 4.0), (recipe, 10, 80, 3.5, 3.25))
    assert ask("SELECT operations, joules, energy_source FROM variants").rows == ((3e12, None, None),)
    making["result"] |= {"joules": None, "energy_source": "none: no RAPL counters"}
    earlier = copy.deepcopy(making) | {"started_at": "2000-01-01T00:00:00+00:00"}
    earlier["where"] |= {"id": "elsewhere"}
    earlier["result"] |= {"joules": 5e4, "energy_source": "RAPL package-0"}
    for records in ([making], [making, earlier]):
        said = hold(records)("SELECT joules, energy_source FROM variants").rows
        assert said == ((None, "none: no RAPL counters"),)


def test_how_evenly_experts_are_used_and_what_is_near_zero(found: Records, hold: Hold) -> None:
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
    asked = (
        "module, near_zero, threshold, skipped, experts, idlest, busiest, busiest_to_mean, evenness, together, inside"
    )
    rows = hold([making])(f"SELECT {asked} FROM activity ORDER BY layer").rows
    assert rows[0] == ("a", 0.1, 0.25, 0.4, None, None, None, None, None, None, None)
    assert rows[1] == ("b", 0.2, None, None, 4, 0.5, 0.5, 1.0, pytest.approx(1), 1.5, 0.25)
    assert rows[2] == ("c", 0.3, None, None, 2, 0.0, 1.0, 2.0, 0.0, 1.5, 0.25)
    # -(3/4 log2(3/4) + 1/4 log2(1/4)) bits of one.
    assert rows[3] == ("d", 0.3, None, None, 2, 0.25, 0.75, 1.5, pytest.approx(0.8112781), 1.5, 0.25)
    assert rows[4] == ("e", 0.3, None, None, 2, 0.0, 0.0, None, None, 1.5, 0.25)


def test_a_recipe_is_told_by_its_kinds_and_in_a_few_words(hold: Hold) -> None:
    variants = [
        {"quantize": "int4", "rounding": "gptq"},
        [{"prune": "magnitude", "sparsity": 0.5}, {"recover": "reconstruct"}, {"quantize": "int8"}],
        [{"prune": "magnitude", "sparsity": 0.3}, {"prune": "random", "sparsity": 0.5}],
        {"prune": "elsa", "sparsity": 0.9, "source": "path:text.txt"},
        {"shrink": "l2", "parameters": 0.9},
        [{"shrink": "sleb", "blocks": 2}, {"trim": "corpus"}],
    ]
    ask = hold([samples.plan_record(samples.plan(samples.manifest(variants=variants)))])
    rows = ask("SELECT DISTINCT kind, words, chance FROM _recipes ORDER BY ALL").rows
    assert rows == (
        ("bits", "int4 GPTQ", False),
        ("smaller shapes", "l2 10%", False),
        ("smaller shapes", "sleb -2 blocks", False),
        ("smaller shapes + vocabulary", "sleb -2 blocks, vocabulary trimmed", False),
        ("zeros", "elsa 90% (2M tokens)", False),
        ("zeros", "magnitude 30%", False),
        ("zeros", "magnitude 30%, random 50%", True),
        ("zeros", "magnitude 50%", False),
        ("zeros + recovery", "magnitude 50%, blocks trained", False),
        ("zeros + recovery + bits", "magnitude 50%, blocks trained, int8", False),
    )


def test_the_weights_of_the_first_result_count_at_any_clock(scored: Scored, hold: Hold) -> None:
    first = scored()[0] | {"content": "own", "started_at": (samples.START + timedelta(days=9)).isoformat()}
    late = elsewhere(first, "second", days=1) | {"content": "other"}
    assert hold([first, late])("SELECT content FROM variants").rows == (("own",),)
