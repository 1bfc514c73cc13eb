"""Neurons in experts: all of them are the model, an oracle is nearer than chance, and groups are of one size."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.modules.load import load_model
from sparsebench.models.modules.skipping import EXPERTS_KEY, ROUTERS, experts_of
from sparsebench.models.shape.topology import Part, prunable_parts
from sparsebench.steps.moefy.activity import coactivation_inside, share_inside
from sparsebench.steps.moefy.grouping import group_neurons
from sparsebench.steps.moefy.settings import COUNTED
from sparsebench.steps.registry import single
from tests.models.replaying import written
from tests.steps.shrink import making
from tests.steps.skip.making import answer, made, said

KINDS = ["llama", "bert", "t5", "phi3"]


def error(folder: Path, dense: torch.Tensor, family: Any) -> float:
    return float((said(folder, family) - dense).norm() / dense.norm())


def prunable_matrices(folder: Path, family: Any) -> list[tuple[TensorInfo, Part]]:
    checkpoint = Checkpoint(folder)
    found = prunable_parts(checkpoint, family)
    return [(checkpoint.tensors[name], part) for name, part in found.items() if part.prunable]


@pytest.mark.parametrize("kind", KINDS)
def test_all_experts_are_the_model_and_the_oracle_is_nearer_than_chance(kind: str, tmp_path: Path) -> None:
    parent, family = written(kind, tmp_path / "parent")
    dense = said(parent, family)
    whole = {
        single("moefy", "kmeans", experts=8, active=1.0, router=router): tmp_path / router
        for router in ("oracle", "centroid", "representative")
    }
    made(parent, family, whole)
    assert all(error(folder, dense, family) <= 1e-6 for folder in whole.values())
    some = {
        single("moefy", "kmeans", experts=8, active=0.25, router=one): tmp_path / f"{one}-2"
        for one in ("oracle", "centroid")
    }
    found = made(parent, family, some)
    oracle, centroid = (error(folder, dense, family) for folder in some.values())
    assert 0 < oracle < centroid
    assert all("2 of 8 experts" in one.note for one in found.values())
    assert all(f"{one.read_share:.1%} of the blocks' weights" in one.note for one in found.values())
    stored = Checkpoint(tmp_path / "oracle-2")
    matrices = [(part.kind, info.numel) for info, part in prunable_matrices(parent, family)]
    whole_size = sum(size for _, size in matrices)
    skipped = 0.75 * sum(size for name, size in matrices if name in ("gate", "up", "gate_up", "down"))
    # The centroid's tables are rows of as many inputs as the first layer has, one for each expert.
    tables = sum(
        info.numel for info in Checkpoint(tmp_path / "centroid-2").tensors.values() if ".moe.router" in info.name
    )
    assert tables
    assert list(found.values())[1].read_share == pytest.approx(1 - (skipped - tables) / whole_size)
    assert all(torch.equal(tensor, stored.load(info.name)) for info, tensor in Checkpoint(parent).items())
    how = experts_of(stored.config)
    assert how and how.active == 2
    for part in how.parts:
        assert set(stored.load(part.name("assignment")).bincount().tolist()) == {
            len(stored.load(part.name("assignment"))) // 8
        }


@pytest.mark.parametrize("way", ["coactivation", "cmoe", "kmeans"])
@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_with_text_all_experts_are_the_model_and_each_is_always_used(kind: str, way: str, tmp_path: Path) -> None:
    """What a text is read for; kmeans reads it for the learned router alone."""
    parent, family = written(kind, tmp_path / "parent")
    dense = said(parent, family)
    routers = ROUTERS if way in COUNTED else ("learned",)
    whole = {single("moefy", way, experts=8, active=1.0, router=one): tmp_path / one for one in routers}
    found = made(parent, family, whole)
    assert max(error(folder, dense, family) for folder in whole.values()) <= 1e-6
    blocks = len(experts_of(Checkpoint(tmp_path / "learned").config).parts)
    for one in found.values():
        assert [row.uses for row in one.activity] == [(1.0,) * (7 if way == "cmoe" else 8)] * blocks


def test_how_evenly_experts_are_used_is_what_the_written_model_chooses(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    steps = {
        single("moefy", "cmoe", experts=8, active=0.5, router=router): tmp_path / router
        for router in ("oracle", "representative", "learned")
    }
    found = made(parent, family, steps)
    for step, folder in steps.items():
        rows = found[step].activity
        assert [row.layer for row in rows] == list(range(len(rows))) and {row.side for row in rows} == {"decoder"}
        assert all(0 < row.near_zero < 0.5 and row.together is not None for row in rows)
        # Three more beside the one that all tokens share, of seven.
        assert all(row.uses and len(row.uses) == 7 and abs(sum(row.uses) - 3) < 1e-5 for row in rows)
        model: Any = load_model(folder, family)
        answer(model, family)
        # Blocks behind the first read other states: what the masked blocks before them give.
        chosen = model.get_submodule(rows[0].module).moe.neuron_mask
        neurons = chosen[making.text(family, 8).batch.attention_mask].float().mean(0)
        assignment = Checkpoint(folder).load(f"{rows[0].module}.moe.assignment").long()
        shares = [float(neurons[assignment == expert].mean()) for expert in range(1, 8)]
        assert rows[0].uses == pytest.approx(shares, abs=1e-6)
    assert not made(parent, family, {single("moefy", "random", active=0.5, experts=8): tmp_path / "r"})[
        single("moefy", "random", active=0.5, experts=8)
    ].activity


def test_a_representative_is_its_neuron_with_its_biases(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent", mlp_bias=True)
    tensors = load_file(parent / "model.safetensors")
    for name in [name for name in tensors if name.endswith("bias")]:
        tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    neurons = Checkpoint(parent).config["intermediate_size"]
    made(parent, family, {single("moefy", "kmeans", experts=neurons, active=0.5): tmp_path / "out"})
    part: Any = load_model(tmp_path / "out", family).get_submodule("model.layers.0.mlp")
    x = torch.randn(5, part.gate_proj.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        values = part.act_fn(part.gate_proj(x)) * part.up_proj(x)
        scores = part.down_proj.moe.scores(x, None)[:, part.down_proj.moe.assignment]
    torch.testing.assert_close(scores, values.abs())


def test_neurons_of_an_expert_go_together() -> None:
    # Two pairs that are always active with their partner, and never with the others.
    counts = torch.tensor([[5.0, 5, 0, 0], [5, 5, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]])
    assert coactivation_inside(counts, torch.tensor([0, 0, 1, 1])) == pytest.approx(3.5 / (14 / 12))
    assert coactivation_inside(counts, torch.tensor([0, 1, 0, 1])) == 0
    assert coactivation_inside(torch.diag(torch.ones(4)), torch.tensor([0, 0, 1, 1])) is None
    # Of 2 × (5 + 2) that pairs have, those of the first pair or none.
    assert share_inside(counts, torch.tensor([0, 0, 1, 2])) == pytest.approx(5 / 7)
    assert share_inside(counts, torch.tensor([0, 1, 0, 1])) == 0
    assert share_inside(torch.diag(torch.ones(4)), torch.tensor([0, 0, 1, 1])) is None


@pytest.mark.parametrize("way", ["coactivation", "cmoe", "random"])
def test_every_way_and_router_makes_a_model(way: str, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    dense = said(parent, family)
    errors: dict[str, float] = {}
    for text in (False, True):
        steps = {router: single("moefy", way, experts=8, active=0.5, router=router) for router in ROUTERS}
        targets = {step: tmp_path / router for router, step in steps.items() if step.settings.reads_text() == text}
        if targets:
            made(parent, family, targets)
    for router in ROUTERS:
        errors[router] = error(tmp_path / router, dense, family)
    assert 0 < errors["oracle"] <= min(errors.values())
    assert len(set(errors.values())) == len(errors)


def spread(points: torch.Tensor, groups: torch.Tensor) -> float:
    return sum(float((points[groups == one] - points[groups == one].mean(0)).square().sum()) for one in groups.unique())


def test_shared_experts_hold_the_neurons_that_are_active_most_often() -> None:
    often = torch.tensor([1.0, 9, 3, 8, 2, 4, 7, 5])
    gram = torch.diag(often)
    found = group_neurons("cmoe", gram, 4, 1, 0)
    assert (found.assignment == 0).nonzero().flatten().tolist() == [1, 3]
    assert found.assignment.bincount().tolist() == [2, 2, 2, 2]
    assert found.assignment[found.representatives].tolist() == [0, 1, 2, 3]


def test_refusals_name_the_culprit(tmp_path: Path) -> None:
    step = single("moefy", "kmeans", experts=8, active=0.5)
    parent, family = written("llama", tmp_path / "parent")
    made(parent, family, {step: tmp_path / "out"})
    with pytest.raises(ModelError, match="leaves weights out already"):
        made(tmp_path / "out", family, {step: tmp_path / "twice"})
    with pytest.raises(ModelError, match="skips weights already"):
        made(tmp_path / "out", family, {single("skip", "teal", share=0.5): tmp_path / "twice"})
    made(parent, family, {single("quantize", "int8"): tmp_path / "int8"})
    with pytest.raises(ModelError, match="are quantized"):
        made(tmp_path / "int8", family, {step: tmp_path / "twice"})
    entry = {"router": "oracle", "experts": 4, "active": 2, "shared": 0, "parts": []}
    for damaged in ([], {}, {**entry, "router": "dice"}, {**entry, "shared": 3}):
        with pytest.raises(ModelError, match=EXPERTS_KEY):
            experts_of({EXPERTS_KEY: damaged})


@pytest.mark.parametrize("router", ["centroid", "representative", "learned"])
@pytest.mark.parametrize("rows", [0, 3])
def test_a_router_without_its_tensors_is_refused_when_it_is_loaded(router: str, rows: int, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    step = single("moefy", "kmeans", experts=4, active=0.5, router=router)
    made(parent, family, {step: tmp_path / "out"})
    weights = load_file(tmp_path / "out" / "model.safetensors")
    damaged = {name: tensor[:rows] if ".moe.router." in name else tensor for name, tensor in weights.items()}
    save_file({name: tensor for name, tensor in damaged.items() if len(tensor)}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(ModelError, match=r"moe\.router\.\w+ has no row for each of 4 experts"):
        load_model(tmp_path / "out", family)


@pytest.mark.parametrize(
    "kind", ["bloom", "mpt", "falcon", "gpt2", "gpt_neo", "distilbert", "modernbert", "phi3", "bart", "mixtral", "llama4_text"]
)  # fmt: skip
def test_what_a_plan_refuses_by_config_json_a_job_refuses_too_and_nothing_else(kind: str, tmp_path: Path) -> None:
    parent, family = written(kind, tmp_path / "parent")
    for experts in (16, 7):
        settings = (step := single("moefy", "random", experts=experts, active=0.5)).settings
        config = Checkpoint(parent).config
        words = settings.refuses(config) or settings.refuses_shape(config)
        assert words or experts == 16
        try:
            made(parent, family, {step: tmp_path / str(experts)})
        except UnsupportedError:
            assert words
        else:
            assert not words
