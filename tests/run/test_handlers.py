"""What a job does with each of its cells when one of them fails."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import runtime
from sparsebench.errors import MeasureError, ModelError, UnsupportedError
from sparsebench.plan.jobs import jobs
from sparsebench.run import handlers, worker
from sparsebench.run.executor import RunSettings
from sparsebench.run.recorder import JobSpec, Recorder
from sparsebench.storage import pack, sums
from tests.run.conftest import planned, specification


def job(names: list[str]) -> Any:
    settings = {"engine": "hf", "ranks": 1, "workload": {"batch": 1, "prompt": 8, "generate": 2}, "dtype": "float32"}
    usual: dict[str, Any] = {"stage": "latency", "settings": settings, "compute_dtype": lambda device: "float32"}
    cells = [SimpleNamespace(variant=SimpleNamespace(id=name), **usual) for name in names]
    return SimpleNamespace(
        device="cpu", job=SimpleNamespace(cells=cells), dense=SimpleNamespace(id="dense"),
        model=SimpleNamespace(family="decoder"), workspace=SimpleNamespace(folder=lambda variant: Path(variant.id)),
    )  # fmt: skip


class Kept(Recorder):
    """What was recorded, by variant."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}
        self.progress = None
        self.note = print

    def record(self, cell: Any, outcome: object) -> None:
        self.found[cell.variant.id] = outcome.message if isinstance(outcome, MeasureError) else outcome


def test_a_variant_that_cannot_be_timed_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(dense: Path, variants: list[tuple[str, Path]], *asked: Any) -> None:
        emit = asked[2]
        for key, folder in variants:
            emit(key, MeasureError(f"{folder} is off") if key == "off" else f"{folder} beside {dense}")

    monkeypatch.setattr(runtime, "measure_latency", measured)
    recorder = Kept()
    handlers.latency(job(["a", "off", "b"]), recorder)
    assert recorder.found == {"a": "a beside dense", "off": "off is off", "b": "b beside dense"}


def test_outputs_are_refused_with_a_way_out_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise UnsupportedError("its blocks are not run one by one", "choose magnitude or random")

    monkeypatch.setattr(handlers, "tokens", refusing)
    cell = SimpleNamespace(settings={"samples": 1, "length": 8})
    model = SimpleNamespace(family="decoder")
    spec = SimpleNamespace(
        compute_dtype="float32", job=SimpleNamespace(cells=[cell]), dense="dense", model=model, device="cpu", cache=None,
        workspace=SimpleNamespace(folder=Path), calibration=SimpleNamespace(source="path:text"),
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="one by one") as told:
        handlers.outputs(spec, Kept())
    assert told.value.hint and "magnitude" not in told.value.hint


def test_a_copy_is_unpacked_and_a_damaged_one_asks_for_its_parent(tiny_llama: Path, settings: RunSettings) -> None:
    plan = planned(variants=[[{"prune": "magnitude", "sparsity": 0.5}, {"quantize": "int8"}]])
    _, parent, end = plan.variants.values()
    space = settings.workspace
    pack(tiny_llama, space.packed(end))
    sums.write_checksums(space.packed(end))
    cells = [cell for cell in plan.cells if cell.variant == end and cell.stage == "structure"]
    (job, _) = jobs(plan, cells, space.present, space.has_packed)
    spec = specification(plan, settings, job)
    said: list[dict[str, str]] = []
    recorder = SimpleNamespace(damaged=said.append, note=lambda text: None)
    assert job.makes == (end,) and handlers.damaged(spec) == {}
    handlers.make(spec, recorder)
    assert space.content(end) and not said
    handlers.make(spec, recorder)
    assert space.has_packed(end) and not said, "it is not unpacked twice"
    space.discard(space.folder(end))
    weights = space.packed(end) / "model.safetensors.packed"
    weights.write_bytes(weights.read_bytes()[:-1])
    handlers.make(spec, recorder)
    assert [[*one] for one in said] == [[parent.id]] and not space.has_packed(end)


def test_a_job_whose_folder_is_removed_under_it_waits_for_it_and_fails_no_cell(
    tiny_llama: Path, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, space = planned(), settings.workspace
    dense = plan.dense["m"]
    shutil.copytree(tiny_llama, space.folder(dense))
    sums.seal(space.folder(dense))
    cells = [cell for cell in plan.cells if cell.stage == "structure" and cell.variant == dense]
    (job,) = jobs(plan, cells, space.present, space.has_packed)
    spec = specification(plan, settings, job)

    def removed(spec: JobSpec, recorder: Recorder) -> None:
        space.discard(space.folder(dense))
        raise FileNotFoundError(space.folder(dense))

    monkeypatch.setitem(handlers.HANDLERS, "assess", removed)
    monkeypatch.setattr(worker, "redact_stderr", lambda: None)
    reading, writing = os.pipe()
    assert worker.main(spec.save(tmp_path / "spec"), writing) == 0
    os.close(writing)
    (event,) = map(json.loads, os.fdopen(reading))
    assert event["event"] == "damaged" and [*event["variants"]] == [dense.id]
    assert not [*space.records.glob("*")]


def test_a_lost_parent_ends_the_worker_and_is_no_error_of_a_cell() -> None:
    """An Exception would become the cell's failure at the worker's boundary."""
    reading, writing = os.pipe()
    spec: Any = SimpleNamespace(job=SimpleNamespace(cells=()))
    recorder = Recorder(spec, writing)
    recorder.progress(1, 2)
    os.close(reading)
    with pytest.raises(SystemExit):
        recorder.progress(2, 2)
    os.close(writing)


def test_a_measurement_of_a_folder_that_is_removed_under_it_is_no_failure(
    tiny_llama: Path, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, space = planned(), settings.workspace
    dense = plan.dense["m"]
    shutil.copytree(tiny_llama, space.folder(dense))
    sums.seal(space.folder(dense))
    cells = [cell for cell in plan.cells if cell.stage == "structure" and cell.variant == dense]
    (job,) = jobs(plan, cells, space.present, space.has_packed)
    spec = specification(plan, settings, job)

    def measure(cell: Any) -> Any:
        space.discard(space.folder(dense))
        raise ModelError("it cannot be read")

    monkeypatch.setitem(handlers.HANDLERS, "assess", lambda spec, recorder: recorder.attempt(cells[0], measure))
    monkeypatch.setattr(worker, "redact_stderr", lambda: None)
    reading, writing = os.pipe()
    assert worker.main(spec.save(tmp_path / "spec"), writing) == 0
    os.close(writing)
    (event,) = map(json.loads, os.fdopen(reading))
    assert event["event"] == "damaged" and [*event["variants"]] == [dense.id]
    assert not [*space.records.glob("*")]
