"""What an engine cannot run is refused by name before anything is loaded, with the way out where there is one."""

from typing import Any

import pytest

from sparsebench import environment
from sparsebench.errors import UnsupportedError
from sparsebench.models.files.quantized import Scheme
from sparsebench.models.modules.skipping import SkipThresholds
from sparsebench.runtime import Setting, Workload, check_supported

LLAMA = {"model_type": "llama", "hidden_size": 64}
SKIPS = SkipThresholds({"layers.0.self_attn.q_proj": 0.1}, {}).config()


def quantized(bits: int, group: int | None = None) -> dict[str, Any]:
    return {"quantization_config": Scheme(bits, group).config(["model.layers.0.mlp.up_proj.weight"])}


@pytest.fixture(autouse=True)
def _llamacpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package is installed."""
    monkeypatch.setitem(environment.versions(), "xllamacpp", "2026.10.0")


@pytest.mark.parametrize(
    ("engine", "ranks", "config", "named", "way_out"),
    [
        ("deepspeed-zero3", 1, quantized(4, 64), "does not run int4", "deepspeed or hf or sparse"),
        ("deepspeed", 2, quantized(8), "2 ranks", "one rank"),
        ("hf", 1, quantized(4, 20), "not of 20", ""),
        ("hf", 1, quantized(8, 32), "for 32 columns", ""),
        ("sparse", 1, quantized(8, 32), "for 32 columns", ""),
        ("sparse", 2, {}, "2 ranks", "deepspeed"),
        ("sparse", 1, SKIPS, "the sparse engine", "hf or skip"),
        ("deepspeed", 1, SKIPS, "the deepspeed engine", "hf or skip"),
        ("deepspeed-zero3", 1, SKIPS, "the deepspeed-zero3 engine", "hf or skip"),
        ("hf", 1, SKIPS | quantized(8), "no engine can skip the weights of a quantized model", ""),
        ("skip", 1, SKIPS | quantized(8), "no engine can skip the weights of a quantized model", ""),
        ("llamacpp", 1, LLAMA | quantized(8), "int8", "hf"),
        ("llamacpp", 1, {"model_type": "t5"}, "t5", ""),
    ],
    ids=str,
)
def test_an_engine_refuses_by_name(engine: str, ranks: int, config: dict[str, Any], named: str, way_out: str) -> None:
    with pytest.raises(UnsupportedError, match=named) as caught:
        check_supported(config, "decoder", Setting(engine, ranks, Workload(1, 12, 4)))
    assert way_out in (caught.value.hint or "")


def test_llamacpp_runs_one_sequence_and_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="one sequence"):
        check_supported(LLAMA, "decoder", Setting("llamacpp", 1, Workload(batch=2)))
    check_supported(LLAMA, "decoder", Setting("llamacpp", 1, Workload()))
    monkeypatch.setitem(environment.versions(), "xllamacpp", "absent")
    with pytest.raises(UnsupportedError, match="xllamacpp") as caught:
        check_supported(LLAMA, "decoder", Setting("llamacpp", 1, Workload()))
    assert "pip install" in str(caught.value.hint)
