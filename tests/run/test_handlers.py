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
    settings = {"engine": "deepspeed", "ranks": 1, "workload": {"batch": 1, "prompt": 8, "generate": 2}, "dtype": None}
    cells = [SimpleNamespace(variant=SimpleNamespace(id=name), settings=settings) for name in names]
    return SimpleNamespace(
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


def groups(monkeypatch: pytest.MonkeyPatch, error: type[MeasureError]) -> list[list[str]]:
    """Measuring in place of the ranks: the variant named "off" fails, and with it its group; the groups that began."""
    began: list[list[str]] = []

    def measured(dense: Path, variants: list[tuple[str, Path]], family: str, setting: object, emit: Any) -> None:
        began.append([key for key, _ in variants])
        for key, folder in variants:
            if key == "off":
                raise error(f"{folder} is off")
            emit(key, f"{folder} beside {dense}")

    monkeypatch.setattr(runtime, "measure_latency", measured)
    return began


def test_a_variant_that_is_off_does_not_fail_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began, recorder = groups(monkeypatch, ParityError), Recorder()
    handlers.latency(job(["a", "off", "b"]), recorder)  # type: ignore[arg-type]
    assert recorder.found == {"a": "a beside dense", "off": "off is off", "b": "b beside dense"}
    assert began == [["a", "off", "b"], ["b"]]


def test_what_is_not_a_variants_own_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    began, recorder = groups(monkeypatch, MeasureError), Recorder()
    with pytest.raises(MeasureError, match="off is off"):
        handlers.latency(job(["a", "off", "b"]), recorder)  # type: ignore[arg-type]
    assert recorder.found == {"a": "a beside dense"} and len(began) == 1
