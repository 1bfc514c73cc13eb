"""Shortening keeps true width and really shortens; a wrong engine is caught."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ParityError, UnsupportedError
from sparsebench.models.files.families import cache_name
from sparsebench.models.modules.load import load_model
from sparsebench.runtime import Workload
from sparsebench.runtime.parity import Parity, check_parity, checked, shorten
from sparsebench.runtime.workload import draw_prompt


@pytest.mark.parametrize(
    ("fixture", "family"), [("tiny_llama", "decoder"), ("tiny_bert", "encoder"), ("tiny_t5", "encoder-decoder")]
)
def test_a_shortened_model_has_fewer_equal_blocks(fixture: str, family: Any, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(fixture)
    model = load_model(folder, family)
    widths = {tuple(value.shape) for value in model.parameters()}
    before = sum(value.numel() for value in model.parameters())
    assert shorten(model, 1) == 1
    assert sum(value.numel() for value in model.parameters()) < before
    assert {tuple(value.shape) for value in model.parameters()} <= widths
    prompt = draw_prompt(model.config.to_dict(), Workload(1, 8, 2))
    assert check_parity(model, lambda one: one, family, prompt, wraps_only=True).relative_l2 == 0.0


def test_shortening_a_model_twice_as_deep_gives_the_shallow_ones_output(tiny_llama: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    deep = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama, num_hidden_layers=6)).eval()
    shallow = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_llama, num_hidden_layers=4)).eval()
    shallow.load_state_dict(deep.state_dict(), strict=False)
    assert shorten(deep) == 4
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(deep(input_ids=ids).logits, shallow(input_ids=ids).logits)


def _off_by_a_little(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.5)
    return model


def _broken(model: Any) -> Any:
    model.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    return model


def test_a_wrong_result_and_a_model_that_does_not_run_are_told_apart(tiny_llama: Path) -> None:
    def judged(wrap: Any) -> None:
        model = load_model(tiny_llama, "decoder")
        check_parity(model, wrap, "decoder", draw_prompt(model.config.to_dict(), Workload(1, 8, 2)), wraps_only=False)

    with pytest.raises(ParityError, match="relative L2"):
        judged(_off_by_a_little)
    with pytest.raises(UnsupportedError, match="does not run"):
        judged(_broken)


def test_a_distance_and_a_limit_that_are_close_are_told_apart() -> None:
    with pytest.raises(ParityError) as raised:
        checked(Parity(0.00771, 0.00766, "float32", 1, False), "")
    distance, limit = map(float, re.findall(r"\d\.\d+e-\d+", raised.value.message))
    assert distance > limit


@pytest.mark.parametrize(("fixture", "family"), [("tiny_llama", "decoder"), ("tiny_t5", "encoder-decoder")])
def test_an_engine_that_forgets_its_cache_is_caught(fixture: str, family: Any, request: pytest.FixtureRequest) -> None:
    def forgetful(model: Any) -> Any:
        forward, name = model.forward, cache_name(model)
        model.forward = lambda **given: forward(**{**given, name: None})
        model.forward.__signature__ = inspect.signature(forward)
        return model

    model = load_model(request.getfixturevalue(fixture), family)
    prompt = draw_prompt(model.config.to_dict(), Workload(1, 8, 2))
    with pytest.raises(ParityError, match="relative L2"):
        check_parity(model, forgetful, family, prompt, wraps_only=False)


def test_a_model_without_a_stack_of_blocks_is_unsupported(tiny_llama: Path) -> None:
    with pytest.raises(UnsupportedError, match="no stack"):
        shorten(torch.nn.Linear(2, 2))
