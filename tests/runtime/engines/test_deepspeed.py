"""DeepSpeed's engine: weights that are widened behind the cut are those that are widened before it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.modules.load import load_model
from sparsebench.runtime import Setting, Workload, footprint
from sparsebench.runtime.engines.base import SavedModel, WrappingEngine
from sparsebench.runtime.engines.deepspeed import DeepSpeed
from sparsebench.runtime.footprint import cut_first
from sparsebench.runtime.workload import draw_prompt


class Uncut(DeepSpeed):
    """One of two ranks to all that it is asked, but alone where DeepSpeed would cut."""

    def wrap(self, model: Any, dtype: Any, tokens: int) -> Any:
        self.ranks = 1
        try:
            return super().wrap(model, dtype, tokens)
        finally:
            self.ranks = 2


@pytest.fixture
def uncut(group_of_one: None) -> Uncut:
    found = Uncut()
    found.start(0, 1)
    found.ranks = 2
    return found


@pytest.mark.slow
def test_widening_behind_the_cut_changes_no_weight_no_buffer_and_no_output(tiny_llama: Path, uncut: Uncut) -> None:
    source = SavedModel(tiny_llama, "decoder", "float32")
    assert cut_first({"BF16"}, source.dtype, uncut.ranks)
    after, before = uncut.load(source, 32, False), WrappingEngine.load(uncut, source, 32, False)
    told, expected = (dict(one.module.named_parameters()) | dict(one.module.named_buffers()) for one in (after, before))
    assert told.keys() == expected.keys()
    assert any("inv_freq" in name for name in told)
    for name, tensor in told.items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    config = after.module.config.to_dict()
    prompt = draw_prompt(config, Workload(prompt=16, generate=4))
    with torch.inference_mode():
        ours, theirs = (one(input_ids=prompt.ids, attention_mask=prompt.mask).logits for one in (after, before))
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


def test_only_one_copy_is_widened_at_several_ranks(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "PARITY_BLOCKS", 0)  # or the copy for parity would be the larger one

    def held(ranks: int, dtype: str) -> int:
        return footprint.model_bytes(tiny_llama, Setting("deepspeed", ranks, Workload(), dtype))

    assert held(1, "float32") < held(2, "float32") < 2 * held(1, "float32")
    assert not cut_first({"BF16", "F32"}, "float32", 2)
    assert not cut_first({"BF16"}, "auto", 2)
    assert not cut_first({"BF16"}, "float32", 1)


def test_want_of_memory_is_not_a_refusal(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    words = ["[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory", "not this model"]
    monkeypatch.setattr(deepspeed, "init_inference", lambda *_, **__: (_ for _ in ()).throw(RuntimeError(words.pop(0))))
    with pytest.raises(RuntimeError, match="can't allocate"):
        DeepSpeed().wrap(load_model(tiny_bert, "encoder"), None, 8)
    with pytest.raises(UnsupportedError, match="refuses"):
        DeepSpeed().wrap(load_model(tiny_bert, "encoder"), None, 8)
