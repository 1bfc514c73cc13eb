"""The report's queries: what each counts, compares and leaves out."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from scipy import stats

from sparsebench.ledger import query, sqlfiles
from sparsebench.ledger.store import Ledger
from sparsebench.plan.cells import Cell
from sparsebench.report import build
from sparsebench.report.lookup import FOLDER, query_named
from sparsebench.storage import Size
from tests.ledger import samples
from tests.ledger.made import elsewhere
from tests.report import calibrated
from tests.report.calibrated import TOKENS
from tests.report.experiment import SMALL, faster, fill

CHAIN = [{"prune": "magnitude", "sparsity": [0.5]}, {"quantize": "int8"}]
PATTERN = [{"prune": "magnitude", "pattern": "2:4"}, {"quantize": "int8"}]
MIXED = [{"quantize": "int8"}, CHAIN, PATTERN]
Asked = Callable[..., list[dict[str, Any]]]


def asked(ledger: Path, name: str) -> list[dict[str, Any]]:
    """The rows of one of the report's queries."""
    return query.run(ledger, query_named(name)).dicts()


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """Write the ledger of a small experiment; ``machine`` is where all of it ran, on ``day``."""

    def written(machine: str = "AMD EPYC (AVX-512) ×2, 8 GiB", day: int = 0, **changes: Any) -> Path:
        path = tmp_path / "small.duckdb"
        plan, *cells = samples.sample(samples.manifest(**(SMALL | changes)))
        Ledger(path).ingest([plan, *(elsewhere(record, machine, day) for record in cells)])
        return path

    return written


def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a quantized variant's bytes are gone in every format; the dense model has a file that it came from."""
    stored = samples.stored

    def sized(cell: Cell) -> Any:
        found, scale = stored(cell), 2 if "int8" in cell.variant.recipe else 1
        source = [Size("source", 100_000_000, 0, 0.0, None)] if cell.variant.is_dense else []
        return replace(found, sizes=(*(replace(one, bytes=one.bytes // scale) for one in found.sizes), *source))

    monkeypatch.setattr(samples, "stored", sized)


def twins(records: list[dict[str, Any]], **changes: Any) -> list[dict[str, Any]]:
    """The records of another manifest, with these changes of each variant and of the settings of each benchmark."""
    settings = changes.pop("settings", {})
    twin = copy.deepcopy(records)
    for record in twin:
        record["manifest"] = "twin"
        for cell in record.get("cells", [record]):
            cell |= {key: f"{cell[key]}-twin" for key in ("cell_id", "key")}
            cell["settings"] |= settings if cell["stage"] == "benchmarks" else {}
            cell["variant"] |= changes
            if changes:
                cell["variant"]["id"] += "-twin"
                cell["variant"]["parents"] = [f"{parent}-twin" for parent in cell["variant"]["parents"]]
    return twin


def told_apart(tmp_path: Path, records: list[dict[str, Any]], twin: list[dict[str, Any]], column: str) -> set[str]:
    """The names of queries with this column whose rows of ``records`` are others once the ``twin`` is there too."""
    for name, held in (("one", records), ("two", [*records, *twin])):
        Ledger(tmp_path / f"{name}.duckdb").ingest(held)
    differing = set()
    with query.session(tmp_path / "one.duckdb") as one, query.session(tmp_path / "two.duckdb") as two:
        for path in FOLDER.glob("*.sql"):
            alone = one(query_named(path.stem)).dicts()
            values = {row.get(column) for row in alone}
            both = [row for row in two(query_named(path.stem)).dicts() if row.get(column) in values]
            if alone and column in alone[0] and sorted(map(str, alone)) != sorted(map(str, both)):
                differing.add(path.stem)
    return differing


def test_models_of_one_name_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    """One was fetched as floats, the other comes out of a GGUF."""
    recipes = [
        *calibrated.CALIBRATED["variants"],
        {"quantize": "int8"},
        [{"prune": "sparsegpt", "sparsity": [0.5, 0.9]}, {"recover": "reconstruct"}],
    ]
    runtime = {"engines": ["hf", "sparse"], "workloads": [{"prompt": 32, "generate": 8}]}
    records = calibrated.sample(variants=recipes, runtime=runtime, structure={})
    twin = twins(records, weights="dequantized", source="path:smol.gguf")
    # Of kernels, `weights` is the number format.
    assert told_apart(tmp_path, records, twin, "weights") <= {"kernels"}
    with query.session(tmp_path / "two.duckdb") as ask:
        for name in ("perplexity", "kinds_time", "engines", "kinds"):
            assert len({row["panel"] for row in ask(query_named(f"figures/{name}")).dicts()}) == 2, name


def test_samples_of_as_many_documents_are_told_apart(tmp_path: Path) -> None:
    """One sample was drawn at random, the other has the first documents."""
    tasks = [{"task": "perplexity", "limit": calibrated.WINDOWS}, {"task": "piqa", "limit": 60}]
    records = calibrated.sample(benchmarks={"decoder": tasks}, storage=None)
    twin = twins(records, settings={"draw": None})
    for record in twin:
        for outcome in (record.get("result") or {}).get("outcomes", []):
            outcome["doc_hash"] += "-other"
    assert told_apart(tmp_path, records, twin, "subset") == set()


def test_chains_are_no_pruning_alone(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    smaller(monkeypatch)
    ledger = small(
        variants=[*MIXED, {"prune": "magnitude", "sparsity": [0.5]}, {"prune": "magnitude", "pattern": "2:4"}]
    )
    assert {(row["step"], row["method"]): row["variants"] for row in asked(ledger, "effort")} == {
        ("prune", "magnitude"): 2, ("quantize", "int8"): 3,
    }, "the time of a chain is its last step's"  # fmt: skip
    assert {row["label"] for row in asked(ledger, "removed_norm")} == {"magnitude/layer", "magnitude 2:4"}
    alone = "pattern = '2:4' AND variant_id NOT IN (FROM _more_than_zeros)"
    (score,) = query.run(ledger, f"SELECT score FROM scores WHERE {alone}").rows[0]
    assert [row["score"] for row in asked(ledger, "patterns")] == [score]
    (fetched,) = asked(ledger, "fetched")
    assert fetched["packed_from"] is None, "only with int8 is a file smaller"
    assert len({row["dense_bytes"] for row in asked(ledger, "sizes")}) == 1, "the dense model's, not the variant's own"


def test_the_best_names_all_of_a_chain(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    faster(monkeypatch, lambda cell, phase: 2 if len(cell.variant.steps) > 1 else 1)
    rows = asked(small(variants=[CHAIN], structure=None), "findings_latency")
    assert {row["best_what"] for row in rows} == {"of magnitude 50%, int8"}


@pytest.mark.parametrize(
    ("machine", "emulated"),
    [("Intel(R) Core(TM) i7 (AVX2, model 6.94)", True), ("AMD EPYC (AVX-512, model 25.17)", False)],
)
def test_a_gain_over_emulation_is_not_the_best(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, machine: str, emulated: bool
) -> None:
    faster(monkeypatch, lambda cell, phase: 1 if cell.variant.is_dense else 4 if phase == "prefill" else 2)
    rows = asked(small(f"{machine} ×2, 8 GiB", structure=None), "findings_latency")
    assert {row["best_phase"] for row in rows} == {"decode" if emulated else "prefill"}


def test_what_saves_neither_bytes_nor_time_is_no_choice(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0 if variant.is_dense else 1.4)
    assert {row["kind"] for row in asked(small(variants=MIXED, structure=None), "decision")} == {"zeros + bits"}


def test_of_variants_of_a_name_the_better_stands_for_a_pattern(tmp_path: Path) -> None:
    """Scope is no part of the name of N:M masks. Whichever record comes first, the same row is given."""
    variants = [{"prune": "magnitude", "sparsity": 0.5}, {"prune": "magnitude", "pattern": "2:4"}]
    experiment = samples.manifest(benchmarks={"decoder": [{"task": "piqa", "limit": 200}]}, runtime=None)
    records = samples.sample(experiment.model_copy(update={"variants": variants}))
    for record in [
        one for one in records if one.get("settings", {}).get("task") and one["variant"]["pattern"] == "2:4"
    ]:
        other = copy.deepcopy(record) | {key: f"{record[key]}-row" for key in ("cell_id", "key")}
        other["variant"] |= {"id": "by-row", "granularity": "row"}
        right = [one | {"value": float(at % 20 > 0)} for at, one in enumerate(other["result"]["outcomes"])]
        other["result"] |= {"outcomes": right, "score": 0.95}
        records.append(other)
    found = []
    for number, order in enumerate((records[1:], records[:0:-1])):
        Ledger(tmp_path / f"{number}.duckdb").ingest(order)
        found += [row["score"] for row in asked(tmp_path / f"{number}.duckdb", "patterns")]
    assert found == [0.95, 0.95]


def test_a_task_on_which_dense_guesses_too_shows_no_loss(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0 if variant.is_dense else 1.4)
    monkeypatch.setitem(samples.TASKS, "arc_easy", ("acc_norm", 0.5, 0.5))
    ledger = small(
        variants=MIXED,
        structure=None,
        benchmarks={"decoder": [{"task": t, "limit": 200} for t in ("piqa", "arc_easy")]},
    )
    assert "at chance" in {
        verdict for (verdict,) in query.run(ledger, "SELECT verdict FROM vs_dense WHERE task = 'arc_easy'").rows
    }
    assert not [row["what"] for row in asked(ledger, "decision") if "arc_easy" in row["what"]]


def test_a_speed_is_that_of_the_processor_that_shows_one(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0 if variant.is_dense else 1.4)
    plain = samples.timed
    faster(monkeypatch, lambda cell, phase: 1 if cell.variant.is_dense else 2)
    small("AMD EPYC (AVX-512) ×2, 8 GiB", structure=None)
    monkeypatch.setattr(samples, "timed", plain)
    (row,) = asked(small("AMD EPYC (AVX2) ×2, 8 GiB", 1, structure=None), "decision")
    assert row["token"] > 1.5 and (row["engine"], row["processor"]) == ("deepspeed", "AVX-512")


def test_two_metrics_of_the_same_answers_are_one_benchmark(
    small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(samples.TASKS, "squad", ("exact_match", 0.0, 0.6))
    monkeypatch.setitem(samples.TASKS, "squad_f1", ("f1", 0.0, 0.7))
    monkeypatch.setitem(samples.TASKS, "arc_easy", ("another metric", 0.25, 0.6))
    tasks = [{"task": name, "limit": 60} for name in ("piqa", "arc_easy", "squad", "squad_f1")]
    ledger = small(benchmarks={"decoder": tasks}, structure=None)
    assert {row["tasks"] for row in asked(ledger, "trade")} == {3}
    assert {row["task"] for row in asked(ledger, "written")} == {"piqa"}, "only known metrics of choosing are choosing"


def test_a_task_has_a_row_with_dense_beside_each_sparsity(small: Callable[..., Path]) -> None:
    some = [{"prune": name, "sparsity": [0.5, 0.9]} for name in ("magnitude", "wanda", "random")]
    path = small(variants=[*some, CHAIN], benchmarks={"decoder": [{"task": "piqa", "limit": 400}]}, structure=None)
    compared = "SELECT method, sparsity, score, dense_score, retained, verdict FROM vs_dense WHERE method <> 'random'"
    known = {
        (row["method"], row["sparsity"]): row
        for row in query.run(path, f"{compared} AND variant_id NOT IN (FROM _more_than_zeros)").dicts()
    }
    rows = asked(path, "grid")
    assert [(row["task"], row["sparsity"], row["methods"]) for row in rows] == [
        ("piqa", sparsity, ["magnitude", "wanda"]) for sparsity in (0.5, 0.9)
    ]
    for row in rows:
        cells = row["shown"].split(" / ")
        assert row["dense"] == f"{known['magnitude', 0.5]['dense_score']:.3f}"
        assert (row["n"], row["chance"]) == (400, "0.5")
        for cell, method in zip(cells, () if row["ruined"] else row["methods"], strict=not row["ruined"]):
            one = known[method, row["sparsity"]]
            mark = "✓" if one["retained"] >= 0.95 else "✗" if one["verdict"] == "worse" else "≈"
            assert cell.replace("*", "") in (f"{mark} {one['score']:.3f}", f"☠ {one['score']:.3f}")
            leads = one["score"] == max(known[other, row["sparsity"]]["score"] for other in row["methods"])
            assert ("**" in cell) == leads, "the best is bold"
    best = max(rows[-1]["methods"], key=lambda method: known[method, 0.9]["score"])
    shown = f"☠ {known[best, 0.9]['score']:.3f}{'ᵐ' if best == 'magnitude' else 'ʷ'}"
    assert rows[-1]["ruined"] and rows[-1]["shown"] == shown, "one mark for all, with the best score and whose"


def test_deepspeed_has_times_and_memory_of_dense_and_of_each_sparsity(small: Callable[..., Path]) -> None:
    path = small(structure=None)
    rows = {(row["ranks"], row["sparsity"]): row for row in asked(path, "deepspeed")}
    assert set(rows) == {(ranks, sparsity) for ranks in (1, 2) for sparsity in (0, 0.5, 0.9)}
    timed = "SELECT ranks, sparsity, phase, ms, speedup FROM latency WHERE phase IN ('prefill', 'decode')"
    for ranks, sparsity, phase, ms, speedup in query.run(path, timed).rows:
        name = "prompt" if phase == "prefill" else "each"
        assert rows[ranks, sparsity][name] == pytest.approx(ms)
        assert rows[ranks, sparsity][f"{name}_speedup"] == (pytest.approx(speedup) if sparsity else None)
    assert {row["comparisons"] for (_, sparsity), row in rows.items() if sparsity} == {2}
    held = """
        SELECT ranks, sparsity,
               coalesce(max(peak_bytes) FILTER (rank IS NOT NULL AND ranks > 1), max(peak_bytes) FILTER (phase = 'overall'))
        FROM memory WHERE phase <> 'load' GROUP BY ALL"""
    for ranks, sparsity, peak in query.run(path, held).rows:
        assert rows[ranks, sparsity]["peak"] == peak


def test_a_headline_is_over_the_fastest_dense_engine() -> None:
    """Our kernels read the prompt fastest, llama.cpp writes a token fastest; of torch the median of its jobs counts."""
    rows = [
        ("decode", "hf", "dense", 40.0, 40.0, 1.0), ("decode", "sparse", "dense", 30.0, 30.0, 1.0),
        ("decode", "llamacpp", "dense", 10.0, 10.0, 1.0),
        ("prefill", "hf", "dense", 100.0, 100.0, 1.0), ("prefill", "llamacpp", "dense", 300.0, 300.0, 1.0),
        ("decode", "hf", "int8", 20.0, 40.0, 2.0), ("decode", "llamacpp", "gguf", 8.0, 10.0, 1.25),
        ("prefill", "hf", "int8", 125.0, 125.0, 1.0), ("prefill", "llamacpp", "gguf", 200.0, 300.0, 1.5),
        ("decode", "llamacpp", "float16", 8.0, 12.0, 1.5),
        ("decode", "llamacpp", "unsure", 10.5, 10.0, 0.95), ("decode", "llamacpp", "worse", 12.5, 10.0, 0.8),
    ]  # fmt: skip
    verdicts = {"unsure": "", "worse": "slower"}
    times = [
        ("m", "real", "here", "w", phase, engine, method, ms, dense, *[speedup] * 3,
         verdicts.get(method, "faster" if speedup > 1 else ""), "float16" if method == "float16" else "bfloat16", 1, 2,
         method, f"{method} in {engine}")
        for phase, engine, method, ms, dense, speedup in rows
    ]  # fmt: skip
    # Two jobs of one variant: the luckier is left out, in its phases too in which it was not.
    times += [
        ("m", "real", "twice", "w", phase, "hf", "int8", 100 / speedup, 100.0, *[speedup] * 3,
         "faster", "bfloat16", 1, 2, "int8", job)
        for job, phase, speedup in [
            ("lucky", "generate", 1.5), ("lucky", "prefill", 1.1), ("other", "generate", 1.2), ("other", "prefill", 1.3)
        ]
    ]  # fmt: skip
    with duckdb.connect() as connection:
        connection.execute("""
            CREATE TABLE latency (model TEXT, weights TEXT, machine TEXT, workload TEXT, phase TEXT, engine TEXT, method TEXT,
                ms DOUBLE, dense_ms DOUBLE, speedup DOUBLE, speedup_low DOUBLE, speedup_high DOUBLE, verdict TEXT, dtype TEXT,
                ranks INT, threads INT, variant_id TEXT, record_id TEXT);
            CREATE TABLE _own_dense AS
            SELECT 'm' AS model, 'real' AS weights, 'here' AS machine, 'w' AS workload, phase, ms, 'bfloat16' AS dtype,
                   1 AS ranks, 2 AS threads
            FROM (VALUES ('prefill', 80.0), ('decode', 12.0)) AS times(phase, ms)""")
        for name in ("_dense_engine", "_dense_times", "_headlines"):
            connection.execute(f"CREATE {sqlfiles.definitions()[name]}")
        fill(connection, "latency", times)
        torch = "SELECT ms FROM _dense_times WHERE name = 'plain torch' AND phase = 'decode' AND machine = 'here'"
        assert connection.execute(torch).fetchall() == [(40.0,)]  # the median of its three jobs
        columns = "phase, method, rival, rivals, paired, speedup, gains, shown"
        one = "WHERE method <> 'dense' AND machine = 'here'"
        found = connection.execute(f"SELECT {columns} FROM _headlines {one} ORDER BY ALL").fetchall()
        twice = "SELECT DISTINCT record_id FROM _headlines WHERE machine = 'twice'"
        assert connection.execute(twice).fetchall() == [("other",)]
    assert [(*row[:5], pytest.approx(row[5]), *row[6:]) for row in found] == [
        ("decode", "float16", "llama.cpp", 2, 1.5, 1.25, True, "×1.25"),
        ("decode", "gguf", "llama.cpp", 2, 1.25, 1.25, True, "×1.25"),
        ("decode", "int8", "llama.cpp", 2, 2.0, 0.5, False, "×0.50"),
        ("decode", "unsure", "llama.cpp", 2, 0.95, 0.95, False, "×0.95?"),
        ("decode", "worse", "llama.cpp", 2, 0.8, 0.8, False, "×0.80"),
        ("prefill", "gguf", "our dense kernels", 2, 1.5, 0.4, False, "×0.40"),
        ("prefill", "int8", "our dense kernels", 2, 1.0, 0.64, False, "×0.64"),
    ]  # fmt: skip


def test_a_floor_is_told_from_chance(small: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 0.4 if "weights" in variant.recipe else 1.0)
    tasks = [{"task": "piqa", "limit": 400}]
    variants = [*SMALL["variants"], {"floor": "zero-weights"}]
    (row,) = asked(small(variants=variants, benchmarks={"decoder": tasks}, structure=None), "tasks")
    assert row["floor"] == row["chance"] > 0.5 and not row["blind"]


def test_a_contrast_has_a_paired_interval(calibrated_ledger: Path) -> None:
    """Against the slow way: the mean of the windows' differences, and Student's t."""
    rows = asked(calibrated_ledger, "contrasts")
    at = {"ingredient": "update", "sparsity": 0.9, "task": "perplexity"}
    (row,) = (row for row in rows if at.items() <= row.items())
    by_method = """
        SELECT method, list(value ORDER BY position) FROM scores JOIN base.outcomes USING (record_id)
        WHERE task = 'perplexity' AND method IN ('wanda', 'sparsegpt') AND pattern = 'unstructured' AND sparsity = 0.9
        GROUP BY ALL"""
    values = {method: np.array(nats) / TOKENS for method, nats in query.run(calibrated_ledger, by_method).rows}
    shift = values["sparsegpt"] - values["wanda"]
    half = stats.t.ppf(0.975, len(shift) - 1) * shift.std(ddof=1) / np.sqrt(len(shift))
    ends = (np.exp(shift.mean() - half), np.exp(shift.mean() + half))
    assert (row["times_low"], row["times_high"]) == pytest.approx(ends, rel=1e-3)
    assert {row["times_low"] for row in rows if row["task"] != "perplexity"} == {None}


def test_a_tie_is_no_loss(small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_generator", lambda key: np.random.default_rng(1))
    ledger = tmp_path / "ties.duckdb"
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0)
    some = [{"prune": name, "sparsity": [0.5]} for name in ("magnitude", "wanda")]
    Ledger(ledger).ingest(calibrated.sample(variants=some, benchmarks={"decoder": [{"task": "piqa", "limit": 200}]}))
    assert [(row["sound"], row["lead"]) for row in asked(ledger, "contrasts")] == [(True, 0)]


@pytest.mark.parametrize("methods", [("magnitude", "random"), ("magnitude", "sparsegpt")])
def test_every_method_has_fallen_only_where_none_stands(tmp_path: Path, methods: tuple[str, ...]) -> None:
    ledger = tmp_path / "fallen.duckdb"
    some = [{"prune": name, "sparsity": [0.5, 0.9]} for name in methods]
    Ledger(ledger).ingest(calibrated.sample(variants=some, benchmarks={"decoder": [{"task": "perplexity"}]}))
    rows = asked(ledger, "findings_scores")
    assert {row["gone_from"] for row in rows} == {None if "sparsegpt" in methods else 0.9}


def test_a_small_sample_that_shows_no_loss_does_not_beat_a_large_one_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "skill", lambda variant: 1.0 if variant.is_dense else 0.88)
    ledger, few, many = tmp_path / "n.duckdb", {"task": "piqa", "limit": 200}, {"task": "piqa", "limit": 9000}
    for name, granularity, tasks in (("large", "layer", [few, many]), ("small", "global", [few])):
        some = [{"prune": "magnitude", "granularity": granularity, "sparsity": [0.5]}]
        made = samples.manifest(**(SMALL | {"variants": some, "benchmarks": {"decoder": tasks}, "runtime": None}))
        Ledger(ledger).ingest(samples.sample(made, name))
    judged = "SELECT DISTINCT v.pairs, verdict FROM vs_dense v ORDER BY 1"
    assert query.run(ledger, judged).rows == ((200, "no difference detected"), (9000, "worse"))
    kept = {(row["label"], row["n"]): row["kept_to"] for row in asked(ledger, "findings_scores")}
    assert kept == {("magnitude/layer", 200): None, ("magnitude/layer", 9000): None, ("magnitude/global", 200): 0.5}
    assert [(row["tasks"], row["losses"]) for row in asked(ledger, "trade")] == [(1, 1)]


def test_the_finding_of_a_whole_ledger_stands_above_no_picture_of_a_part(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "size.png").write_bytes(b"")
    title = "![Size on disk by format, beside its bounds and the file that the model came from]"
    whole, part = (
        "".join(path.read_text() for path in build(ledger, tmp_path / "report.md", tmp_path, some))
        for some in ((), ("sample",))
    )
    assert title not in whole and title in part
    assert "The pictures cover the whole ledger." in part and "The pictures cover the whole ledger." not in whole
