"""A folder that was written but could not be counted is removed: it would pass for complete."""

import importlib
from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparsebench.errors import ModelError
from sparsebench.steps.registry import single
from tests.making import attempt
from tests.models.replaying import written
from tests.models.test_gguf_writer import ABSENT, tiny
from tests.steps.shrink.making import text
from tests.steps.trim.tiny import llama, trimmed


def fails(*_: Any, **__: Any) -> NoReturn:
    raise ModelError("a read ended early", "read again")


@pytest.mark.parametrize(
    ("module", "step"),
    [
        ("moefy.making", single("moefy", "kmeans", experts=8, active=0.5)),
        ("skip.thresholds", single("skip", "teal", share=0.4)),
        ("shrink.depth", single("shrink", "last", blocks=1)),
        ("shrink.width", single("shrink", "l2", keep=0.5, of="neurons")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_counted_is_removed(
    module: str, step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, family = written("llama", tmp_path / "parent")
    monkeypatch.setattr(importlib.import_module(f"sparsebench.steps.{module}"), "step_report", fails)
    results = attempt(parent, family, {step: tmp_path / "out"}, text(family))
    assert isinstance(results[step], ModelError) and "ended early" in results[step].message
    assert not (tmp_path / "out").exists()


def test_so_is_a_file_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason=ABSENT)
    monkeypatch.setattr("sparsebench.steps.quantize.sweep.step_report", fails)
    step = single("quantize", "gguf", type="Q8_0")
    results = attempt(tiny("llama", tmp_path / "parent"), "decoder", {step: tmp_path / "out"})
    assert isinstance(results[step], ModelError) and not (tmp_path / "out").exists()


def test_so_is_a_trimmed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.steps.trim.step.step_report", fails)
    with pytest.raises(ModelError, match="ended early"):
        trimmed(llama(tmp_path / "parent"), tmp_path / "out", "decoder")
    assert not (tmp_path / "out").exists()


def test_so_is_a_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, family = written("llama", tmp_path / "parent")
    monkeypatch.setattr("sparsebench.steps.counting.step_report", fails)
    with pytest.raises(ModelError, match="ended early"):
        attempt(parent, family, {single("floor", "zero-weights"): tmp_path / "out"})
    assert not (tmp_path / "out").exists()
