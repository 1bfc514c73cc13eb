"""Mixtures of experts: neurons of every expert, and whole experts, scored as published and loaded by stock transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.experts import is_fused
from sparsebench.models.modules.load import load_model
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.shrink import scores
from sparsebench.steps.shrink.whole import WholeModel
from tests.models.replaying import written
from tests.models.test_axes import with_zeros
from tests.models.test_experts import APART, Stock, stored
from tests.steps.shrink.making import refused, shrunk, slow_taylor, text

FORMS = [("gpt_oss", "fused"), ("llama4_text", "fused"), ("mixtral", "published"), ("granitemoe", "published")]
EVERY = [
    one if one[0] in ("mixtral", "deepseek_v3") else pytest.param(*one, marks=pytest.mark.long)
    for one in ((kind, "published") for kind in APART)
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What stock transformers loads."""
    return dict(load_model(folder, "decoder").state_dict())


@pytest.mark.parametrize(("kind", "form"), EVERY)
@pytest.mark.parametrize("settings", [{"keep": 0.5, "of": "neurons"}, {"keep": 0.5, "of": "experts"}])
def test_published_files_are_cut_as_fused_ones(kind: str, form: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder = stored(kind, form, tmp_path)
    out, result = shrunk(folder, "decoder", tmp_path / "out", "l2", **settings)
    alike, _ = shrunk(tmp_path / "fused", "decoder", tmp_path / "alike", "l2", **settings)
    one, other = weights(out), weights(alike)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert result.parameters == sum(tensor.numel() for tensor in one.values())


@pytest.mark.parametrize(("kind", "form"), FORMS)
@pytest.mark.parametrize("name", ["activation", "flap"])
def test_an_experts_neurons_are_scored_by_its_tokens(kind: str, form: str, name: str, tmp_path: Path) -> None:
    folder = stored(kind, form, tmp_path)
    out, _ = shrunk(folder, "decoder", tmp_path / "out", name, keep=0.5, of="neurons", compensation="none")
    stock = Stock(folder, text("decoder").batch)
    before, after = weights(folder), weights(out)
    turned = kind in ("gpt_oss", "llama4_text")
    looked_at = 0
    for tensor in (tensor for tensor in before if tensor.endswith("experts.down_proj")):
        layer = int(tensor.split(".")[2])
        for expert in range(before[tensor].shape[0]):
            values = stock.read[layer, expert, "out"].double()
            down = before[tensor][expert] if turned else before[tensor][expert].T
            columns = down.double().square().sum(1)
            if len(values) == 0:
                expected = columns
            elif name == "activation":
                expected = values.square().mean(0) * columns
            elif len(values) > 2:
                expected = values.var(0, unbiased=False) * columns
            else:
                continue  # what varies between two tokens, rounding decides
            looked_at += len(values) > 0
            stay = expected.topk(24).indices.sort().values
            left = after[tensor][expert] if turned else after[tensor][expert].T
            assert torch.equal(left, down[stay]), (tensor, expert)
    assert looked_at > 2


@pytest.mark.parametrize("iterations", [1, 2])
def test_experts_that_no_token_reaches_are_told(iterations: int, tmp_path: Path) -> None:
    stored("gpt_oss", "fused", tmp_path)
    biases = {f"model.layers.{layer}.mlp.router.bias": torch.tensor([0.0, 0, 0, -1e9]) for layer in range(2)}
    folder = with_zeros(tmp_path / "fused", biases, tmp_path / "without")
    _, result = shrunk(folder, "decoder", tmp_path / "out", "activation", keep=0.5, of="neurons", iterations=iterations)
    assert "2 experts that no token reached" in result.note


@pytest.mark.parametrize(("kind", "form"), [*FORMS[:3], ("qwen2_moe", "published")])
def test_taylor_is_weights_times_gradients_of_the_stock_model(kind: str, form: str, tmp_path: Path) -> None:
    folder = stored(kind, form, tmp_path)
    given = text("decoder").batch
    axes = [axis for axis in shape_of(Checkpoint(folder), "decoder").axes if axis.kind == "neurons"]
    told = scores.taylor(WholeModel.load(folder, "decoder", given, "auto"), axes, "text", 0)
    slow = WholeModel.load(tmp_path / "fused", "decoder", given, "auto")
    slow.model = load_model(tmp_path / "fused", "decoder")
    if slow.model._can_set_experts_implementation():
        slow.model.set_experts_implementation("eager")
    fused = [axis for axis in shape_of(Checkpoint(tmp_path / "fused"), "decoder").axes if axis.kind == "neurons"]
    expected = slow_taylor(slow, fused, "text", even=True)
    own = {(axis.layers, axis.expert): scored for axis, scored in told.items()}
    assert len(own) == len(fused) and {axis.expert for axis in fused} > {"experts.0"}
    for axis in fused:
        found = own[axis.layers, axis.expert]
        assert torch.allclose(found, expected[axis], rtol=1e-3, atol=1e-6)
        assert found.argsort().tolist() == expected[axis].argsort().tolist()


def masked(folder: Path, gone: dict[int, list[int]]) -> Any:
    """The whole model in stock transformers, whose routers see the logits of experts that are ``gone`` as minus infinity."""
    model = load_model(folder, "decoder", "float64")
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    linear = torch.nn.functional.linear
    for layer, experts in gone.items():
        block = model.model.layers[layer]
        part = next(
            getattr(block, name) for name in ("mlp", "feed_forward", "block_sparse_moe") if hasattr(block, name)
        )
        router = next(getattr(part, name) for name in ("gate", "router") if hasattr(part, name))
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[experts] = -1e9
            continue

        def forward(hidden: Any, router: Any = router, own: Any = router.forward, experts: Any = tuple(experts)) -> Any:
            def without(*given: Any, **named: Any) -> Any:
                found = linear(*given, **named)
                found[..., list(experts)] = -1e9
                return found

            torch.nn.functional.linear = without
            try:
                return own(hidden)
            finally:
                torch.nn.functional.linear = linear

        router.forward = forward
    return model


@pytest.mark.parametrize(
    "kind",
    [
        one if one in ("gpt_oss", "deepseek_v3", "mixtral") else pytest.param(one, marks=pytest.mark.long)
        for one in ("deepseek_v3", "glm4_moe", "gpt_oss", "granitemoe", "llama4_text", "mixtral", "olmoe", "phimoe",
                    "qwen2_moe", "qwen3_moe")
    ],
)  # fmt: skip
def test_a_model_without_experts_is_the_model_that_never_chooses_them(kind: str, tmp_path: Path) -> None:
    folder, family = written(kind, tmp_path / "model")
    out, _ = shrunk(folder, family, tmp_path / "out", "random", keep=0.75, of="experts")
    before, after = Checkpoint(folder), Checkpoint(out)
    gone: dict[int, list[int]] = {}
    for axis in shape_of(before, family).axes:
        if axis.kind == "experts":
            down = next(cut.tensor for cut in axis.cuts if cut.tensor.endswith("down_proj"))
            old, new = before.load(down), after.load(down)
            gone[axis.layers[0]] = [n for n, one in enumerate(old) if not any(torch.equal(one, left) for left in new)]
            assert len(gone[axis.layers[0]]) == axis.units // 4
    assert sorted(gone) == [0, 1]
    words = {"input_ids": text(family).batch.input_ids[:3]}
    with torch.no_grad():
        reference = masked(folder, gone)(**words).logits
        smaller = load_model(out, family, "float64")
        if smaller._can_set_experts_implementation():
            smaller.set_experts_implementation("eager")
        found, dense = smaller(**words).logits, load_model(folder, family)(**words).logits
    assert float((found - reference).abs().max()) <= 1e-6 * max(1.0, float(reference.abs().max()))
    assert float((found - dense).abs().max()) > 1e-3, "what goes must matter"


@pytest.mark.parametrize(("kind", "form"), [("mixtral", "published"), ("gpt_oss", "fused"), ("llama4_text", "fused")])
def test_experts_that_the_text_takes_least_go(kind: str, form: str, tmp_path: Path) -> None:
    folder = stored(kind, form, tmp_path)
    given = text("decoder").batch
    kept = given.attention_mask.reshape(-1)
    model = load_model(folder, "decoder")
    expected: dict[int, list[float]] = {}

    def look(layer: int, fused: Any, args: Any) -> None:
        expected[layer] = []
        for expert in range(fused.down_proj.shape[0]):
            if len(args) == 1:
                hidden = args[0].view(fused.down_proj.shape[0], -1, args[0].shape[-1])[expert]
                rows, weight = kept & (hidden != 0).any(1), 1.0
            else:
                hidden, rows = args[0], kept & (args[1] == expert).any(1)
                weight = (args[2] * (args[1] == expert)).sum(1)[rows]
            lone = torch.zeros(int(rows.sum()), 1, dtype=torch.long)
            if len(args) == 1:
                gate, up = (hidden[rows] @ fused.gate_up_proj[expert]).chunk(2, -1)
                gave = (up * fused.act_fn(gate)) @ fused.down_proj[expert]
            else:
                gave = type(fused).forward.__wrapped__(fused, hidden[rows], lone + expert, torch.ones(len(lone), 1))
            strength = float((weight * gave.norm(dim=-1)).mean()) if len(lone) else 0.0
            expected[layer].append(strength)

    for path, module in model.named_modules():
        if is_fused(module):
            layer = int(path.split(".")[2])
            module.register_forward_pre_hook(lambda module, args, layer=layer: look(layer, module, args))
    with torch.no_grad():
        model(input_ids=given.input_ids, attention_mask=given.attention_mask.long())
    out, result = shrunk(folder, "decoder", tmp_path / "out", "reap", experts=3)
    assert "3 of 4 experts" in result.note
    before, after = weights(folder), weights(out)
    for layer, values in expected.items():
        least = min(range(4), key=lambda expert: (values[expert], -expert))
        tensor = next(key for key in before if f"layers.{layer}." in key and key.endswith("experts.down_proj"))
        assert torch.equal(after[tensor], before[tensor][[n for n in range(4) if n != least]])


def test_groups_and_choices_of_a_router_bound_the_experts_that_stay(tmp_path: Path) -> None:
    folder = stored("deepseek_v3", "published", tmp_path)
    out, result = shrunk(folder, "decoder", tmp_path / "out", "l2", keep=0.6, of="experts")
    assert "4 of 8 experts" in result.note
    config = json.loads((out / "config.json").read_text())
    assert (config["n_routed_experts"], config["n_group"]) == (4, 2) and load_model(out, "decoder")
    for count in (2, 5, 9):
        wrong = refused(folder, "decoder", tmp_path / "wrong", "l2", experts=count)
        assert f"experts: {count}" in wrong.message and "from 4 to 8" in str(wrong.hint)
    file = tmp_path / "gone.json"
    file.write_text(json.dumps({"experts": {block: {"go": [0, 1]} for block in ("0", "1")}}))
    uneven = refused(folder, "decoder", tmp_path / "wrong", "list", file=str(file))
    assert "groups" in str(uneven.hint)
    file.write_text(json.dumps({"experts": {block: {"go": [0, 5]} for block in ("0", "1")}}))
    out, result = shrunk(folder, "decoder", tmp_path / "listed", "list", file=str(file))
    assert "6 of 8 experts" in result.note and load_model(out, "decoder")


def test_what_a_mixture_cannot_be_asked_for_is_refused_by_name(tmp_path: Path) -> None:
    shared = stored("qwen2_moe", "fused", tmp_path)
    mixtral = stored("mixtral", "fused", tmp_path / "mixtral")
    narrow, _ = written("mixtral", tmp_path / "narrow", intermediate_size=4)
    biased = stored("gpt_oss", "fused", tmp_path / "gpt_oss")
    llama, _ = written("llama", tmp_path / "llama")
    table: list[tuple[Path, str, dict[str, Any], str]] = [
        (shared, "l2", {"keep": 0.5, "of": "neurons", "uneven": True}, "uneven"),
        (shared, "l2", {"neurons": 16}, "24 and 48 wide"),
        (shared, "flap", {"keep": 0.5, "of": "neurons"}, "no bias beside"),
        (mixtral, "l2", {"neurons": 12}, "multiples of 8"),
        (mixtral, "l2", {"parameters": 0.01, "of": "experts"}, "a share above"),
        (narrow, "l2", {"neurons": 2}, "an expert has 4"),
        (biased, "flap", {"keep": 0.5, "of": "neurons"}, "experts.down_proj_bias"),
        (llama, "l2", {"experts": 2}, "no experts"),
    ]
    for folder, name, settings, what in table:
        wrong = refused(folder, "decoder", tmp_path / "wrong", name, **settings)
        assert isinstance(wrong, UnsupportedError) and wrong.hint and what in f"{wrong.message} {wrong.hint}", wrong
