"""A token's way through all blocks in one call gives what transformers' modules give, at every instruction set."""

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from sparsebench.models.files.families import cache_name
from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels, decoder
from sparsebench.runtime.kernels.cache import GROWTH_TOKENS, GrowingLayer
from sparsebench.runtime.kernels.matrix import dense, to_bitmask
from tests.runtime.kernels.conftest import levels

KINDS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
MORE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-5}
"""The relative distance (L2) of logits; transformers rounds to the dtype in more places."""


def made(kind: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny model of a kind, with random norms and biases too."""
    settings = {
        "vocab_size": 96, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2,
    } | ({"sliding_window": None} if kind == "mistral" else {})  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(settings | changes))).to(dtype).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = (torch.randn(parameter.shape) * 0.5 + ("norm" in name)).to(dtype)
        elif "embed" not in name:
            parameter.data *= 5
    return model.requires_grad_(False)


def with_steps(plain: Any, kernels: Kernels, zeros: bool = False) -> tuple[Any, Counter[int]]:
    """A copy whose blocks' layers are ours, and the count of its steps."""
    model, taken = copy.deepcopy(plain), Counter[int]()
    for path, layer in list(model.named_modules()):
        if type(layer) is torch.nn.Linear and path != "lm_head":
            made = to_bitmask(layer.weight) if zeros else dense(layer.weight.detach())
            ours = KernelLinear(kernels, made, Autotuner(), layer.weight.dtype)
            ours.register_parameter("bias", layer.bias)
            model.set_submodule(path, ours)
    decoder.install(model, kernels, taken)
    return model, taken


def logits(model: Any, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """The logits of all tokens, those after the prompt one at a time."""
    name = cache_name(model)
    with torch.inference_mode():
        out = model(input_ids=ids[:, :prompt], use_cache=True)
        parts = [out.logits]
        for at in range(prompt, ids.shape[1]):
            mask = torch.ones(1, at + 1, dtype=torch.int64)
            out = model(input_ids=ids[:, at : at + 1], attention_mask=mask, use_cache=True, **{name: out[name]})
            parts.append(out.logits)
    return torch.cat(parts, 1)


def tokens(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, (1, count), generator=torch.Generator().manual_seed(seed))


def distance(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.float() - right.float()).norm() / right.float().norm())


@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(sorted(CLOSE, key=str)),
    shared=st.sampled_from([1, 2, 3]),
    groups=st.sampled_from([1, 2, 3]),
    size=st.sampled_from([2, 6, 16, 32, 38, 64]),
    width=st.sampled_from([8, 40, 64, 100]),
    inner=st.sampled_from([5, 64, 130]),
    prompt=st.sampled_from([1, 2, 15, 16, 17, 33]),
    threads=st.sampled_from([1, 2]),
    zeros=st.booleans(),
)
@MORE
def test_steps_equal_transformers(
    compiled: Kernels,
    kind: str,
    dtype: torch.dtype,
    shared: int,
    groups: int,
    size: int,
    width: int,
    inner: int,
    prompt: int,
    threads: int,
    zeros: bool,
) -> None:
    assume(kind != "llama" or width % (shared * groups) == 0)  # transformers refuses others
    sizes = {"hidden_size": width, "intermediate_size": inner, "head_dim": size}
    plain = made(kind, dtype, num_attention_heads=shared * groups, num_key_value_heads=shared, **sizes)
    model, taken = with_steps(plain, compiled, zeros)
    ids = tokens(prompt + 4)
    right = logits(plain, ids, prompt)
    for level in levels(compiled):
        torch.set_num_threads(threads)
        assert distance(logits(model, ids, prompt), right) <= CLOSE[dtype], level
    assert taken == {2: 4 * len(list(levels(compiled)))}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_transformers(compiled: Kernels, kind: str) -> None:
    plain = made(kind)
    model, taken = with_steps(plain, compiled)
    asked = {"max_new_tokens": 2 * GROWTH_TOKENS + 5, "do_sample": False, "eos_token_id": None}
    right = plain.generate(tokens(7), **asked)
    assert torch.equal(model.generate(tokens(7), **asked), right)
    assert taken == {2: 2 * GROWTH_TOKENS + 4} and len(set(right[0].tolist())) > 5


def test_more_threads_give_the_same_bits(compiled: Kernels) -> None:
    model, _ = with_steps(made("llama", hidden_size=256, intermediate_size=700, head_dim=64), compiled)
    name, results = cache_name(model), []
    with torch.inference_mode():
        prompt = model(input_ids=tokens(290), use_cache=True)[name]  # torch's own sums depend on the threads
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            given = {"input_ids": tokens(1), "use_cache": True, name: copy.deepcopy(prompt)}
            results.append(model.model(**given).last_hidden_state)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_long_context_is_seen(compiled: Kernels) -> None:
    plain = made("qwen2", max_position_embeddings=2048)
    model, _ = with_steps(plain, compiled)
    ids = tokens(1000)
    assert distance(logits(model, ids, 960)[:, 960:], logits(plain, ids, 960)[:, 960:]) < 1e-5


def test_a_cache_can_be_copied_cropped_and_continued_in_any_way(compiled: Kernels) -> None:
    plain = made("llama")
    model, taken = with_steps(plain, compiled)
    ids = tokens(40)
    with torch.inference_mode():
        name = cache_name(model)
        cache = model(input_ids=ids[:, :8], use_cache=True)[name]

        def step(cache: Any, begin: int, end: int) -> torch.Tensor:
            found: torch.Tensor = model(input_ids=ids[:, begin:end], use_cache=True, **{name: cache}).logits[:, -1]
            return found

        right = plain(input_ids=ids).logits[0]
        step(cache, 8, 9)
        assert all(type(layer) is GrowingLayer for layer in cache.layers)
        copied = copy.deepcopy(cache)
        step(cache, 20, 21)
        assert (copied.get_seq_length(), cache.get_seq_length()) == (9, 10)
        assert distance(step(copied, 9, 10), right[9]) < 1e-5
        assert distance(step(copied, 10, 14), right[13]) < 1e-5  # several tokens, by transformers' code
        assert distance(step(copied, 14, 15), right[14]) < 1e-5
        cache.crop(-1)
        assert distance(step(cache, 9, 10), right[9]) < 1e-5
        keys, values = copied.layers[1].keys, copied.layers[1].values
        assert keys.shape == values.shape == (1, 2, 15, 12)
        copied.batch_repeat_interleave(2)
        both = model(input_ids=ids[:, 15:16].repeat(2, 1), use_cache=True, **{name: copied}).logits[:, -1]
        assert distance(both, right[15].repeat(2, 1)) < 1e-5
    assert taken == {2: 5}


@pytest.mark.parametrize(
    "given",
    [
        {"output_hidden_states": True},
        {"output_attentions": True},
        {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1, 1]])},
        {"position_ids": torch.tensor([[11]])},
        {"use_cache": False},
    ],
    ids=lambda given: next(iter(given)),
)
def test_other_arguments_give_what_transformers_gives(compiled: Kernels, given: dict[str, Any]) -> None:
    plain = made("llama", attn_implementation="eager")
    model, _ = with_steps(plain, compiled)
    ids, results = tokens(7), []
    for each in (plain, model):
        with torch.inference_mode():
            cache = each(input_ids=ids[:, :6], use_cache=True)[cache_name(each)]
            results.append(each(**{"input_ids": ids[:, 6:], "use_cache": True, cache_name(each): cache} | given))
    assert distance(results[1].logits, results[0].logits) < 1e-5
    for name in ("hidden_states", "attentions"):
        assert (results[0][name] is None) == (results[1][name] is None) if name in results[0] else True


def test_weights_that_move_are_followed(compiled: Kernels) -> None:
    plain = made("qwen3")
    model, _ = with_steps(plain, compiled)
    ids = tokens(12)
    logits(model, ids, 4)
    for tensor in (*model.buffers(), *model.parameters()):
        tensor.data = tensor.data.clone()
    assert distance(logits(model, ids, 4), logits(plain, ids, 4)) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "gelu"}, {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0}],
    ids=["activation", "window"],
)
def test_another_kind_of_decoder_is_left_as_it_is(compiled: Kernels, changes: dict[str, Any]) -> None:
    plain = made("qwen2", **changes)
    model, taken = with_steps(plain, compiled)
    ids = tokens(12)
    assert type(model.model) is type(plain.model)
    assert distance(logits(model, ids, 4), logits(plain, ids, 4)) < 1e-5 and not taken


def test_a_cache_without_tokens_and_a_model_with_layers_of_others_are_transformers(compiled: Kernels) -> None:
    plain = made("llama")
    model, taken = with_steps(plain, compiled)
    decoder.install(plain, compiled, Counter())
    assert type(plain.model).__mro__[1] is not decoder._Decoder
    with torch.inference_mode():
        out = model(input_ids=tokens(1), use_cache=True, **{cache_name(model): DynamicCache()})
    assert out[cache_name(model)].get_seq_length() == 1 and not taken
