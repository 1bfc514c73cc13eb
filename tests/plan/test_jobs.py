"""What shares a process, what follows what, and what is made again."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.fingerprint import cell_id
from sparsebench.plan.jobs import jobs, ranks_of, remaking_jobs, runs_alone, takes_all_cores
from sparsebench.plan.resources import memory_shortages, needs, slots
from tests.plan.planning import CALIBRATED, ids, planned, stages

pytestmark = pytest.mark.usefixtures("every_precision")


@pytest.mark.parametrize("other", [{"dtype": "float32"}, {"samples": 8}, {"workloads": {"batch": 2}}])
def test_what_is_timed_otherwise_is_timed_in_a_job_of_its_own(other: dict[str, object]) -> None:
    plan = planned(runtime=[{"engines": "hf"}, {"engines": "hf"} | other])
    timed = [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "latency"]
    for job in timed:
        assert len({cell.variant.id for cell in job.cells}) == len(job.cells)
        assert len({cell_id("latency", "v", cell.settings) for cell in job.cells}) == 1
    alone = planned(runtime={"engines": "hf"})
    assert len(timed) == 2 * len([job for job in jobs(alone, alone.cells, lambda _: True) if job.kind == "latency"])


def test_jobs_share_what_is_expensive_and_follow_their_makers() -> None:
    plan = planned()
    found = jobs(plan, plan.cells, present=lambda variant: False)
    kinds = Counter(job.kind for job in found)
    assert (kinds["prepare"], kinds["benchmarks"]) == (1, 6)
    assert kinds["make"] == 2, "one sweep per granularity; the pattern shares the layer sweep"
    assert sum(len(job.cells) for job in found) == len(plan.cells)
    place = {job.id: number for number, job in enumerate(found)}
    for job in found:
        assert all(place[earlier] < place[job.id] for earlier in job.after)
        assert runs_alone(job, on_gpu=False) == (job.kind == "latency" or (job.kind == "memory" and ranks_of(job) > 1))
        assert takes_all_cores(job, on_gpu=False) == (job.kind in ("latency", "memory"))
        assert job.kind == "prepare" or stages(job.cells)


def test_versions_on_dense_activations_share_one_process() -> None:
    plan = planned(variants=CALIBRATED, runtime=None)

    def named(variant: Variant) -> str:
        return f"{variant.method} {variant.pruning_setting('allocation')} {variant.pruning_setting('propagate')}"

    making = [job for job in jobs(plan, plan.cells, lambda variant: variant.is_dense) if job.kind == "make"]
    assert [sorted(map(named, job.makes)) for job in making] == [
        ["magnitude uniform "],
        ["sparsegpt uniform dense"] * 2 + ["wanda uniform dense"] * 2,
        ["wanda uniform pruned"] * 2,
        ["wanda owl pruned"] * 2,
        ["magnitude owl pruned"],
    ]


def test_models_for_which_memory_is_short_are_known_before_anything_is_loaded(
    free_memory: Callable[[int], None],
) -> None:
    plan = planned(runtime={"ranks": [1]}, benchmarks={})
    work = jobs(plan, plan.cells, lambda variant: True)
    ready = SimpleNamespace(
        device="cpu", sizes={"m": ModelSize(5 * 10**9, 10**10)}, manifest=SimpleNamespace(storage=None), keep="none",
        request=SimpleNamespace(jobs=None), plan=plan, has=lambda _: True,
    )  # fmt: skip

    def short(free: int) -> list[tuple[str, bool]]:
        free_memory(free)
        return [(one.model, one.alone) for one in memory_shortages(ready, work)]

    assert short(30 * 10**9) == []
    assert short(20 * 10**9) == [("m", False)]  # the pair is timed one by one
    alone = needs(ready, work).memory
    assert 10**10 < alone <= 20 * 10**9
    assert short(10 * 10**9) == [("m", True)]
    assert needs(ready, work).memory == alone
    assert short(30 * 10**9) == []
    assert needs(ready, work).memory > 2 * 10**10
    ready.request.jobs = 7
    assert slots(ready) == 7
    make = next(job for job in work if job.kind == "make")
    passing = needs(ready, [make, make]).disk
    ready.keep = "dense"
    assert needs(ready, [make, make]).disk == 2 * passing > 0, "folders that are kept add up"


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
    (alone,) = remaking_jobs(plan, [trained.makes[0]], lambda variant: len(variant.steps) < 2)
    assert [variant.recipe for variant in alone.makes] == [trained.makes[0].recipe]
    again = remaking_jobs(plan, [trained.makes[0]], lambda variant: len(variant.steps) == 1)
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
