"""METIS as the other way to cut the graph of co-activation: equal groups that hold what is active together."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sparsebench import environment
from sparsebench.errors import UserError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.skipping import experts_of
from sparsebench.plan.fingerprint import step_id
from sparsebench.steps.moefy.activity import share_inside
from sparsebench.steps.moefy.grouping import even_groups, group_neurons, metis_groups
from sparsebench.steps.registry import label, recorded, single
from tests.models.replaying import written
from tests.steps.skip.making import made


def needs_pymetis() -> None:
    pytest.importorskip("pymetis", reason="METIS is not installed: pip install 'pymetis>=2025.2'")


def planted(groups: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Neurons that are active with their own group most of the time and seldom with others, and each one's group."""
    draw = torch.Generator().manual_seed(0)
    group = torch.arange(groups).repeat_interleave(size)[torch.randperm(groups * size, generator=draw)]
    noise = torch.rand(groups * size, groups * size, generator=draw) * 0.2
    gram = torch.where(group[:, None] == group, 0.7, 0.1) + (noise + noise.T) / 2
    return gram.fill_diagonal_(1), group


@pytest.mark.parametrize("partition", ["balanced", "metis"])
def test_a_planted_structure_is_found_exactly(partition: str) -> None:
    if partition == "metis":
        needs_pymetis()
    gram, group = planted(6, 20)
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
    needs_pymetis()
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


@pytest.mark.parametrize("partition", ["balanced", "metis"])
def test_the_partition_is_recorded_with_what_lies_inside(partition: str, tmp_path: Path) -> None:
    if partition == "metis":
        needs_pymetis()
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


def test_steps_that_differ_in_the_partition_share_no_pass() -> None:
    balanced, metis = (
        single("moefy", "coactivation", active=0.5, partition=partition) for partition in ("balanced", "metis")
    )
    assert balanced.settings.pass_key() != metis.settings.pass_key()
    assert label(balanced) != label(metis) and "metis" in label(metis)


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
    assert label(before) == label(usual)


def test_without_pymetis_a_pass_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(UserError, match="pymetis cannot be imported") as caught:
        metis_groups(torch.eye(8), 2, torch.Generator())
    assert "pip install 'pymetis>=2025.2'" in str(caught.value)
