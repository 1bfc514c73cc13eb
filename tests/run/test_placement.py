"""Jobs whose ranks lie on several nodes of Ray's, without Ray: what is asked of it, refused, and removed again."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from sparsebench import records, runtime
from sparsebench.errors import MeasureError, UserError
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Job
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs, nodes_of
from sparsebench.run import handlers
from sparsebench.run.cluster import Cluster
from sparsebench.run.executor import RunSettings
from sparsebench.run.node import NodeIdentity, do_job
from sparsebench.run.placement import bundles
from sparsebench.run.recorder import JobSpec
from tests.run.conftest import specification
from tests.run.fake_ray import FakeRay, done, node, run


@pytest.fixture
def plan() -> Plan:
    models = [{"name": "m", "source": "path:m", "family": "decoder"}]
    runtime = {"engines": ["deepspeed"], "ranks": [1, 4], "nodes": 2}
    return expand(Manifest.model_validate({"version": 1, "models": models, "runtime": runtime}), "test", {"m": "r"})


@pytest.mark.parametrize(
    ("wanted", "ranks", "gpu", "found"),
    [
        (2, 4, False, [{"CPU": 16.0}, {"CPU": 8.0}]),
        (2, 4, True, [{"GPU": 8.0, "CPU": 16.0}, {"GPU": 2.0, "CPU": 8.0}]),
        (3, 3, False, [{"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 2.0}]),
        (2, 8, True, "8 ranks need 2 nodes with 4 CPUs and 4 GPUs each; 1 of this cluster's 4 can hold them: head"),
        (3, 9, False, r"9 ranks need 3 nodes with 3 CPUs each; 2 of this cluster's 4 .* c \(2 CPUs\)"),
        (5, 5, False, "5 ranks need 5 nodes with 1 CPU each; 3 of this cluster's 4"),
    ],
)
def test_the_largest_nodes_are_asked_for_or_named(wanted: int, ranks: int, gpu: bool, found: object) -> None:
    known = [node("head"), node("c", CPU=2.0), node("a", CPU=8.0, GPU=2.0), node("b", CPU=16.0, GPU=8.0, memory=9.0)]
    if isinstance(found, str):
        with pytest.raises(UserError, match=f"^nodes: {wanted}: {found}"):
            bundles(known, wanted, ranks, gpu)
    else:
        assert bundles(known, wanted, ranks, gpu) == found


def test_a_job_has_whole_nodes_to_its_end(plan: Plan, settings: RunSettings, ray: FakeRay) -> None:
    given: list[str] = []

    def work(spec: JobSpec, *told: Any) -> Iterator[dict[str, Any]]:
        group: str = told[3]
        given.append(group)
        assert bool(group) == (nodes_of(spec.job) == 2)
        yield from done(spec)

    ray.work, ray.looks = work, 2
    assert run(plan, settings).counts["done"] == len(plan.cells)
    assert ray.groups == [([{"CPU": 4.0}, {"CPU": 4.0}], "STRICT_SPREAD")] * 2, "of latency and of memory"
    names = [name for name in given if name]
    assert sorted(ray.removed) == sorted(names) and len(set(names)) == 2
    placed = [asked for asked in ray.asked if "scheduling_strategy" in asked]
    assert {asked["scheduling_strategy"] for asked in placed} == {(name, 0) for name in names}, "on the first node"
    assert {(asked["num_cpus"], asked["max_retries"], "memory" in asked) for asked in placed} == {(4.0, 0, False)}


def test_nodes_that_are_gone_fail_cells(plan: Plan, settings: RunSettings, ray: FakeRay) -> None:
    ray.looks = 10**9

    def gone() -> None:
        ray.looking.wait(30)
        ray.alive = 1

    threading.Thread(target=gone).start()
    ran = run(plan, settings)
    assert ran.ingested == Counter({records.record_key(cell, "cpu"): 1 for cell in plan.cells}), (
        "records come back to the run"
    )
    assert ran.counts["failed"] == 2, "latency and memory"
    said = "nodes: 2: 4 ranks need 2 nodes with 2 CPUs each; 1 of this cluster's 1"
    assert all(said in reason for reason in ran.reasons())
    assert len(ray.removed) == len(ray.groups)


def test_a_cluster_that_can_never_hold_the_ranks_is_refused_before_work(
    plan: Plan, settings: RunSettings, ray: FakeRay
) -> None:
    ray.alive = 1
    with pytest.raises(UserError, match=r"nodes: 2: .* 1 of this cluster's 1 can hold them: node-0 \(4 CPUs\)"):
        Cluster(settings).begin(plan.cells)
    Cluster(settings).begin(cell for cell in plan.cells if not cell.nodes)


def test_a_waiting_job_can_be_given_up(plan: Plan, settings: RunSettings, ray: FakeRay) -> None:
    ray.looks = 10**9
    job = next(job for job in jobs(plan, plan.cells, lambda _: True) if nodes_of(job) == 2)
    settings.workspace.logs.mkdir(parents=True)
    with Cluster(settings) as executor:
        task = executor.start(job, specification(plan, settings, job), settings.workspace.logs / "log", [])
        ray.looking.wait(30)
        task.kill()
        task.wait()
    assert len(ray.removed) == 1 and not ray.asked


def test_jobs_share_the_nodes_there_are(plan: Plan, settings: RunSettings, ray: FakeRay) -> None:
    ray.alive = 3
    executor = Cluster(settings)
    every = [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind in ("latency", "memory")]
    one = next(job for job in every if nodes_of(job) == 1)
    two = next(job for job in every if nodes_of(job) == 2)

    def room(job: Job, *running: Job) -> bool:
        return executor.has_room(job, [SimpleNamespace(job=other) for other in running])

    assert room(two) and room(two, one) and room(one, two)
    assert not room(two, two) and not room(two, one, one) and not room(one, one, two)


def test_ranks_run_on_the_nodes_ray_gave(plan: Plan, settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[runtime.Setting] = []
    monkeypatch.setattr(runtime, "measure_latency", lambda *words: asked.append(words[3]))
    where = ("10.0.0.5", "10.0.0.6")
    for job in jobs(plan, plan.cells, lambda _: True):
        if job.kind == "latency":
            spec = replace(specification(plan, settings, job), nodes=where, group="head:6379/name")
            handlers.latency(spec, Mock())
    found = {setting.ranks: (setting.nodes, setting.group, setting.ranks_per_node) for setting in asked}
    assert found == {1: ((), "", 1), 4: (where, "head:6379/name", 2)}


@pytest.mark.parametrize(
    ("state", "wrong", "said"),
    [
        ("CREATED", UserError, r"node 10\.0\.0\.1: .*torch 1\.0 instead"),
        ("RESCHEDULING", MeasureError, "a node of the placement group is gone"),
    ],
)
def test_a_node_of_the_group_that_differs_or_is_gone_is_named(
    state: str, wrong: type[Exception], said: str, plan: Plan, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node of a placement group of two sees of Ray; tasks on the other node are done at once."""
    group = {"state": state, "bundles": [{"CPU": 2.0}] * 2, "bundles_to_node_id": {0: "a", 1: "b"}}
    ray: Any = SimpleNamespace(
        util=SimpleNamespace(
            get_placement_group=lambda name: name,
            placement_group_table=lambda name: group,
            scheduling_strategies=SimpleNamespace(PlacementGroupSchedulingStrategy=lambda name, at: (name, at)),
        ),
        nodes=lambda: [{"NodeID": name, "NodeManagerAddress": f"10.0.0.{place}"} for place, name in enumerate("ab")],
        remote=lambda function: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=function)),
        get=lambda results, timeout: results,
        exceptions=SimpleNamespace(GetTimeoutError=TimeoutError),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    here, there = NodeIdentity.here("cpu"), replace(NodeIdentity.here("cpu"), versions=(("torch", "1.0"),))
    found = iter([here, there])
    monkeypatch.setattr(NodeIdentity, "here", lambda device: next(found))
    job = next(job for job in jobs(plan, plan.cells, lambda _: True) if nodes_of(job) == 2)
    with pytest.raises(wrong, match=said):
        next(do_job(specification(plan, settings, job), settings, 4, here, "name"))
