"""What a job does with each of its cells when one of them fails."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from sparsebench import runtime
from sparsebench.errors import MeasureError, ModelError, UnsupportedError
from sparsebench.plan.cells import Cell
from sparsebench.plan.jobs import jobs
from sparsebench.run import handlers, worker
from sparsebench.run.executor import RunSettings
from sparsebench.run.recorder import Recorder
from sparsebench.storage import pack, sums
from tests.run.conftest import planned, specification


def test_a_variant_that_cannot_be_timed_fails_alone(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned()
    (job,) = [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "latency"]
    off = job.cells[1].variant.id

    def measured(dense: Path, variants: list[tuple[str, Path]], *asked: Any) -> None:
        for key, folder in variants:
            asked[2](key, MeasureError("off") if key == off else f"{folder.name} beside {dense.name}")

    monkeypatch.setattr(runtime, "measure_latency", measured)
    recorder = Mock()
    handlers.latency(specification(plan, settings, job), recorder)
    outcomes = {cell.variant.id: outcome for (cell, outcome), _ in recorder.record.call_args_list}
    assert str(outcomes.pop(off)) == "off"
    assert outcomes == {name: f"{name} beside {plan.dense['m'].id}" for name in outcomes} and len(outcomes) == 2


def test_outputs_are_refused_with_a_way_out_of_their_own(settings: RunSettings) -> None:
    plan = planned(outputs={}, runtime=None, benchmarks={})
    job = next(job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "outputs")
    dense = settings.workspace.folder(plan.dense["m"])
    dense.mkdir(parents=True)
    (dense / "config.json").write_text('{"model_type": "albert"}')
    with pytest.raises(UnsupportedError, match="albert") as told:
        handlers.outputs(specification(plan, settings, job), Mock())
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


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), ModelError("it cannot be read")], ids=["job", "cell"])
def test_a_job_whose_folder_is_removed_under_it_waits_for_it_and_fails_no_cell(
    error: Exception, tiny_llama: Path, settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, space = planned(), settings.workspace
    dense = plan.dense["m"]
    shutil.copytree(tiny_llama, space.folder(dense))
    sums.seal(space.folder(dense))
    cells = [cell for cell in plan.cells if cell.stage == "structure" and cell.variant == dense]
    (job,) = jobs(plan, cells, space.present, space.has_packed)

    def removed(cell: Cell) -> None:
        space.discard(space.folder(dense))
        raise error

    monkeypatch.setitem(handlers.HANDLERS, "assess", lambda spec, recorder: recorder.attempt(cells[0], removed))
    reading, writing = os.pipe()
    assert worker.main(specification(plan, settings, job).save(tmp_path / "spec"), writing) == 0
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
