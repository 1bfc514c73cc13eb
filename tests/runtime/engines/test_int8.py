"""int8: coarse but sane, every linear layer, its weights counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sparsebench.errors import ParityError, UnsupportedError
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.load import load_model
from sparsebench.runtime import Setting, Workload, check_supported, memory
from sparsebench.runtime.engines import engine
from sparsebench.runtime.engines.base import Source
from sparsebench.runtime.workload import inputs
from tests.runtime.engines.pruned import FAMILIES, gpt2


@pytest.mark.parametrize("name", [*FAMILIES, "gpt2"])
def test_the_output_is_the_models_own(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "gpt2") if name == "gpt2" else request.getfixturevalue(name)
    family = FAMILIES.get(name, "decoder")
    found = engine("int8")
    found.start(0, 1)
    judged = found.parity(Source(folder, family), inputs(Checkpoint(folder).config, Workload(1, 12, 2), 0, "cpu"))
    assert judged is not None and 0 < judged.relative_l2 < 0.1
    loaded = found.load(Source(folder, family), 20, False)
    assert not any(type(one).__name__ == "Conv1D" or type(one) is torch.nn.Linear for one in loaded.module.modules())
    plain = load_model(folder, family, "float32")
    linear = sum(one.weight.numel() for one in plain.modules() if type(one).__name__ in ("Linear", "Conv1D"))
    assert loaded.hidden_bytes == linear
    assert memory.tensor_bytes(loaded) >= linear
    assert f"×{loaded.layers}" in found.kernel


def test_its_baseline_is_the_plain_model(tiny_llama: Path) -> None:
    beside = engine("int8").load(Source(tiny_llama, "decoder"), 20, True).module
    assert beside.dtype == torch.bfloat16
    assert sum(type(one) is torch.nn.Linear for one in beside.modules()) == 15


def test_a_broken_one_fails(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsebench.runtime.engines.int8 import Int8

    right = Int8.wrap

    def wrong(self: Int8, model: torch.nn.Module, dtype: object, tokens: int) -> object:
        model.get_submodule("model.layers.0.mlp.down_proj").weight.data.mul_(30)
        return right(self, model, dtype, tokens)

    monkeypatch.setattr(Int8, "wrap", wrong)
    found = engine("int8")
    found.start(0, 1)
    with pytest.raises(ParityError, match="relative L2"):  # this variant's own, not its group's
        found.parity(Source(tiny_llama, "decoder"), inputs(Checkpoint(tiny_llama).config, Workload(1, 12, 2), 0, "cpu"))


def test_one_process_only() -> None:
    with pytest.raises(UnsupportedError, match="2 ranks"):
        check_supported({}, "decoder", Setting("int8", 2, Workload()))
