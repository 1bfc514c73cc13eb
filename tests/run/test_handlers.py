"""What a job does with each of its cells when one of them fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import runtime
from sparsebench.errors import MeasureError
from sparsebench.run import handlers
from sparsebench.run.recorder import Recorder


def job(names: list[str]) -> Any:
    settings = {"engine": "hf", "ranks": 1, "workload": {"batch": 1, "prompt": 8, "generate": 2}, "dtype": "float32"}
    cells = [
        SimpleNamespace(stage="latency", variant=SimpleNamespace(id=name, dtype="auto"), settings=settings)
        for name in names
    ]
    return SimpleNamespace(
        device="cpu",
        job=SimpleNamespace(cells=cells),
        dense=SimpleNamespace(id="dense"),
        model=SimpleNamespace(family="decoder"),
        workspace=SimpleNamespace(folder=lambda variant: Path(variant.id)),
    )


class Kept(Recorder):
    """What was recorded, by variant."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}

    def done(self, cell: Any, result: object) -> None:
        self.found[cell.variant.id] = result

    def failed(self, cell: Any, error: BaseException) -> None:
        assert isinstance(error, MeasureError)
        self.found[cell.variant.id] = error.message


def test_a_variant_that_cannot_be_timed_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(dense: Path, variants: list[tuple[str, Path]], family: str, setting: object, emit: Any) -> None:
        for key, folder in variants:
            emit(key, MeasureError(f"{folder} is off") if key == "off" else f"{folder} beside {dense}")

    monkeypatch.setattr(runtime, "measure_latency", measured)
    recorder = Kept()
    handlers.latency(job(["a", "off", "b"]), recorder)
    assert recorder.found == {"a": "a beside dense", "off": "off is off", "b": "b beside dense"}
