"""Whole models: what is counted, what is not, and how the counts add up."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.axes import shape_of
from sparsebench.models.shape.topology import prunable_share
from sparsebench.steps.registry import single
from sparsebench.structure import EDGES, assess, summary
from tests.models.replaying import rewritten
from tests.steps.recover.making import made
from tests.steps.recover.making import step as training

FAMILIES = {"tiny_llama": "decoder", "tiny_bert": "encoder", "tiny_t5": "encoder-decoder"}
ABSOLUTE, RELATIVE = (0.001, 0.01, 0.1), (0.1, 0.5, 1.0)


def _changed(folder: Path, out: Path, **tensors: torch.Tensor) -> Path:
    """A copy of a model with tensors replaced or added; ``__`` in a name stands for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return rewritten(shutil.copytree(folder, out), lambda state: state.update(named))


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_every_parameter_once(model: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    cls = {"decoder": AutoModelForCausalLM, "encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM}
    folder, family = request.getfixturevalue(model), FAMILIES[model]
    result = assess(folder, family, ABSOLUTE, RELATIVE)
    parameters = list(cls[family].from_pretrained(folder).parameters())  # tied ones once
    assert sum(tensor.count for tensor in result.tensors) == sum(parameter.numel() for parameter in parameters)
    below = sum(int((parameter.abs().double() < 0.01).sum()) for parameter in parameters)
    assert sum(tensor.below_absolute[1] for tensor in result.tensors) == below
    state = load_file(folder / "model.safetensors")
    for tensor in result.tensors:
        values = state[tensor.name].double()
        assert tensor.shape == tuple(values.shape)
        assert tensor.rms == pytest.approx(float(values.square().mean().sqrt()), rel=1e-12)
        assert tensor.mean == pytest.approx(float(values.mean()), abs=1e-12)
        assert tensor.below_relative[1] == int((values.abs() < 0.5 * tensor.rms).sum() if tensor.rms else tensor.count)
        assert len(tensor.histogram) == len(EDGES) + 1
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_buffers_are_no_weights_and_a_tied_tensor_stored_twice_counts_once(tiny_llama: Path, tmp_path: Path) -> None:
    folder = _changed(
        tiny_llama, tmp_path / "buffers",
        model__layers__0__attn__bias=torch.tril(torch.ones(1, 1, 8, 8)),
        model__layers__0__attn__masked_bias=torch.tensor(-1e4),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8),
        model__position_ids=torch.arange(8),
        model__layers__0__empty__weight=torch.empty(0, 4),
    )  # fmt: skip
    expected = assess(tiny_llama, "decoder", ABSOLUTE, RELATIVE)
    assert assess(folder, "decoder", ABSOLUTE, RELATIVE) == expected
    more, less = (
        (prunable_share(checkpoint, "decoder"), shape_of(checkpoint, "decoder").block_parameters)
        for checkpoint in map(Checkpoint, (folder, tiny_llama))
    )
    assert more == less
    steps = (single("prune", "magnitude", sparsity=0.5), single("quantize", "int8"), single("floor", "zero-weights"),
             single("recover", "reconstruct", epochs=1), training("finetune", tokens=200))  # fmt: skip
    for number, step in enumerate(steps):
        more, less = (
            made(path, "decoder", tmp_path / f"{path.name}-{number}", step, path) for path in (folder, tiny_llama)
        )
        for key in ("parameters", "total_zeros", "prunable", "zeros", "operations"):
            assert getattr(more, key) == getattr(less, key), (step.name, key)
    embedding = load_file(tiny_llama / "model.safetensors")["model.embed_tokens.weight"]
    twice = _changed(tiny_llama, tmp_path / "twice", lm_head__weight=embedding.clone())
    counted = sum(tensor.count for tensor in assess(twice, "decoder", ABSOLUTE, RELATIVE).tensors)
    assert counted == sum(tensor.count for tensor in expected.tensors)
    assert made(twice, "decoder", tmp_path / "trained", steps[-1], twice).operations == less.operations


@pytest.mark.parametrize(
    ("weight", "what"),
    [
        (torch.tensor([float("nan"), 1, 2]), "32 weights are NaN or infinite"),
        (torch.tensor([float("-inf"), 1, 2]).bfloat16(), "32 weights are NaN or infinite"),
        (torch.ones(3, dtype=torch.int8), "is stored as I8"),
    ],
)
def test_what_cannot_be_counted_is_named(weight: torch.Tensor, what: str, tiny_llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    folder = _changed(tiny_llama, tmp_path / "broken", **{name: weight.repeat(32, 1)})
    with pytest.raises(ModelError, match=f"{name}.*{what}"):
        assess(folder, "decoder", ABSOLUTE, RELATIVE)


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_the_summary_adds_up(model: str, request: pytest.FixtureRequest) -> None:
    result = assess(request.getfixturevalue(model), FAMILIES[model], ABSOLUTE, RELATIVE)
    rows = summary(result)
    assert [row.scope for row in rows[:2]] == ["all", "prunable"]
    for row in rows:
        members = {
            "all": result.tensors,
            "prunable": [one for one in result.tensors if one.prunable],
            "layer": [one for one in result.tensors if one.prunable and (one.side, one.layer) == (row.side, row.layer)],
            "kind": [one for one in result.tensors if (one.side, one.kind) == (row.side, row.kind)],
        }[row.scope]
        count = sum(one.count for one in members)
        assert row.zeros == sum(one.zeros for one in members) / count
        for place in range(3):
            assert row.near_absolute[place] == sum(one.below_absolute[place] for one in members) / count
            assert row.near_relative[place] == sum(one.below_relative[place] for one in members) / count
            assert row.far_from_zero[place] == 1 - row.near_relative[place]
    by_scope = {scope: [row for row in rows if row.scope == scope] for scope in ("all", "prunable", "layer", "kind")}
    assert sum(row.weights for row in by_scope["layer"]) == by_scope["prunable"][0].weights
    assert sum(row.weights for row in by_scope["kind"]) == by_scope["all"][0].weights
    layers = [(row.side, row.layer) for row in by_scope["layer"]]
    sides = ["encoder", "decoder"] if FAMILIES[model] == "encoder-decoder" else [FAMILIES[model]]
    assert layers == [(side, layer) for side in sides for layer in (0, 1)]
    sizes = [row.weights for row in by_scope["kind"]]
    assert sizes == sorted(sizes, reverse=True)
