"""The precision and the place in which cells are calculated."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import environment, processor, records
from sparsebench.cli.plan import _emulated_models
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import Plan
from sparsebench.plan.jobs import jobs
from sparsebench.plan.resources import memory_shortages
from tests.gpus import H100, Driver
from tests.plan.planning import CALIBRATED, bare, planned

pytestmark = pytest.mark.usefixtures("every_precision")


def lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without instructions for 16 bits."""
    monkeypatch.setattr(processor, "is_emulated", lambda dtype: dtype in ("bfloat16", "float16", "auto"))


def precisions(plan: Plan, device: str = "cpu") -> dict[str, set[str]]:
    """By stage, the precision that its cells will be calculated in on this machine's device."""
    found: dict[str, set[str]] = {}
    for cell in plan.cells:
        found.setdefault(cell.stage, set()).add(cell.compute_dtype(device))
    return found


HALF = [{"name": "m", "source": "path:m", "family": "decoder", "dtype": "bfloat16"}]


def test_a_manifest_has_the_same_ids_on_every_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = planned(models=HALF, variants=CALIBRATED)
    assert precisions(before)["benchmarks"] == precisions(before)["latency"] == {"bfloat16"}
    lacking(monkeypatch)
    monkeypatch.setattr(environment, "hardware_class", lambda device: "another CPU")
    after = planned(models=HALF, variants=CALIBRATED)
    assert precisions(after)["benchmarks"] == precisions(after)["latency"] == precisions(after)["memory"] == {"float32"}
    assert before.cells == after.cells


def test_who_names_a_precision_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    plain = planned(models=HALF, runtime={"dtype": "bfloat16"})
    assert precisions(plain)["latency"] == {"bfloat16"} and precisions(plain)["benchmarks"] == {"float32"}
    stubborn = planned(models=[HALF[0] | {"compute_dtype": "bfloat16"}])
    assert precisions(stubborn)["benchmarks"] == {"bfloat16"} and precisions(stubborn)["latency"] == {"float32"}
    wide = planned(models=[HALF[0] | {"dtype": "float32"}])
    assert precisions(wide)["benchmarks"] == {"float32"} and precisions(wide)["latency"] == {"float32"}


def test_documents_that_a_step_reads_are_read_in_the_precision_named() -> None:
    cut = {"shrink": "taylor", "keep": 0.5, "labels": "task", "source": "path:train.jsonl"}
    auto, named = (planned(models=[HALF[0] | more], variants=[cut]) for more in ({}, {"compute_dtype": "float32"}))
    (one,), (other,) = ([cell for cell in plan.cells if cell.stage == "make"] for plan in (auto, named))
    assert one.variant.id != other.variant.id and one.settings == {} and "compute_dtype" in other.settings


def test_a_gpu_runs_what_the_cpu_beside_it_would_emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    plan = planned(models=HALF)
    for stage in ("latency", "memory", "benchmarks"):
        assert precisions(plan, "cuda")[stage] == {"bfloat16"} and precisions(plan)[stage] == {"float32"}


def test_a_device_changes_where_times_are_filed_and_no_id(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    plain = planned()
    assert [planned(device=device).cells for device in ("cpu", "cuda", "cuda:1")] == [plain.cells] * 3
    driver.lists([("GPU-a", H100, "80000")])
    moved = {cell.stage for cell in plain.cells if records.record_key(cell, "cuda") != records.record_key(cell, "cpu")}
    assert moved == {"latency", "memory"}


def test_emulating_16_bits_takes_the_memory_of_float32_and_is_told(
    monkeypatch: pytest.MonkeyPatch, free_memory: Callable[[int], None]
) -> None:
    lacking(monkeypatch)
    ready: Any = SimpleNamespace(device="cpu", sizes={"m": ModelSize(10**9, 2 * 10**9)})
    plan = planned(models=HALF, runtime=None)
    free_memory(5 * 10**9)
    assert memory_shortages(ready, [job for job in jobs(plan, plan.cells, lambda _: True) if job.kind == "benchmarks"])
    for asked, precision in (("auto", "float32"), ("bfloat16", "bfloat16 and slow")):
        plan = planned(models=[HALF[0] | {"compute_dtype": asked}], runtime={"dtype": asked})
        scores, times = _emulated_models(ready, [*plan.cells])
        assert scores.startswith(f"scores and calibration of m are in {precision}: this CPU emulates 16 bits")
        assert times.startswith(f"latency and memory of m are in {precision}: this CPU emulates 16 bits")


def test_a_plan_that_runs_no_model_names_no_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking(monkeypatch)
    ready: Any = SimpleNamespace(device="cpu", sizes={"m": ModelSize(10**9, 2 * 10**9)})
    magnitude, calibrated = (bare(variants=some, structure={}) for some in (CALIBRATED[:1], CALIBRATED))
    assert not list(_emulated_models(ready, [*magnitude.cells]))
    (note,) = _emulated_models(ready, [*calibrated.cells])
    assert note.startswith("scores and calibration of m are in float32")
