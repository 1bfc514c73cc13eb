"""Neurons in experts: all of them are the model, an oracle is nearer than chance, and groups are of one size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.grouped import KEY, ROUTERS, experts_of
from sparsebench.steps.moefy.grouping import balanced, grouped
from sparsebench.steps.registry import kinds, label, single
from tests.models.replaying import written
from tests.steps.skip.making import made, said

KINDS = ["llama", "bert", "t5", "phi3"]


def error(folder: Path, dense: torch.Tensor, family: Any) -> float:
    return float((said(folder, family) - dense).norm() / dense.norm())


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
    assert all(torch.equal(tensor, stored.load(info.name)) for info, tensor in Checkpoint(parent).items())
    how = experts_of(stored.config)
    assert how and how.active == 2
    for part in how.parts:
        assert set(stored.load(part.name("assignment")).bincount().tolist()) == {
            len(stored.load(part.name("assignment"))) // 8
        }


@pytest.mark.parametrize("way", ["coactivation", "cmoe", "random"])
def test_every_way_and_router_makes_a_model(way: str, tmp_path: Path) -> None:
    parent, family = written("llama", tmp_path / "parent")
    dense = said(parent, family)
    errors: dict[str, float] = {}
    for text in (False, True):
        steps = {router: single("moefy", way, experts=8, active=0.5, router=router) for router in ROUTERS}
        targets = {
            step: tmp_path / router for router, step in steps.items() if kinds()["moefy"].reads_text(step) == text
        }
        if targets:
            made(parent, family, targets)
    for router in ROUTERS:
        errors[router] = error(tmp_path / router, dense, family)
    assert 0 < errors["oracle"] <= min(errors.values())
    assert len(set(errors.values())) == len(errors)


def test_balanced_groups_find_what_belongs_together() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(4, 16, generator=generator) * 3
    points = (means.repeat_interleave(6, 0) + 0.1 * torch.randn(24, 16, generator=generator))[
        torch.randperm(24, generator=generator)
    ]
    nearest = torch.cdist(points, means).argmin(1)
    found = min(
        (balanced(points @ points.T, 4, torch.Generator().manual_seed(seed)) for seed in range(5)),
        key=lambda one: spread(points, one),
    )
    assert found.bincount().tolist() == [6, 6, 6, 6]
    assert all(len(set(nearest[found == group].tolist())) == 1 for group in range(4))


def spread(points: torch.Tensor, groups: torch.Tensor) -> float:
    return sum(float((points[groups == one] - points[groups == one].mean(0)).square().sum()) for one in groups.unique())


def test_shared_experts_hold_the_neurons_that_are_active_most_often() -> None:
    often = torch.tensor([1.0, 9, 3, 8, 2, 4, 7, 5])
    gram = torch.diag(often)
    found = grouped("cmoe", gram, 4, 1, 0)
    assert (found.assignment == 0).nonzero().flatten().tolist() == [1, 3]
    assert found.assignment.bincount().tolist() == [2, 2, 2, 2]
    assert found.assignment[found.representatives].tolist() == [0, 1, 2, 3]


def test_refusals_name_the_culprit(tmp_path: Path) -> None:
    from tests.models.test_experts import stored

    step = single("moefy", "kmeans", experts=8, active=0.5)
    assert label(step) == "kmeans/representative 4 of 8 experts"
    with pytest.raises(UnsupportedError, match=r"mixture of experts .*block_sparse_moe"):
        made(stored("mixtral", "published", tmp_path / "moe"), "decoder", {step: tmp_path / "out"})
    parent, family = written("llama", tmp_path / "parent")
    with pytest.raises(UnsupportedError, match=r"down_proj.*48 neurons make no 7 experts"):
        made(parent, family, {single("moefy", "kmeans", experts=7, active=0.5): tmp_path / "out"})
    assert not (tmp_path / "out").exists()
    made(parent, family, {step: tmp_path / "out"})
    with pytest.raises(ModelError, match="leaves weights out already"):
        made(tmp_path / "out", family, {step: tmp_path / "twice"})
    with pytest.raises(ModelError, match="skips weights already"):
        made(tmp_path / "out", family, {single("skip", "teal", share=0.5): tmp_path / "twice"})
    made(parent, family, {single("quantize", "int8"): tmp_path / "int8"})
    with pytest.raises(ModelError, match="are quantized"):
        made(tmp_path / "int8", family, {step: tmp_path / "twice"})
    for given in ({}, {"active": 0.0}, {"active": 0.5, "shared": 2}):
        with pytest.raises(PydanticCustomError):
            single("moefy", "kmeans", **given)
    for damaged in ([], {}, {"router": "dice", "experts": 4, "active": 2, "shared": 0, "parts": []}):
        with pytest.raises(ModelError, match=KEY):
            experts_of({KEY: damaged})
