"""Which job has which GPU. The GPUs are those of a driver's tool that lists what is not there, and no process is started."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from sparsebench import devices, records
from sparsebench.cli.app import app
from sparsebench.ledger import query
from sparsebench.plan.cells import Job
from sparsebench.plan.estimate import concurrent_jobs
from sparsebench.plan.jobs import jobs
from sparsebench.plan.preflight import PlanRequest, prepare
from sparsebench.run.executor import RunSettings
from sparsebench.run.local import Local, LocalJob
from sparsebench.run.queue import Queue
from sparsebench.run.runner import Runner
from sparsebench.run.select import DecisionKind, decisions
from sparsebench.run.workspace import Workspace
from tests.gpus import H100, Driver
from tests.plan.planning import RANDOM
from tests.run.conftest import planned


@pytest.fixture
def runner(driver: Driver, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner on two GPUs; ``started`` has each job's kind, GPU, visible GPUs and the device that its worker is told."""
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", H100, "80000")])
    plan = planned(benchmarks={"decoder": [{"task": "piqa"}]})
    settings = replace(settings, slots=8, device="cuda")
    display = SimpleNamespace(started=lambda _: None)
    local: Any = Local(settings)
    made: Any = Runner(plan, settings, local, lambda _: None, display)
    local.temporary, made.started = str(tmp_path), []

    def process(job: Job, spec: Path, log: Path, events: int, gpu: str) -> Any:
        told = pickle.loads(spec.read_bytes()).device
        made.started.append((job.kind, gpu, local._environment(job, gpu).get(devices.VISIBLE_DEVICES), told))
        return SimpleNamespace(pid=1)

    monkeypatch.setattr(local, "_process", process)
    made.every = [replace(job, after=()) for job in jobs(plan, plan.cells, lambda _: False)]
    return made


def wanted(runner: Any, *kinds: str) -> None:
    runner.waiting = Queue(job for job in runner.every if job.kind in kinds)
    runner._start_ready()


def test_what_calculates_has_a_gpu_to_itself_and_the_others_see_none(runner: Any) -> None:
    wanted(runner, "benchmarks", "assess", "make")
    scored = [one for one in runner.started if one[0] == "benchmarks"]
    assert scored == [("benchmarks", "GPU-a", "GPU-a", "cuda"), ("benchmarks", "GPU-b", "GPU-b", "cuda")]
    assert {one[1:] for one in runner.started if one[0] != "benchmarks"} == {("", "", "cpu")}
    on_gpus = [child.task.job for child in runner.children if child.task.own_gpus]
    assert {concurrent_jobs(job, 8, 2) for job in on_gpus} == {2}, "as the plan has it"
    assert [job.kind for job in runner.waiting] == ["benchmarks"], "the third model waits for a GPU, not for a slot"
    runner.children = [child for child in runner.children if child.task.own_gpus != "GPU-a"]
    runner._start_ready()
    assert runner.started[-1] == ("benchmarks", "GPU-a", "GPU-a", "cuda") and not runner.waiting


def test_jobs_on_the_cpu_take_no_slot_of_those_on_gpus(runner: Any) -> None:
    runner.settings = runner.executor.settings = replace(runner.settings, slots=2)
    wanted(runner, "assess", "make")
    assert [gpu for _, gpu, _, _ in runner.started] == ["", ""] and len(runner.waiting), "no more than slots"
    runner.waiting = Queue([*runner.waiting, *(job for job in runner.every if job.kind == "benchmarks")])
    runner._start_ready()
    assert [one[:2] for one in runner.started[2:]] == [("benchmarks", "GPU-a"), ("benchmarks", "GPU-b")]


def test_times_that_accept_noise_are_taken_on_different_gpus_at_once(runner: Any) -> None:
    def runtime(**more: Any) -> list[Job]:
        plan = planned(runtime={"engines": ["deepspeed"], **more})
        timed = [job for job in jobs(plan, plan.cells, lambda _: False) if job.kind == "latency"]
        return [replace(job, after=()) for job in timed]

    loads = [{"batch": batch, "prompt": 8, "generate": 4} for batch in (1, 2)]
    runner.waiting = Queue([*runtime(ranks=[1], alone="device", workloads=loads), *runtime(ranks=[2], alone="device")])
    runner._start_ready()
    assert runner.started == [("latency", gpu, gpu, "cuda") for gpu in ("GPU-a", "GPU-b")]
    runner.children = runner.children[:1]
    runner._start_ready()
    assert len(runner.started) == 2, "two ranks wait for two GPUs"
    runner.children = []
    runner._start_ready()
    assert runner.started[-1] == ("latency", "GPU-a,GPU-b", "GPU-a,GPU-b", "cuda"), "one GPU a rank"
    assert not runner.executor.has_room(runtime()[0], [child.task for child in runner.children]), (
        "the usual ones are alone"
    )


def test_a_timed_job_has_the_machine_and_memory_is_measured_on_a_gpu_of_its_own(runner: Any, driver: Driver) -> None:
    wanted(runner, "latency")
    assert runner.started == [("latency", "", None, "cuda")]
    runner.children, runner.started = [], []
    wanted(runner, "memory")
    assert [one[:3] for one in runner.started] == [("memory", "GPU-a", "GPU-a"), ("memory", "GPU-b", "GPU-b")]
    runner.children, runner.started = [], []
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", "NVIDIA T400", "4000")])
    wanted(runner, "memory")
    assert runner.started == [("memory", "", None, "cuda")], "where GPUs differ it is filed under both names"


def test_on_a_cpu_no_job_sees_a_gpu(runner: Any) -> None:
    runner.settings = runner.executor.settings = replace(runner.settings, device="cpu")
    runner.executor.gpus = []
    wanted(runner, "benchmarks")
    assert {one[1:] for one in runner.started} == {("", "", "cpu")} and len(runner.started) == 3


def test_no_gpu_gets_two_jobs_at_once(runner: Any) -> None:
    local, queue = runner.executor, Queue(runner.every)
    running: list[LocalJob] = []
    done = 0
    while queue or running:
        while job := queue.take(lambda job: local.has_room(job, running)):
            running.append(LocalJob(job, None, -1, local.gpus_of(job, running)))
        taken = [gpu for task in running for gpu in task.own_gpus.split(",") if gpu]
        assert len(taken) == len(set(taken)) <= 2
        assert len(running) == 1 or not any(task.job.kind == "latency" for task in running)
        queue.end(running.pop(0).job)
        done += 1
    assert done == len(runner.every)


REFUSED = """\
ledger: {home}/l.duckdb
work_dir: {home}/work
runtime: {{engines: [deepspeed], ranks: [1, 2]}}
"""


def test_what_the_plan_refuses_is_recorded_once_and_asked_again_with_other_gpus(driver: Driver, tmp_path: Path) -> None:
    driver.seen_by_torch()
    path = tmp_path / "m.yaml"
    path.write_text(RANDOM + REFUSED.format(home=tmp_path))

    def called(verb: str, *words: str) -> Any:
        done = CliRunner().invoke(app, [verb, str(path), "--device", "cuda", *words])
        assert done.exit_code == 0, done.output
        return done

    driver.lists([("GPU-a", H100, "80000")])
    assert "2 unsupported" in called("run", "--only", "ranks=2").stderr
    stages = json.loads(called("status", "--json").stdout)["stages"]
    timed = [(row["unsupported"], row["left"]) for row in stages if row["stage"] in ("latency", "memory")]
    assert timed == [(1, 1)] * 2
    assert "2 ranks need 2 GPUs" in called("status").stderr
    only_ones = called("run", "--only", "ranks=2").stderr
    assert "every cell that --only asks for has its result but 2, which cannot run here" in only_ones
    asked = "SELECT DISTINCT status, reason LIKE '2 ranks need%' FROM base.records"
    assert list(query.run(tmp_path / "l.duckdb", asked).rows) == [("unsupported", True)]

    def runs() -> set[tuple[bool, str]]:
        ready = prepare(PlanRequest(path, device="cuda", only=(("ranks", "2"),)))
        found = decisions(ready, Workspace.of(ready.ledger, ready.work).records, False)
        return {(one.runs, one.reason) for one in found if one.kind != DecisionKind.LEFT_OUT}

    assert runs() == {(False, "unsupported: 2 ranks need 2 GPUs, but device cuda has 1")}
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", H100, "80000")])
    assert runs() == {(True, "refused before")}
    # What a job found on one GPU of the two is not asked again and again.
    ready = prepare(PlanRequest(path, device="cuda"))
    for cell in ready.plan.cells:
        if cell.settings.get("ranks") == 2:
            outcome = records.CellOutcome("unsupported", reason="no kernel", content="sha")
            records.write(tmp_path / "records", records.make(cell, ready.plan.manifest, outcome, "cuda"))
    driver.lists([(name, H100, "80000") for name in ("GPU-a", "GPU-b", "GPU-c")])
    assert runs() == {(False, "unsupported")}
