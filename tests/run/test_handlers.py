"""What a job does with each of its cells when one of them fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsebench import runtime
from sparsebench.errors import MeasureError, ParityError
from sparsebench.run import handlers


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


class Recorder:
    """What was recorded, by variant."""

    def __init__(self) -> None:
        self.found: dict[str, object] = {}

    def done(self, cell: Any, result: object) -> None:
        self.found[cell.variant.id] = result

    def failed(self, cell: Any, error: MeasureError) -> None:
        self.found[cell.variant.id] = error.message


def groups(monkeypatch: pytest.MonkeyPatch, error: type[MeasureError], said: str = "") -> list[list[str]]:
    """Measuring in place of the ranks: variants named "off" fail, each with its group; the groups that began."""
    began: list[list[str]] = []

    def measured(dense: Path, variants: list[tuple[str, Path]], family: str, setting: object, emit: Any) -> None:
        began.append([key for key, _ in variants])
        for key, folder in variants:
            if key.startswith("off"):
                raise error(said or f"{folder} is off")
            emit(key, f"{folder} beside {dense}")

    monkeypatch.setattr(runtime, "measure_latency", measured)
    return began


@pytest.mark.parametrize("error", [ParityError, MeasureError])
def test_a_variant_that_is_off_does_not_fail_those_behind_it(
    monkeypatch: pytest.MonkeyPatch, error: type[MeasureError]
) -> None:
    began, recorder = groups(monkeypatch, error), Recorder()
    handlers.latency(job(["a", "off", "b"]), recorder)  # type: ignore[arg-type]
    assert recorder.found == {"a": "a beside dense", "off": "off is off", "b": "b beside dense"}
    assert began == [["a", "off", "b"], ["b"]]


def test_what_is_not_a_variants_own_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    began, recorder = groups(monkeypatch, MeasureError, "no compiler"), Recorder()
    with pytest.raises(MeasureError, match="no compiler"):
        handlers.latency(job(["a", "off", "off too", "b"]), recorder)  # type: ignore[arg-type]
    assert recorder.found == {"a": "a beside dense", "off": "no compiler"} and len(began) == 2
