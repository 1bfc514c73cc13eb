"""Neurons and heads that go: scored as published, as many in every block, compensated, and loaded by stock transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.contract import StepReport
from sparsebench.steps.registry import combinations, label, single
from sparsebench.steps.shrink import compensation, scores
from sparsebench.steps.shrink.whole import WholeModel
from tests.making import attempt, make
from tests.models.model_zoo import small
from tests.models.replaying import Stock, written
from tests.steps.shrink.making import refused, shrunk, slow_taylor, text


def read(folder: Path, family: Any, tensor: str) -> torch.Tensor:
    """What a layer reads of the calibration text, (tokens, width) float64, by the slow reference."""
    given = text(family).batch
    return Stock(folder, family, given).rows(tensor, given).double()


@pytest.mark.parametrize("name", ["l2", "activation", "flap"])
def test_the_highest_scores_stay_by_a_slow_reference(name: str, tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")
    model = Checkpoint(folder)
    out, _ = shrunk(folder, family, tmp_path / "out", name, keep=0.5, of="neurons", compensation="none")
    for layer in range(2):
        mlp = f"model.layers.{layer}.mlp"
        gate, up, down = (model.load(f"{mlp}.{kind}_proj.weight").double() for kind in ("gate", "up", "down"))
        values = read(folder, family, f"{mlp}.down_proj.weight")
        expected = {
            "l2": gate.square().sum(1) + up.square().sum(1) + down.square().sum(0),
            "activation": values.square().mean(0) * down.square().sum(0),
            "flap": values.var(0, unbiased=False) * down.square().sum(0),
        }[name]
        stay = expected.topk(24).indices.sort().values
        assert torch.equal(Checkpoint(out).load(f"{mlp}.down_proj.weight").double(), down[:, stay])
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 24


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("kind", ["llama", "bert", "roberta", "t5", "gpt2", "phi3"])
def test_taylor_is_textpruners_score_of_weights_and_gradients(kind: str, even: bool, tmp_path: Path) -> None:
    """Of a batch |Σ W·∂L| of the columns that read an element; where widths stay even, |Σ V·∂L + b·∂b| of a neuron's rows too."""
    folder, family = written(kind, tmp_path / "model")
    labels = "own" if family == "encoder" else "text"
    axes = list(shape_of(Checkpoint(folder), family).axes)
    model, slow = (WholeModel.load(folder, family, text(family).batch, "auto") for _ in range(2))
    told = scores.taylor(model, axes, labels, 0, even=even)
    expected = slow_taylor(slow, axes, labels, even)
    for axis in axes:
        assert torch.allclose(told[axis], expected[axis], rtol=1e-3, atol=1e-6)
        assert told[axis].argsort().tolist() == expected[axis].argsort().tolist()
    assert {axis.kind for axis in axes} == {"neurons", "heads"}


def test_taylor_knows_whether_widths_stay_even(tmp_path: Path) -> None:
    """Both in one pass; the even one has another version, so that older results are not taken for its."""
    folder, family = written("llama", tmp_path / "model", intermediate_size=200)
    kinds = [{"keep": 0.5, "of": "neurons", "labels": "text", "uneven": uneven} for uneven in (False, True)]
    steps = [single("shrink", "taylor", **kind) for kind in kinds]
    together = {step: tmp_path / f"both{number}" for number, step in enumerate(steps)}
    attempt(folder, family, together, text(family))
    for number, kind in enumerate(kinds):
        alone, _ = shrunk(folder, family, tmp_path / str(number), "taylor", **kind)
        name = "model.layers.0.mlp.down_proj.weight"
        assert torch.equal(Checkpoint(alone).load(name), Checkpoint(tmp_path / f"both{number}").load(name))
    versions = [step.settings.version() for step in (*steps, single("shrink", "l2", keep=0.5))]
    assert versions == [2, 1, 1]


@pytest.mark.parametrize(
    ("kind", "name"), [("llama", "model.layers.0.self_attn.o_proj"), ("gpt2", "transformer.h.0.mlp.c_proj")]
)
def test_flap_adds_the_mean_of_what_went_to_the_bias_or_as_one(kind: str, name: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    out, _ = shrunk(folder, family, tmp_path / "out", "flap", keep=0.5, of="both" if kind == "llama" else "neurons")
    before, after = Checkpoint(folder), Checkpoint(out)
    weights, kept = (one.load(f"{name}.weight") for one in (before, after))
    weights, kept = (weights.T, kept.T) if kind == "llama" else (weights, kept)
    mean = read(folder, family, f"{name}.weight").mean(0)
    mean[[number for number, row in enumerate(weights) if any(torch.equal(row, one) for one in kept)]] = 0
    old = before.load(f"{name}.bias") if kind == "gpt2" else 0
    assert torch.allclose(after.load(f"{name}.bias") - old, (mean @ weights.double()).float(), atol=1e-6)
    assert load_model(out, family) and len(kept) < len(weights)
    if kind == "llama":
        keys = ("attention_bias", "mlp_bias", "num_attention_heads", "num_key_value_heads", "head_dim")
        assert [after.config[key] for key in keys] == [True, True, 2, 1, 8]
        assert not after.load("model.layers.0.self_attn.q_proj.bias").any()


def test_least_squares_is_the_solution_of_damped_least_squares() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(200, 12, generator=generator) @ torch.randn(12, 12, generator=generator)
    weights = torch.randn(5, 12, generator=generator)
    stay = torch.tensor([0, 2, 3, 7, 8, 11])
    found = compensation.refit(weights, values.T @ values, stay, "down")
    ridge = (0.01 * values[:, stay].double().square().sum(0).mean()).sqrt()
    read = torch.cat([values[:, stay].double(), ridge * torch.eye(6).double()])
    wanted = torch.cat([(values @ weights.T).double(), ridge * weights[:, stay].T.double()])
    assert torch.allclose(found.double(), torch.linalg.lstsq(read, wanted).solution.T, atol=1e-4)


def test_a_singular_gram_matrix_is_damped() -> None:
    values = torch.ones(4, 6)
    found = compensation.refit(torch.ones(2, 6), values.T @ values, torch.tensor([0, 1]), "down")
    assert torch.allclose(found, torch.full((2, 2), 3.0), atol=1e-2)
    with pytest.raises(ModelError, match="down"):
        compensation.refit(torch.ones(2, 6), torch.full((6, 6), torch.nan), torch.tensor([0]), "down")


@pytest.mark.parametrize(
    ("kind", "of"),
    [("llama", "both"), ("gpt2", "neurons"), ("t5", "both"), ("gpt_oss", "neurons"), ("granitemoe", "neurons")],
)
def test_least_squares_is_nearer_to_the_dense_model_than_the_cut_alone(kind: str, of: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    given = text(family)
    dense = WholeModel.load(folder, family, given.batch, "auto")

    def distance(out: Path) -> float:
        smaller = WholeModel.load(out, family, given.batch, "auto")
        with torch.no_grad():
            return sum(float((smaller.run(rows) - dense.run(rows)).square().sum()) for rows in dense.groups())

    far, near = (
        shrunk(folder, family, tmp_path / how, "l2", keep=0.5, of=of, compensation=how)[0]
        for how in ("none", "least_squares")
    )
    assert distance(near) < 0.9 * distance(far)


def test_a_version_that_cannot_be_refitted_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, family = written("llama", tmp_path / "model")
    right, seen = compensation.refit, []

    def refit(*given: Any) -> torch.Tensor:
        if len(given[2]) == 24:
            seen.append(given[3])
            raise ModelError("not finite")
        return right(*given)

    monkeypatch.setattr(compensation, "refit", refit)
    steps = {
        single("shrink", "l2", keep=keep, of="neurons", compensation="least_squares"): tmp_path / str(keep)
        for keep in (0.25, 0.5, 0.75)
    }
    told = {step.settings.keep: result for step, result in attempt(folder, family, steps, text(family)).items()}
    assert isinstance(told[0.5], ModelError) and len(seen) == 1, "no block after that is tried"
    assert isinstance(told[0.25], StepReport) and isinstance(told[0.75], StepReport)
    assert not (tmp_path / "0.5").exists()
    monkeypatch.undo()
    other, _ = shrunk(folder, family, tmp_path / "alone", "l2", keep=0.75, of="neurons", compensation="least_squares")
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(Checkpoint(other).load(name), Checkpoint(tmp_path / "0.75").load(name))


def test_the_share_of_the_blocks_parameters_is_met(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model", intermediate_size=200)
    found = shape_of(Checkpoint(folder), family)
    before = found.block_parameters
    for of, share, most in (("neurons", 0.8, 0.004), ("both", 0.6, 0.004), ("heads", 0.9, 0.1)):
        out, result = shrunk(folder, family, tmp_path / f"{of}{share}", "l2", parameters=share, of=of)
        left = shape_of(Checkpoint(out), family).block_parameters / before
        assert left == pytest.approx(share, abs=most)
        assert f"{1 - left:.1%}" in result.note
        assert result.parameters == sum(one.numel() for one in load_model(out, family).parameters())
    many = shrunk(folder, family, tmp_path / "multiple", "l2", keep=0.33, of="neurons", multiple_of=16)[0]
    assert json.loads((many / "config.json").read_text())["intermediate_size"] == 64
    alone = shrunk(folder, family, tmp_path / "one", "l2", keep=0.0001, of="both")[0]
    assert json.loads((alone / "config.json").read_text())["intermediate_size"] == 1
    error = refused(folder, family, tmp_path / "none", "l2", parameters=0.1, of="neurons")
    assert isinstance(error, UnsupportedError) and "of the blocks' parameters" in error.message and error.hint


def test_heads_and_neurons_stay_by_number(tmp_path: Path) -> None:
    """A sweep of numbers is a sweep like any other; heads are config.json's, in whole groups."""
    folder, family = written("llama", tmp_path / "model")
    swept = combinations("shrink", "l2", {"neurons": [12, 30], "heads": [2, 4]})
    assert {label(step) for step in swept} == {
        f"l2/both to {heads} heads and {neurons} neurons" for neurons in (12, 30) for heads in (2, 4)
    }
    out, _ = shrunk(folder, family, tmp_path / "out", "l2", neurons=30, heads=2)
    config = json.loads((out / "config.json").read_text())
    assert load_model(out, family)
    assert [config[key] for key in ("intermediate_size", "num_attention_heads", "num_key_value_heads")] == [30, 2, 1]
    for settings, what in (({"neurons": 49}, "neurons: 49"), ({"heads": 3}, "heads: 3")):
        wrong = refused(folder, family, tmp_path / "wrong", "l2", **settings)
        assert isinstance(wrong, UnsupportedError) and what in wrong.message and wrong.hint
    # 48 is a multiple of 4 and of 6 heads, not of 5: transformers would refuse them.
    six, family = written("llama", tmp_path / "six", hidden_size=48, num_attention_heads=6, num_key_value_heads=6)
    out, result = shrunk(six, family, tmp_path / "four", "l2", keep=0.8, of="heads")
    assert "4 of 6 heads" in result.note and load_model(out, family)


def test_t5_keeps_the_same_heads_in_every_block_of_a_stack(tmp_path: Path) -> None:
    folder, family = written("t5", tmp_path / "model")
    out, _ = shrunk(folder, family, tmp_path / "out", "random", heads=3)
    assert json.loads((out / "config.json").read_text())["num_heads"] == 3 and load_model(out, family)
    before, after = Checkpoint(folder), Checkpoint(out)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    old, new = before.load(table).T, after.load(table).T
    heads = [index for index, one in enumerate(old) if any(torch.equal(one, left) for left in new)]
    assert torch.equal(new, old[heads])
    for layer in range(2):
        name = f"encoder.block.{layer}.layer.0.SelfAttention.q.weight"
        assert torch.equal(after.load(name).unflatten(0, (3, 8)), before.load(name).unflatten(0, (4, 8))[heads])


@pytest.mark.parametrize(
    ("kind", "name", "settings", "what"),
    [
        ("jamba", "first", {"blocks": 1}, "no blocks"),
        ("bart", "l2", {"keep": 0.5}, "no heads"),
        ("bloom", "l2", {"keep": 0.5, "of": "heads"}, "no heads"),
        ("bloom", "l2", {"keep": 0.5, "of": "neurons"}, "no neurons"),
        ("t5", "flap", {"keep": 0.5, "of": "neurons"}, "no bias beside"),
        ("llama", "reap", {"keep": 0.5}, "no experts"),
        ("qwen2", "flap", {"keep": 0.5}, "o and down"),
        ("qwen2", "flap", {"keep": 0.5, "of": "heads"}, "no bias beside o"),
        ("qwen3", "flap", {"keep": 0.5}, "no bias beside down"),
        ("t5", "l2", {"keep": 0.5, "uneven": True}, "uneven"),
        ("t5", "gates", {"keep": 0.5, "uneven": True}, "uneven"),
        ("mixtral", "l2", {"keep": 0.5, "uneven": True}, "uneven"),
        ("mixtral", "gates", {"keep": 0.5}, "gates are not learned"),
        ("bert", "taylor", {"keep": 0.5, "labels": "text"}, "labels: text"),
    ],
)
def test_the_plan_knows_what_a_type_cannot_take(kind: str, name: str, settings: dict[str, Any], what: str) -> None:
    refusal = single("shrink", name, **settings).settings.refuses({"model_type": kind})
    assert what in refusal.reason and refusal.way_out and (kind == "bloom") <= ("sleb" in refusal.way_out)
    assert single("shrink", "l2", keep=0.5, of="neurons").settings.refuses({"model_type": "llama"}) is None
    for possible in ("qwen3", "llama", "starcoder2"):
        assert single("shrink", "flap", keep=0.5, of="heads").settings.refuses({"model_type": possible}) is None


@pytest.mark.parametrize(
    ("kind", "name", "settings", "what"),
    [
        ("llama", "sleb", {"blocks": 2}, "at most 1"),
        ("llama", "random", {"blocks": 2}, "at most 1"),
        ("llama", "first", {"blocks": 1, "stacks": "decoder"}, "stacks"),
        ("t5", "first", {"blocks": 3, "stacks": "decoder"}, "at most 2"),
    ],
)
def test_the_plan_knows_how_many_blocks_can_go(kind: str, name: str, settings: dict[str, Any], what: str) -> None:
    config = {"model_type": kind, **small(kind), "num_hidden_layers": 2, "num_layers": 2, "num_decoder_layers": 3}
    refusal = single("shrink", name, **settings).settings.refuses_shape(config)
    assert what in f"{refusal.reason} {refusal.way_out}"
    assert single("shrink", name, blocks=1).settings.refuses_shape(config) is None


def test_a_text_that_fails_takes_no_step_that_reads_none(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model")

    def failing() -> Any:
        raise ModelError("text.jsonl: no text in it", "another text")

    asked: list[dict[str, Any]] = [{"blocks": 1}, {"keep": 0.5}, {"keep": 0.5, "compensation": "least_squares"}]
    steps = [single("shrink", "random", **settings) for settings in asked]
    targets = {step: tmp_path / str(number) for number, step in enumerate(steps)}
    found = attempt(folder, family, targets, calibration_tokens=failing)
    for step in steps[:2]:
        assert isinstance(found[step], StepReport) and targets[step].exists()
    assert isinstance(found[steps[2]], ModelError) and "text.jsonl" in found[steps[2]].message
    found = attempt(folder, family, targets, text(family))
    assert [bool(found[step].calibration_tokens) for step in steps] == [False, False, True]


def test_what_was_shrunk_can_be_pruned_and_quantized_and_not_the_other_way_round(tmp_path: Path) -> None:
    folder, family = written("llama", tmp_path / "model", hidden_size=64, intermediate_size=128, head_dim=16)
    out, result = shrunk(folder, family, tmp_path / "out", "l2", parameters=0.8)
    assert not result.zeros
    found: list[Any] = []
    for step in (single("prune", "magnitude", sparsity=0.5), single("quantize", "int8")):
        found += make(out, family, {step: tmp_path / step.verb}).values()
        load_model(tmp_path / step.verb, family)
    assert [one.prunable for one in found] == [result.prunable] * 2
    assert found[0].achieved == pytest.approx(0.5, abs=0.01) and found[1].bits < 10
    with pytest.raises(ModelError, match="shrink first"):
        shrunk(tmp_path / "quantize", family, tmp_path / "again", "l2", keep=0.5)


def test_what_goes_at_random_depends_on_no_other_step_of_the_pass(tiny_llama: Path, tmp_path: Path) -> None:
    heads, neurons = single("shrink", "random", heads=2), single("shrink", "random", neurons=32)
    make(tiny_llama, "decoder", {heads: tmp_path / "alone"}, seed=3)
    make(tiny_llama, "decoder", {neurons: tmp_path / "neurons", heads: tmp_path / "beside"}, seed=3)
    alone, beside = (Checkpoint(tmp_path / name) for name in ("alone", "beside"))
    assert all(torch.equal(alone.load(name), beside.load(name)) for name in alone.tensors)
