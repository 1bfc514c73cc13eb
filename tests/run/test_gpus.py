"""Which job has which GPU. The GPUs are those of a driver's tool that lists what is not there, and no process is started."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import devices
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import expand
from sparsebench.plan.jobs import jobs
from sparsebench.plan.resources import at_once
from sparsebench.run.executor import Settings
from sparsebench.run.local import Local
from sparsebench.run.queue import Queue
from sparsebench.run.runner import Runner
from sparsebench.run.workspace import Workspace
from tests.gpus import H100, Driver

CONTENT = {
    "version": 1,
    "models": [{"name": "m", "source": "path:m", "family": "decoder"}],
    "variants": [{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
    "benchmarks": {"decoder": [{"task": "piqa"}]},
    "runtime": {"engines": ["hf"]},
}


@pytest.fixture
def runner(driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A runner on two GPUs; ``started`` has each job's kind, GPU, visible GPUs and the device that its worker is told."""
    driver.lists([("GPU-a", H100, "80000"), ("GPU-b", H100, "80000")])
    plan = expand(Manifest.model_validate(CONTENT), "test", {"m": "r"})
    space = Workspace.of(tmp_path / "ledger" / "l.duckdb", tmp_path / "work")
    settings = Settings(space, tmp_path / "cache", slots=8, sizes={"m": ModelSize(1000, 4000)}, device="cuda")
    display = SimpleNamespace(started=lambda _: None)
    local: Any = Local(settings)
    made: Any = Runner(plan, settings, local, lambda _: None, display)  # type: ignore[arg-type]
    local.temporary, made.started = str(tmp_path), []

    def process(job: Job, spec: Path, log: Path, events: int, gpu: str) -> Any:
        told = pickle.loads(spec.read_bytes()).device
        made.started.append((job.kind, gpu, local._environment(job, gpu).get(devices.VISIBLE), told))
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
    assert {at_once(child.task.job, 8, 2) for child in runner.children if child.task.gpu} == {2}, "as the plan has it"
    assert [job.kind for job in runner.waiting] == ["benchmarks"], "the third model waits for a GPU, not for a slot"
    runner.children = [child for child in runner.children if child.task.gpu != "GPU-a"]
    runner._start_ready()
    assert runner.started[-1] == ("benchmarks", "GPU-a", "GPU-a", "cuda") and not runner.waiting


def test_a_timed_job_has_the_machine_with_all_its_gpus(runner: Any) -> None:
    wanted(runner, "latency")
    assert runner.started == [("latency", "", None, "cuda")]


def test_on_a_cpu_no_job_sees_a_gpu(runner: Any) -> None:
    runner.settings = runner.executor.settings = replace(runner.settings, device="cpu")
    runner.executor.gpus = []
    wanted(runner, "benchmarks")
    assert {one[1:] for one in runner.started} == {("", "", "cpu")} and len(runner.started) == 3
