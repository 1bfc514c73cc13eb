"""A small manifest on a tiny model, and the parts needed to run it in-process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger import query
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import Plan, expand
from sparsebench.run.executor import RunSettings
from sparsebench.run.recorder import JobSpec
from sparsebench.run.workspace import Workspace
from sparsebench.sources.cache import Cache
from tests.run.fake_ray import FakeRay

HEAD = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models:
  - {{name: tiny, source: "path:{model}", family: decoder}}
"""
VARIANTS = """\
variants:
  - {prune: magnitude, sparsity: [0.5, 0.9]}
"""
CALIBRATION = """\
calibration: {source: path:text.txt, samples: 4, length: 16}
"""
OWN = """\
benchmarks:
  decoder:
    - {task: perplexity, name: own, source: path:own.txt, length: 32}
"""


@pytest.fixture
def manifest(tiny_llama: Path, tmp_path: Path) -> Path:
    """Dense and two sparsities of a tiny model: structure and storage."""
    path = tmp_path / "tiny.yaml"
    path.write_text(HEAD.format(home=tmp_path, model=tiny_llama) + VARIANTS)
    return path


class Experiment:
    """A folder for manifests on a tiny decoder: ``text.txt`` to calibrate on and ``own.txt`` to be scored on lie in it."""

    def __init__(self, home: Path, model: Path, text: str, own: str) -> None:
        self.home, self.model, self.ledger = home, model, home / "ledger" / "test.duckdb"
        (home / "text.txt").write_text(text)
        (home / "own.txt").write_text(own)

    def write(self, rest: str) -> Path:
        """A manifest of the model and ``rest``."""
        path = self.home / "experiment.yaml"
        path.write_text(HEAD.format(home=self.home, model=self.model) + rest)
        return path

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        """What the ledger answers."""
        return list(query.run(self.ledger, sql).rows)


@pytest.fixture
def experiment(tiny_llama: Path, tmp_path: Path) -> Experiment:
    """Manifests on the tiny Llama, in words that it knows."""
    text = "\n\n".join(f"the cat sat on the mat {n} times" for n in range(200))
    return Experiment(
        tmp_path, tiny_llama, text, "\n\n".join(f"a big dog ran to one red tree {n} times" for n in range(200))
    )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """What is imported as Ray."""
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    """A run of two slots in folders of its own."""
    space = Workspace.of(tmp_path / "ledger" / "l.duckdb", tmp_path / "work")
    return RunSettings(space, Cache(tmp_path / "cache"), slots=2, sizes={"m": ModelSize(1000, 4000)})


def planned(**changes: Any) -> Plan:
    """Dense and two sparsities of a model that is not there, scored and timed; or what is asked for instead."""
    content = {
        "version": 1,
        "models": [{"name": "m", "source": "path:m", "family": "decoder"}],
        "variants": [{"prune": "magnitude", "sparsity": [0.5, 0.9]}],
        "benchmarks": {"decoder": [{"task": "piqa"}, {"task": "arc_easy"}]},
        "runtime": {"engines": ["hf"]},
    }
    return expand(Manifest.model_validate(content | changes), "test", {"m": "r"})


def specification(plan: Plan, settings: RunSettings, job: Job) -> JobSpec:
    """What a job of the plan is told."""
    space, cache = settings.workspace, settings.cache
    return JobSpec("test", job, plan.model("m"), plan.dense["m"], space, cache, "packed", plan.calibration)
