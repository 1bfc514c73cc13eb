"""Trees of tokens: what shares a beginning is computed once, and the logits are those of inputs computed one by one."""

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.benchmarks import prefixes
from sparsebench.benchmarks.prefixes import TokenIds, Tree, tree_batches

rows_of_tokens = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=25)
PLAIN = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**PLAIN, "num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4}
FAMILY: list[TokenIds] = [
    (1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 4, 6, 7), (1, 2, 3, 9), (8,), (8, 1, 1, 1, 1, 1, 1), (8, 1),
]  # fmt: skip
"""Nested inputs, one of one token, one that is the next one's beginning, one that is the last one's."""


def make(model_type: str, **settings: Any) -> Any:
    """A seeded random decoder, in float32, with weights large enough for positions to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, vocab_size=64, max_position_embeddings=64, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(8)
    return model


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("llama", GROUPED),
        ("qwen2", GROUPED),
        ("qwen3", {**GROUPED, "head_dim": 8}),
        ("mistral", GROUPED),
        ("gpt_neox", PLAIN),
        ("phi", PLAIN),
        ("opt", {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 32}),
        ("gpt2", GPT),
        ("gptj", {**GPT, "rotary_dim": 4}),
    ],
)
def test_logits_are_those_of_inputs_computed_one_by_one(model_type: str, settings: dict[str, Any]):
    model = make(model_type, **settings)
    assert prefixes.tree_problem(model) is None
    draw = random.Random(1)
    starts = [tuple(draw.choices(range(64), k=length)) for length in (1, 9, 20)]
    rows = sorted({(*start, *draw.choices(range(64), k=draw.randint(1, 12))) for start in starts for _ in range(5)})
    for inputs in (FAMILY, rows, rows[:1]):
        tree = Tree(inputs)
        logits = prefixes.tree_logits(model, tree)[0]
        for path, row in zip(tree.paths, inputs, strict=True):
            with torch.no_grad():
                known = model(torch.tensor([row])).logits[0]
            torch.testing.assert_close(logits[path], known, rtol=1e-4, atol=1e-4)
    assert model.config._attn_implementation == "sdpa"


@given(rows_of_tokens)
def test_every_input_is_a_path_and_no_beginning_is_there_twice(rows: list[TokenIds]):
    rows = sorted(set(rows))
    tree = Tree(rows)
    tokens, positions = tree.tokens[0], tree.positions[0]
    assert [tuple(tokens[path].tolist()) for path in tree.paths] == rows
    assert all(positions[path].tolist() == list(range(len(path))) for path in tree.paths)
    assert len(tokens) == len({row[:end] for row in rows for end in range(1, len(row) + 1)})


@given(rows_of_tokens, st.integers(1, 40), st.integers(1, 60))
def test_batches_hold_every_input_once_and_keep_to_the_limit(rows: list[TokenIds], nodes: int, most: int):
    batches = tree_batches(set(rows), most, nodes)
    assert sorted(row for batch in batches for row in batch) == sorted(set(rows))
    for batch in batches:
        size = Tree(batch).tokens.numel()
        assert len(batch) == 1 or size <= min(most, max(nodes, 2 * max(map(len, batch))))
