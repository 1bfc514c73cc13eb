"""The table of engines: every file has its row, and a plugin's row is one like any other."""

from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sparsebench import plugins
from sparsebench.errors import MeasureError
from sparsebench.plan.stages import STAGES
from sparsebench.runtime import Setting, Workload, engines
from sparsebench.runtime.engines import BUILT_IN, EngineInfo, engine
from sparsebench.runtime.engines.hf import HuggingFace
from sparsebench.runtime.footprint import footprint
from sparsebench.runtime.refusals import engine_refusal


class Third(HuggingFace):
    """Somebody else's engine."""


PLUGIN = EngineInfo("third", f"{__name__}:Third")
SETTING = Setting("third", 1, Workload(), device="cpu")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    entry = EntryPoint("third", f"{__name__}:PLUGIN", "sparsebench.engines")
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [entry] * (group == "sparsebench.engines"))
    engines.engines.cache_clear()
    yield
    engines.engines.cache_clear()


def test_every_file_of_an_engine_has_its_row() -> None:
    files = {path.stem for path in Path(engines.__file__).parent.glob("*.py")} - {"__init__", "base"}
    assert files == {row.import_path.split(":")[0].rpartition(".")[2] for row in BUILT_IN}


def test_a_plugin_joins(plugged: None, tiny_llama: Path) -> None:
    assert isinstance(engine("third"), Third)
    assert footprint(tiny_llama, Setting("third", 1, Workload())) == footprint(tiny_llama, Setting("hf", 1, Workload()))


@pytest.mark.parametrize(("package", "installed"), [("pip", True), ("no-such-package", False)])
def test_a_plugin_may_need_a_package_that_no_other_engine_does(
    package: str, installed: bool, plugged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engines.engines(), "third", replace(PLUGIN, package=package))
    version = STAGES["latency"].versions({"engine": "third"})[-1]
    refusal = engine_refusal({}, "float", SETTING)
    if installed:
        assert version[0].isdigit() and refusal is None
    else:
        assert version == "absent"
        assert refusal and f"needs {package}" in refusal.reason and refusal.way_out == f"pip install {package}"


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(MeasureError, match="no engine 'onnx'") as caught:
        engine("onnx")
    assert "deepspeed-zero3, hf" in (caught.value.hint or "")
