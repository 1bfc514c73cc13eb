"""The table of engines: every file has its row, and a plugin's row is one like any other."""

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from sparsebench import plugins
from sparsebench.errors import MeasureError
from sparsebench.runtime import Setting, Workload, engines
from sparsebench.runtime.engines import BUILT_IN, EngineInfo, engine
from sparsebench.runtime.engines.hf import HuggingFace
from sparsebench.runtime.footprint import footprint


class Third(HuggingFace):
    """Somebody else's engine."""


PLUGIN = EngineInfo("third", f"{__name__}:Third")


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


def test_an_unknown_name_is_answered_with_those_that_there_are() -> None:
    with pytest.raises(MeasureError, match="no engine 'onnx'") as caught:
        engine("onnx")
    assert "deepspeed-zero3, hf" in (caught.value.hint or "")
