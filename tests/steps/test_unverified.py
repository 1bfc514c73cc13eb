"""A folder that was written but could not be counted is removed: it would pass for complete."""

from pathlib import Path
from typing import Any, NoReturn

import pytest

from sparsebench.errors import ModelError
from sparsebench.steps import counting
from sparsebench.steps.registry import single
from tests.making import attempt
from tests.models.replaying import written
from tests.models.test_gguf_writer import ABSENT, tiny
from tests.steps.shrink.making import text
from tests.steps.trim.tiny import TEXT, llama


def fails(*_: Any, **__: Any) -> NoReturn:
    raise ModelError("a read ended early", "read again")


@pytest.mark.parametrize(
    "step",
    [
        single("moefy", "kmeans", experts=8, active=0.5),
        single("skip", "teal", share=0.4),
        single("shrink", "last", blocks=1),
        single("shrink", "l2", keep=0.5, of="neurons"),
        single("floor", "zero-weights"),
        single("trim", "corpus", source="path:text.txt"),
        single("quantize", "gguf", type="Q8_0"),
    ],
    ids=lambda step: f"{step.verb}-{step.name}",
)
def test_what_cannot_be_counted_is_removed(step: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if step.name == "gguf":
        pytest.importorskip("xllamacpp", reason=ABSENT)
    (tmp_path / "text.txt").write_text(TEXT[0])
    own = {"trim": llama, "quantize": lambda folder: tiny("llama", folder)}.get(step.verb)
    parent = own(tmp_path / "parent") if own else written("llama", tmp_path / "parent")[0]
    monkeypatch.setattr(counting, "zeros_in", fails)
    try:
        fetch = {"fetch_file": lambda source: tmp_path / "text.txt"}
        result = attempt(parent, "decoder", {step: tmp_path / "out"}, text("decoder"), **fetch)[step]
    except ModelError as error:
        result = error
    assert isinstance(result, ModelError) and "ended early" in result.message
    assert not (tmp_path / "out").exists()
