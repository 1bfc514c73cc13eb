"""Neurons in experts: all of them are the model, an oracle is nearer than chance, and groups are of one size, METIS' too."""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsebench import environment
from sparsebench.errors import ModelError, UnsupportedError, UserError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.load import load_model
from sparsebench.models.modules.skipping import EXPERTS_KEY, ROUTERS, experts_of
from sparsebench.models.shape.topology import checked_parts
from sparsebench.plan.fingerprint import step_id
from sparsebench.steps.moefy.activity import coactivation_inside, share_inside
from sparsebench.steps.moefy.grouping import even_groups, group_neurons, metis_groups
from sparsebench.steps.moefy.settings import COUNTED
from sparsebench.steps.registry import label, recorded, single
from tests.models.replaying import rewritten, written
from tests.steps.shrink import making
from tests.steps.skip.making import answer, made, said


def error(folder: Path, dense: torch.Tensor, family: Any) -> float:
    return float((said(folder, family) - dense).norm() / dense.norm())


@pytest.mark.parametrize("kind", ["llama", "bert", "t5", "phi3"])
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
    found_parts = checked_parts(Checkpoint(parent), family)
    matrices = [(one.kind, Checkpoint(parent).tensors[name].numel) for name, one in found_parts.items() if one.prunable]
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
    for assignment in (stored.load(part.name("assignment")) for part in how.parts):
        assert set(assignment.bincount().tolist()) == {len(assignment) // 8}


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
    (random,) = made(parent, family, {single("moefy", "random", active=0.5, experts=8): tmp_path / "r"}).values()
    assert not random.activity


def test_a_representative_is_its_neuron_with_its_biases(tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent", mlp_bias=True)

    def draw_biases(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("bias")]:
            tensors[name] = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(len(name)))

    rewritten(parent, draw_biases)
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
    for text in (False, True):
        steps = {router: single("moefy", way, experts=8, active=0.5, router=router) for router in ROUTERS}
        targets = {step: tmp_path / router for router, step in steps.items() if step.settings.reads_text() == text}
        if targets:
            made(parent, family, targets)
    errors = {router: error(tmp_path / router, dense, family) for router in ROUTERS}
    assert 0 < errors["oracle"] <= min(errors.values())
    assert len(set(errors.values())) == len(errors)


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


@pytest.mark.parametrize("matrix", ["gate", "up", "down"])
@pytest.mark.parametrize("way", ["kmeans", "random"])
def test_weights_that_are_not_finite_are_named(way: str, matrix: str, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    name = f"model.layers.1.mlp.{matrix}_proj.weight"
    rewritten(parent, lambda tensors: tensors[name][0].fill_(torch.nan))
    with pytest.raises(ModelError, match=f"tensor {name}: NaN"):
        made(parent, family, {single("moefy", way, experts=8, active=0.5): tmp_path / "out"})


@pytest.mark.parametrize(
    "step", [("moefy", "coactivation", {"experts": 8, "active": 0.5}), ("skip", "teal", {"share": 0.5})]
)
def test_the_module_with_an_activation_that_is_not_finite_is_named(step: Any, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    for name in ("model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        rewritten(parent, lambda tensors, name=name: tensors[name][0].fill_(1e30))
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj: an activation is NaN"):
        made(parent, family, {single(*step[:2], **step[2]): tmp_path / "out"})


@pytest.mark.parametrize("router", ["centroid", "representative", "learned"])
def test_a_router_without_its_tensors_is_refused_when_it_is_loaded(router: str, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    made(parent, family, {single("moefy", "kmeans", experts=4, active=0.5, router=router): tmp_path / "out"})
    file = tmp_path / "out" / "model.safetensors"
    weights = load_file(file)
    for rows in (3, 0):
        damaged = {name: tensor[:rows] if ".moe.router." in name else tensor for name, tensor in weights.items()}
        save_file({name: tensor for name, tensor in damaged.items() if len(tensor)}, file)
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


ABSENT = "METIS is not installed: pip install 'pymetis>=2025.2'"
PARTITIONS = ["balanced", pytest.param("metis", marks=pytest.mark.skipif(not find_spec("pymetis"), reason=ABSENT))]


@pytest.mark.parametrize("partition", PARTITIONS)
def test_a_planted_structure_is_found_exactly(partition: str) -> None:
    """Neurons that are active with their own group most of the time and seldom with others."""
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(6).repeat_interleave(20)[torch.randperm(120, generator=draw)]
    noise = torch.rand(120, 120, generator=draw) * 0.2
    gram = (torch.where(group[:, None] == group, 0.7, 0.1) + (noise + noise.T) / 2).fill_diagonal_(1)
    # k-means depends on where it starts: the draw that holds most inside.
    tries = [group_neurons("coactivation", gram, 6, 0, seed, partition).assignment for seed in range(5)]
    found = max(tries, key=lambda one: share_inside(gram, one) or 0)
    assert found.bincount().tolist() == [20] * 6
    assert all(len(set(group[found == one].tolist())) == 1 for one in range(6))


def test_groups_are_evened_by_the_fewest_moves_that_cost_least() -> None:
    gram = torch.zeros(9, 9)
    bound = [(0, 1, 5), (0, 2, 5), (1, 2, 5), (0, 3, 2), (3, 7, 4), (3, 5, 1), (4, 8, 3), (5, 6, 2)]
    for one, other, weight in bound:
        gram[one, other] = gram[other, one] = weight
    # One neuron too many in group 0 and one too few in 2: neuron 3 loses 2 there and gains 4.
    assert even_groups(gram, torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]), 3).tolist() == [0, 0, 0, 2, 1, 1, 1, 2, 2]
    # Two too many, and both others lack one: 4 gains 3 in group 2, so that 3 must go to 1.
    assert even_groups(gram, torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2]), 3).tolist() == [0, 0, 0, 1, 2, 1, 1, 2, 2]
    even = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
    assert torch.equal(even_groups(gram, even, 3), even)


def test_the_seed_alone_decides_and_groups_are_equal_whatever_the_graph() -> None:
    pytest.importorskip("pymetis", reason=ABSENT)
    draw = torch.Generator().manual_seed(1)
    random = torch.rand(96, 96, generator=draw)
    # Neurons that are never active have no edge, and a graph may have none at all.
    silent = torch.zeros(96, 96)
    silent[:40, :40] = random[:40, :40]
    found = []
    for gram in (random + random.T, silent + silent.T, torch.zeros(96, 96), torch.eye(96)):
        for groups in (1, 8, 12, 96):
            one, again = (metis_groups(gram, groups, torch.Generator().manual_seed(0)) for _ in range(2))
            assert torch.equal(one, again) and one.bincount().tolist() == [96 // groups] * groups
        found.append([metis_groups(gram, 12, torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    assert not torch.equal(*found[0])


@pytest.mark.parametrize("partition", PARTITIONS)
def test_the_partition_is_recorded_with_what_lies_inside(partition: str, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    step = single("moefy", "coactivation", experts=8, active=0.5, partition=partition)
    (told,) = made(parent, family, {step: tmp_path / "out"}).values()
    shares = [row.inside for row in told.activity if row.inside is not None]
    # By chance 5 of the 47 others are in a neuron's expert of 6.
    assert len(shares) == len(told.activity) > 0 and all(5 / 47 < one < 1 for one in shares)
    assert f"{sum(shares) / len(shares):.1%} of co-activation lies inside experts" in told.note
    assert ("METIS" in told.note) == (partition == "metis")
    assert json.loads((tmp_path / "out" / "sparsebench.json").read_text())["partition"] == partition
    stored = Checkpoint(tmp_path / "out")
    how = experts_of(stored.config)
    assert how and all(set(stored.load(part.name("assignment")).bincount().tolist()) == {6} for part in how.parts)


def test_the_version_of_pymetis_is_part_of_what_it_made_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = single("moefy", "coactivation", active=0.5)
    written = {key: value for key, value in usual.settings.record().items() if key != "partition"}
    before = recorded({**usual.record(), "settings": written})
    metis = single("moefy", "coactivation", active=0.5, partition="metis")
    ids: dict[str, list[str]] = {}
    for version in ("absent", "2025.2.2", "2026.1"):
        monkeypatch.setitem(environment.versions(), "pymetis", version)
        for name, step in (("before", before), ("balanced", usual), ("metis", metis)):
            ids.setdefault(name, []).append(step_id("parent", step, 0, {}, {}))
    assert ids["balanced"] == ids["before"] and len(set(ids["balanced"])) == 1
    assert len(set(ids["metis"])) == 3 and not {*ids["metis"]} & {*ids["balanced"]}
    assert label(before) == label(usual) != label(metis) and "metis" in label(metis)
    assert usual.settings.pass_key() != metis.settings.pass_key()


def test_without_pymetis_a_pass_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(UserError, match="pymetis cannot be imported") as caught:
        metis_groups(torch.eye(8), 2, torch.Generator())
    assert "pip install 'pymetis>=2025.2'" in str(caught.value)
