"""Jobs that measure take the cores that others leave free, from their next cell on; what makes variants does not."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench import environment
from sparsebench.errors import ModelError
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs
from sparsebench.run.executor import RunSettings
from sparsebench.run.local import Local
from sparsebench.run.recorder import JobSpec, Recorder
from tests.run.test_executor import CONTENT, specification


@pytest.fixture
def plan() -> Plan:
    return expand(Manifest.model_validate(CONTENT), "test", {"m": "r"})


def test_a_job_that_measures_takes_the_cores_that_are_free(
    plan: Plan, settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "cores", lambda: 8)
    monkeypatch.setattr(Local, "_process", lambda *_: SimpleNamespace(pid=1))
    settings.workspace.logs.mkdir(parents=True)
    with Local(replace(settings, slots=4)) as local:
        running: list[Any] = []
        grows: dict[str, bool] = {}
        for job in jobs(plan, plan.cells, lambda _: False):
            spec = specification(plan, settings, job)
            running.append(local.start(job, spec, settings.workspace.logs / job.id, running))
            written: JobSpec = pickle.loads((settings.workspace.logs / job.id).with_suffix(".job").read_bytes())
            grows[job.kind] = written.threads is not None
            os.close(running[-1].events)
        assert grows == {
            "prepare": False,
            "make": False,
            "assess": True,
            "benchmarks": True,
            "latency": False,
            "memory": False,
        }
        for count, threads in ((1, 8), (2, 4), (3, 2), (6, 2)):
            local.share_cores(running[:count])
            assert local.threads.read_text() == str(threads)


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
