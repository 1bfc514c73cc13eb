"""Architectures that no table lists and that work all the same: the same numbers as stock transformers, and zeros where asked."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.build import check_buffers
from sparsebench.models.modules.load import load_model
from sparsebench.models.random_weights import write_random
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.architectures import architecture_of
from sparsebench.steps.registry import single
from tests.making import make
from tests.models.model_zoo import GROUPED, ROUTED, T5
from tests.models.replaying import batch, stock
from tests.models.test_axes import what_is_zero_can_go
from tests.steps.shrink.making import text

CONFIGS: dict[str, dict[str, Any]] = {
    "mamba2": {
        "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
        "expand": 2, "n_groups": 1, "chunk_size": 8, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    },
    # Three blocks of linear attention, and one of the usual kind.
    "qwen3_next": {
        **ROUTED, "num_hidden_layers": 4, "shared_expert_intermediate_size": 24, "num_experts": 4,
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "t5gemma": {
        "vocab_size": 96, "is_encoder_decoder": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
        "encoder": {**GROUPED, "model_type": "t5_gemma_module"}, "decoder": {**GROUPED, "model_type": "t5_gemma_module"},
    },
}  # fmt: skip


SHRUNK: dict[str, dict[str, Any]] = {
    "cohere": {**GROUPED, "use_qk_norm": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "eurobert": {**GROUPED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "jamba": {
        **GROUPED, "num_hidden_layers": 4, "num_experts": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False, "pad_token_id": 0,
    },
    "qwen3_next": CONFIGS["qwen3_next"],
    "switch_transformers": {**T5, "num_experts": 4, "expert_capacity": 64, "num_sparse_encoder_layers": 1,
                            "num_sparse_decoder_layers": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", SHRUNK)
def test_what_is_zero_can_go(kind: str, tmp_path: Path) -> None:
    family: Any = {"eurobert": "encoder", "switch_transformers": "encoder-decoder"}.get(kind, "decoder")
    config = {"model_type": kind, "initializer_range": 0.2, **SHRUNK[kind]}
    what_is_zero_can_go(kind, write_random(config, tmp_path / "model", family, "float32", 0), family)


@pytest.mark.parametrize("kind", ["albert", "mamba", "whisper", "opus"])
def test_what_nothing_can_be_cut_out_of_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedError, match=f"{kind}: nothing can be cut") as told:
        architecture_of({"model_type": kind})
    assert "prune it" in (told.value.hint or "")


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_replayed_and_pruned_with_calibration(kind: str, tmp_path: Path) -> None:
    family: Any = "encoder-decoder" if kind == "t5gemma" else "decoder"
    config = {"model_type": kind, "initializer_range": 0.2, **CONFIGS[kind]}
    folder = write_random(config, tmp_path / "model", family, "float32", 0)
    given = batch(family, padded=False)
    model = stock(folder, family)
    words: dict[str, Any] = {"input_ids": given.input_ids}
    if given.decoder_input_ids is not None:
        words |= {"decoder_input_ids": given.decoder_input_ids}
    with torch.no_grad():
        final = (model if family == "encoder-decoder" else model.base_model)(**words, output_hidden_states=True)
    states = final.decoder_hidden_states[-1] if family == "encoder-decoder" else final[0]

    def visit(block: Block) -> None:
        block.observe(0, gram=True)

    replay = Replay(Checkpoint(folder), family, given)
    replay.run(visit)
    found = replay.outputs(0)
    assert torch.allclose(found, states, rtol=1e-4, atol=2e-5 * float(states.abs().max())), float(
        (found - states).abs().max()
    )
    for name in ("magnitude", "wanda", "sparsegpt"):
        (report,) = make(folder, family, {single("prune", name, sparsity=0.5): tmp_path / name}, text(family)).values()
        assert report.achieved == pytest.approx(0.5, abs=0.01)
        load_model(tmp_path / name, family)


@pytest.mark.parametrize(("unset", "set_"), [(2**63 - 1, 0), (float("nan"), 0.0)])
def test_a_buffer_that_nobody_sets_is_refused(unset: float, set_: float) -> None:
    module = torch.nn.Module()
    module.register_buffer("places", torch.full((2,), unset))
    with pytest.raises(UnsupportedError, match=r"layers\.0\.places"):
        check_buffers(module, "layers.0")
    module.register_buffer("places", torch.full((2,), set_))
    check_buffers(module, "layers.0")
