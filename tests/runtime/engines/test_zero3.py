"""ZeRO-3 on a CPU: the output is the plain model's, parameters are really shared out, nothing outlives its model."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.runtime import Setting, Workload, measure_latency, measure_memory, memory
from sparsebench.runtime.engines import engines
from sparsebench.runtime.engines.base import SavedModel
from sparsebench.runtime.engines.zero3 import NOTE, Zero3, cut_parameters
from sparsebench.runtime.footprint import footprint
from sparsebench.runtime.workload import draw_prompt
from tests.runtime.engines.pruned import started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose matrices are above DeepSpeed's threshold of 100,000 parameters, below which it keeps them whole."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "wide"
    config = LlamaConfig(
        vocab_size=512, hidden_size=384, intermediate_size=512, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def alone(group_of_one: None) -> Zero3:
    """The engine in a group of one, in this process."""
    return started("deepspeed-zero3")


def test_parameters_are_gathered_for_a_layer_and_let_go(wide: Path, alone: Zero3) -> None:
    seen: list[int] = []
    source = SavedModel(wide, "decoder")
    with torch.inference_mode():
        made = alone.load(source, 20, False)
        block = made.module.model.layers[0]
        # The parameter itself: who asks a module for it within a pass makes DeepSpeed gather it.
        weight = block.self_attn.q_proj.weight
        block.self_attn.q_proj.register_forward_pre_hook(lambda *_: seen.append(weight.numel()))
        block.mlp.register_forward_hook(lambda *_: seen.append(weight.numel()))
        seen.append(weight.numel())
        prompt = draw_prompt(Checkpoint(wide).config, Workload(1, 12, 2))
        plain: Any = source.load_plain()
        expected = plain(input_ids=prompt.ids, attention_mask=prompt.mask).logits
        found = made(input_ids=prompt.ids, attention_mask=prompt.mask).logits
    assert torch.equal(found, expected)
    assert seen == [0, 384 * 384, 0]
    whole = sum(one.nbytes for one in plain.parameters())
    kept = sum(one.nbytes for one in plain.parameters() if one.numel() <= 100_000)
    assert made.hidden_bytes == whole
    assert whole <= memory.tensor_bytes(made) <= whole + kept + 4096


def test_parity_is_evidence_and_a_model_does_not_outlive_its_use(wide: Path, alone: Zero3) -> None:
    judged = alone.parity(SavedModel(wide, "decoder"), draw_prompt(Checkpoint(wide).config, Workload(1, 12, 2)))
    assert judged is not None
    assert (judged.wraps_only, judged.dtype) == (False, "float32")
    assert judged.relative_l2 < 1e-6
    made = alone.load(SavedModel(wide, "decoder"), 20, False)
    share = weakref.ref(next(made.module.parameters()).ds_tensor)
    del made
    gc.collect()
    assert share() is None


def test_a_refusal_of_deepspeeds_is_unsupported(wide: Path, alone: Zero3, monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    def refuse(**_: object) -> None:
        raise ValueError("not this one")

    monkeypatch.setattr(deepspeed, "initialize", refuse)
    with pytest.raises(UnsupportedError, match="ZeRO-3 refuses a LlamaForCausalLM: .*not this one"):
        alone.load(SavedModel(wide, "decoder"), 20, False)


@pytest.mark.long
@pytest.mark.parametrize(("name", "family"), [("wide", "decoder"), ("tiny_bert", "encoder")])
def test_two_ranks_share_the_parameters(name: str, family: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    how = {"samples": 4, "threads": 1, "processes": 1, "phase_seconds": 0.3, "timeout_seconds": 300}
    setting = Setting("deepspeed-zero3", 2, Workload(1, 12, 4), **how)
    timed: list[Any] = []
    measure_latency(folder, [("it", folder)], family, setting, lambda _, result: timed.append(result))
    assert timed[0].parity.relative_l2 < 1e-6
    assert not timed[0].parity.wraps_only
    assert "gathered layer by layer" in timed[0].kernel
    assert NOTE in timed[0].notes
    if family == "decoder":
        found = measure_memory(folder, family, setting)
        whole = sum(info.nbytes for info in Checkpoint(folder).tensors.values())
        assert all(row.tensor_bytes < 0.6 * whole for row in found.per_rank)


def test_it_is_planned_at_several_ranks_and_needs_room_to_gather(wide: Path) -> None:
    assert engines()["deepspeed-zero3"].shards
    plain, zero3 = (footprint(wide, Setting(name, 1, Workload())) for name in ("deepspeed", "deepspeed-zero3"))
    assert plain < zero3 < plain + 2 * 2**20 * 10


def test_a_model_is_cut_before_it_is_moved(wide: Path, alone: Zero3, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: parameters become shares in main memory one by one, then nothing whole is left for ``initialize`` to move."""
    model = SavedModel(wide, "decoder").load_plain()
    ids = torch.arange(8)[None]
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
    cut_parameters(model, torch.bfloat16, "cpu")
    large = [one for one in model.parameters() if one.ds_numel > 100_000]
    assert large and all(one.numel() <= 1 for one in large), "only shares are left"
    assert all(one.ds_tensor.device.type == "cpu" for one in model.parameters())
    engine = alone.wrap(model, torch.bfloat16, 0)
    with torch.inference_mode():
        torch.testing.assert_close(engine(input_ids=ids).logits, plain)
    engine.destroy()
