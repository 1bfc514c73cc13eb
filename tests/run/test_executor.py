"""Jobs on Ray's nodes, without Ray: what is asked of it, what comes back, and what is done again where a node is lost; and the
cores that jobs on this machine share."""

import os
import pickle
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench import environment, records
from sparsebench.errors import ModelError, UserError
from sparsebench.plan.cells import Job
from sparsebench.plan.expand import Plan
from sparsebench.plan.jobs import jobs
from sparsebench.run import node
from sparsebench.run.cluster import Cluster, connect, job_capacity, resources
from sparsebench.run.executor import RunSettings
from sparsebench.run.local import Local
from sparsebench.run.node import NodeIdentity, do_job
from sparsebench.run.recorder import JobSpec, Recorder
from sparsebench.run.runner import MAX_RESTARTS
from tests.run.conftest import planned, specification
from tests.run.fake_ray import FakeRay, OutOfMemoryError, RayError, RayTaskError, done, run


@pytest.fixture
def plan() -> Plan:
    return planned()


def test_a_job_whose_node_is_lost_goes_on_elsewhere_with_what_is_left(
    plan: Plan, settings: RunSettings, ray: FakeRay
) -> None:
    starts: list[tuple[str, list[str]]] = []

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        again = any(job == spec.job.id for job, _ in starts)
        starts.append((spec.job.id, [cell.id for cell in spec.job.cells]))
        for event in done(spec, *more):
            yield event
            if not again and event["event"] != "used":
                raise RayError("the node died")

    ray.work = work
    ran = run(plan, settings)
    assert ran.counts == {"done": len(plan.cells), "failed": 0, "unsupported": 0, "skipped": 0}
    assert ran.ingested == Counter({records.record_key(cell, "cpu"): 1 for cell in plan.cells}), (
        "none is lost or comes twice"
    )
    asked = Counter(cell for _, cells in starts for cell in cells)
    begun = dict(reversed(starts))
    first = [cells[0] for cells in begun.values() if len(cells) > 1]
    assert first and all(asked[cell] == 1 for cell in first), "what was recorded is not asked for again"


@pytest.mark.parametrize(
    ("error", "starts", "said"),
    [
        (RayError("the node died"), MAX_RESTARTS + 1, "RayError"),
        (OutOfMemoryError("Task was killed due to the node running low on memory"), 1, "low on memory"),
        (RayTaskError(UserError("torch 1.0 instead of 2.0")), 1, "torch 1.0"),
        (ValueError("what nobody has foreseen"), 1, "ValueError: what nobody has foreseen"),
    ],
)
def test_what_a_node_raises_is_why_the_cells_failed(
    error: Exception, starts: int, said: str, plan: Plan, settings: RunSettings, ray: FakeRay
) -> None:
    """A node that is lost is tried again; what would end so again is not."""

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        if spec.job.kind == "benchmarks":
            raise error
        yield from done(spec, *more)

    ray.work = work
    ran = run(plan, settings)
    scored = [cell for cell in plan.cells if cell.stage == "benchmarks"]
    assert ran.counts["failed"] == len(scored) and ran.counts["done"] == len(plan.cells) - len(scored)
    assert set(ran.ingested.values()) == {1}
    assert sum("benchmarks" in asked["name"] for asked in ray.asked) == 3 * starts
    assert all(said in reason for reason in ran.reasons())
    assert {log.read_text() for log in settings.workspace.logs.glob("assess*.log")} == {"what it said"}
    cpus = {asked["name"].partition("-")[0]: asked["num_cpus"] for asked in ray.asked}
    assert cpus["latency"] == cpus["memory"] == 4 and cpus["benchmarks"] == 2
    assert {asked["max_retries"] for asked in ray.asked} == {0}


def test_jobs_ask_for_what_they_need_and_no_more_than_a_node_has(plan: Plan, settings: RunSettings) -> None:
    nodes = [{"CPU": 8.0, "GPU": 4.0, "memory": 100.0}, {"CPU": 8.0, "memory": 50.0}, {"CPU": 2.0}]
    every = {job.kind: job for job in jobs(plan, plan.cells, lambda _: False)}

    def asked(kind: str, device: str = "cpu", memory: int = 20) -> dict[str, float]:
        return resources(every[kind], replace(settings, device=device), nodes, memory)

    assert asked("benchmarks") == {"CPU": 4.0, "GPU": 0.0, "memory": 20.0}
    assert asked("benchmarks", "cuda", 1000) == {"CPU": 4.0, "GPU": 1.0, "memory": 100.0}
    assert asked("assess", "cuda")["GPU"] == 0.0, "it reads files"
    assert asked("latency", "cuda") == {"CPU": 8.0, "GPU": 4.0, "memory": 20.0}, "it has a node to itself"
    assert job_capacity(nodes, asked("benchmarks"), False) == 4
    assert job_capacity(nodes, asked("benchmarks", "cuda"), False) == 2
    assert job_capacity(nodes, asked("latency"), True) == 2
    assert job_capacity([], asked("latency"), True) == 1, "Ray says that it waits for a node"


def test_a_node_that_differs_is_told_apart() -> None:
    mine = NodeIdentity((("torch", "2.0"), ("numpy", "1.0")), "here", "EPYC")
    assert mine.differs(mine, True) == ""
    assert "numpy absent instead of 1.0" in mine.differs(NodeIdentity((("torch", "2.0"),), "here", "EPYC"), False)
    other = replace(mine, machine_id="there", machine="Xeon")
    assert mine.differs(other, False) == "" and "Xeon" in mine.differs(other, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RayError("No module named 'sparsebench'"), "cannot be imported"),
        ({"shared": False}, "does not see"),
        ({"identity": NodeIdentity((), "here", "EPYC")}, "absent instead"),
        (None, "gave no answer"),
    ],
    ids=["missing", "shared", "version", "silent"],
)
def test_nodes_that_cannot_do_it_are_named_before_anything_runs(
    answer: Any, said: str, plan: Plan, settings: RunSettings, ray: FakeRay
) -> None:
    ray.answers["node-1"] = answer
    with pytest.raises(UserError, match=f"node-1.*: .*{said}") as error:
        Cluster(settings).begin(plan.cells)
    assert "node-0" not in error.value.message


def test_without_a_cluster_the_error_says_what_to_do(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=address):
            connect(FakeRay(), address)
    with pytest.raises(UserError, match="ray://"):
        connect(FakeRay(), "ray://head:10001")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError) as error:
        Cluster(settings)
    assert "pip install 'ray>=2.9'" in str(error.value)


def test_on_a_node_a_job_runs_in_a_process_of_its_own(plan: Plan, settings: RunSettings) -> None:
    job: Job = next(job for job in jobs(plan, plan.cells, lambda _: False) if job.kind == "assess")
    spec = specification(plan, settings, job)
    first, *rest = do_job(spec, settings, 1, NodeIdentity.here("cpu"))
    events = [event for event in rest if event["event"] != "used"]  # said now and then, as silence is taken for death
    assert first["event"] == "used"
    assert [event["event"] for event in events] == ["damaged", "ended"], events
    assert events[-1]["code"] == 0 and not settings.workspace.records.exists()
    with pytest.raises(UserError, match="torch"):
        next(do_job(spec, settings, 1, replace(NodeIdentity.here("cpu"), versions=(("torch", "1.0"),))))
    for local in node._kept.values():
        local.__exit__()
    node._kept.clear()


def test_a_job_that_measures_takes_free_cores(
    plan: Plan, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 8)
    monkeypatch.setattr(Local, "_process", lambda *_: SimpleNamespace(pid=1))
    settings.workspace.logs.mkdir(parents=True)
    with Local(replace(settings, slots=4)) as local:
        running: list[Any] = []
        grows: set[str] = set()
        for job in jobs(plan, plan.cells, lambda _: False):
            spec = specification(plan, settings, job)
            running.append(local.start(job, spec, settings.workspace.logs / job.id, running))
            (path,) = Path(local.temporary).glob("*.job")
            written: JobSpec = pickle.loads(path.read_bytes())
            path.unlink()
            grows |= {job.kind} if written.threads else set()
            os.close(running[-1].events)
        assert grows == {"assess", "benchmarks"}
        for count, threads in ((1, 8), (2, 4), (3, 2), (6, 2)):
            local.share_cores(running[:count])
            assert local.threads_file.read_text() == str(threads)


def test_the_next_cell_has_the_threads_that_are_free_then(plan: Plan, settings: RunSettings, tmp_path: Path) -> None:
    job = next(job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "benchmarks")
    threads, before = tmp_path / "threads", torch.get_num_threads()
    spec = specification(plan, settings, job)
    reading, writing = os.pipe()
    try:
        for number in (2, 1):
            threads.write_text(str(number))
            Recorder(replace(spec, threads=threads), writing).record(job.cells[0], ModelError("not here"))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
        os.close(reading), os.close(writing)
