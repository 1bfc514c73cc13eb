"""RigL drops the smallest and grows where gradients are largest, as many as the cosine says; the sparsity never changes."""

from __future__ import annotations

from math import cos, pi
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.errors import ModelError
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.topology import parts
from sparsebench.steps.contract import Evidence
from sparsebench.steps.prune.rigl import RiglPruning
from sparsebench.steps.recover import trainer
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import kinds, label, single
from tests.models.replaying import written
from tests.steps.prune.methods.test_gradual import SETTINGS, exactly
from tests.steps.recover.test_whole import made, resumed

ASKED = {"sparsity": 0.5, "end": 0.75, "frequency": 4, "drop_fraction": 0.4}


def rigged(start: torch.Tensor, steps: int) -> tuple[MaskedParameter, torch.optim.Optimizer, RiglPruning]:
    """One matrix in training."""
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.02, weight_decay=0.0)
    held = MaskedParameter("w", parameter, parameter.detach() == 0, False)
    weights: Any = SimpleNamespace(held=[held])
    return held, optimizer, RiglPruning(ASKED, weights, optimizer, steps)


def test_the_share_is_the_cosine_of_the_paper() -> None:
    _, _, pruning = rigged(torch.ones(2, 4), 40)
    assert [step for step in range(40) if pruning.due(step)] == [4, 8, 12, 16, 20, 24, 28]
    for step in range(31):
        assert pruning.share(step) == pytest.approx(0.4 / 2 * (1 + cos(step * pi / 30)), abs=1e-12)
    assert pruning.share(0) == pytest.approx(0.4) and pruning.share(30) == pytest.approx(0, abs=1e-12)


def test_what_is_dropped_and_grown_is_chosen_as_in_the_paper() -> None:
    draw = torch.Generator().manual_seed(2)
    start, goal = torch.randn(2, 10, 12, generator=draw)
    start[0, :5] = 0
    held, optimizer, pruning = rigged(start, 40)
    cut = start.abs().flatten().sort().values[59]
    assert torch.equal(held.gone, start.abs() <= cut) and torch.equal(held.parameter == 0, held.gone)
    kept_through = moved = 0
    for number in range(40):
        optimizer.zero_grad()
        pruning.before(number)
        (held.parameter - goal).square().sum().backward()
        gradient = held.parameter.grad
        assert gradient is not None
        old, gone, slopes = held.parameter.detach().clone(), held.gone.clone(), gradient.tolist()
        before = {name: value.clone() for name, value in optimizer.state[held.parameter].items()}
        pruning.gradients(number)
        if pruning.due(number):
            places = [(row, column) for row in range(10) for column in range(12)]
            alive = sorted((place for place in places if not gone[place]), key=lambda place: abs(float(old[place])))
            count = int(0.4 / 2 * (1 + cos(number * pi / 30)) * 60)
            dropped, stay = set(alive[:count]), set(alive[count:])
            free = [place for place in places if place not in stay and start[place] != 0]
            grown = set(sorted(free, key=lambda place: -abs(slopes[place[0]][place[1]]))[:count])
            assert {place for place in places if not held.gone[place]} == stay | grown
            moved += len(grown - dropped)
            kept_through += len(grown & dropped)
            for place in places:
                same = place in stay or place in grown & dropped
                assert float(held.parameter.detach()[place]) == (float(old[place]) if same else 0)
                for name in ("exp_avg", "exp_avg_sq"):
                    told = optimizer.state[held.parameter][name][place]
                    # What is gone and stays gone has moments of zero already.
                    assert float(told) == (float(before[name][place]) if same else 0)
        else:
            assert torch.equal(held.gone, gone) and torch.equal(held.parameter, old)
        gradient.masked_fill_(held.gone, 0)
        optimizer.step()
        assert int(held.gone.sum()) == 60 and torch.equal(held.parameter == 0, held.gone)
    assert moved > 10 and kept_through > 2
    assert not held.parameter[0, :5].any()


def test_training_is_resumed_to_the_same_weights_and_the_sparsity_is_exact_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    dense, family = written("llama", tmp_path / "dense")
    step = single("prune", "gradual", by="rigl", **SETTINGS)
    exact, changes = list[bool](), list[int]()
    plain, after = RiglPruning.gradients, RiglPruning.after

    def watched(self: RiglPruning, number: int) -> None:
        old = [held.gone.clone() for held in self.held]
        plain(self, number)
        changes.append(sum(int((one ^ held.gone).sum()) for one, held in zip(old, self.held, strict=True)))

    def counted(self: RiglPruning, number: int) -> None:
        after(self, number)
        zeros = [(int((held.parameter == 0).sum()), round(0.6 * held.gone.numel())) for held in self.held]
        exact.append(all(one == other for one, other in zeros))

    monkeypatch.setattr(RiglPruning, "gradients", watched)
    monkeypatch.setattr(RiglPruning, "after", counted)
    whole = made(dense, family, tmp_path / "whole", step, dense)
    assert isinstance(whole, Evidence), whole
    assert len(exact) > 8 and all(exact)
    made_of = [number for number, count in enumerate(changes) if count]
    assert made_of and all(number % 2 == 0 and 0 < number < 0.75 * len(exact) for number in made_of)
    assert f"{len(exact)} steps, where masks of the published run changed for 25,000" in whole.note
    assert resumed(dense, family, tmp_path, step, dense, whole, (4, 11)).trained_tokens >= 1500
    exactly(0.6, tmp_path / "whole", family)


def test_the_first_look_is_at_the_cut_and_zeros_of_before_stay(tmp_path: Path) -> None:
    dense, family = written("gpt2", tmp_path / "dense")
    made(dense, family, tmp_path / "cut", single("prune", "magnitude", sparsity=0.3), dense)
    step = single("prune", "gradual", by="rigl", **{**SETTINGS, "rate": 1e-9, "drop_fraction": 0.0})
    found = made(tmp_path / "cut", family, tmp_path / "out", step, dense)
    assert isinstance(found, Evidence), found
    more = made(dense, family, tmp_path / "more", single("prune", "magnitude", sparsity=0.6), dense)
    assert found.zeros == more.zeros and found.already_zero == pytest.approx(0.3 * found.prunable, rel=1e-2)
    one, other = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "more")
    for name, part in parts(one, family).items():
        if part.prunable:
            assert torch.equal(one.load(name) == 0, other.load(name) == 0), name


def test_a_training_too_short_for_any_change_is_refused(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    step = single("prune", "gradual", by="rigl", **{**SETTINGS, "frequency": 500})
    found = made(dense, family, tmp_path / "out", step, dense)
    assert isinstance(found, ModelError) and "the masks would never change" in str(found)
    assert not (tmp_path / "out").exists()


def test_settings() -> None:
    step = single("prune", "gradual", by="rigl", sparsity=0.8)
    assert label(step) == "gradual 80% by=rigl"
    assert not {"initial", "schedule", "start"} & set(step.settings) and step.settings["drop_fraction"] == 0.3
    kind, plain = kinds()["prune"], single("prune", "gradual", sparsity=0.8)
    assert kind.bytes_per_parameter(step) == kind.bytes_per_parameter(plain)
    for wrong in ({"pattern": "2:4", "sparsity": None}, {"initial": 0.1}, {"schedule": "cubic"}, {"start": 0.1}, {}):
        with pytest.raises(PydanticCustomError):
            single("prune", "gradual", **{"by": "rigl", "sparsity": 0.8 if wrong else None, **wrong})


@pytest.mark.parametrize("by", ["magnitude", "movement", "rigl"])
def test_experts_have_the_sparsity_each(by: str, tmp_path: Path) -> None:
    dense, family = written("mixtral", tmp_path / "dense")
    step = single("prune", "gradual", by=by, **{**SETTINGS, "tokens": 600})
    found = made(dense, family, tmp_path / "out", step, dense)
    assert isinstance(found, Evidence), found
    new, matrices = Checkpoint(tmp_path / "out"), 0
    for name, part in parts(new, family).items():
        tensor = new.load(name)
        for one in (tensor if tensor.ndim == 3 else [tensor]) if part.prunable else ():
            assert int((one == 0).sum()) == round(0.6 * one.numel()), name
            matrices += tensor.ndim == 3
    assert matrices > 4
