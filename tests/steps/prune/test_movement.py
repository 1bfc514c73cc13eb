"""Movement's scores are sums of -w times the gradient, those of masked weights too, and what comes back has its old value."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.topology import parts
from sparsebench.steps.contract import Evidence
from sparsebench.steps.prune.course import SparsitySchedule
from sparsebench.steps.prune.movement import MovementPruning
from sparsebench.steps.recover import trainer
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import kinds, label, single
from tests.models.replaying import written
from tests.steps.prune.methods.test_gradual import SETTINGS, exactly
from tests.steps.recover.test_whole import made, resumed

ASKED = {
    "sparsity": 0.75, "pattern": "unstructured", "schedule": "cubic", "initial": 0.25, "start": 0.0, "end": 0.7, "frequency": 2,
}  # fmt: skip


def test_its_steps_are_those_of_the_paper() -> None:
    """One matrix under a quadratic loss, half of what is wanted near zero, against the equations written out in float64."""
    draw = torch.Generator().manual_seed(4)
    start, goal = torch.randn(2, 6, 8, generator=draw)
    start[0, :3] = 0
    goal[3:] *= 3
    w = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([w], lr=0.05, weight_decay=0.0)
    held = MaskedParameter("w", w, w.detach() == 0, False)
    weights: Any = SimpleNamespace(held=[held])
    pruning, course = MovementPruning(ASKED, weights, optimizer, 30), SparsitySchedule.of(ASKED, 30)

    zeros, whole = start == 0, start.double()
    gone, score, first, second = zeros.clone(), *torch.zeros(3, 6, 8).double()
    returned = 0
    for number in range(30):
        optimizer.zero_grad()
        pruning.before(number)
        (w - goal).square().sum().backward()
        pruning.gradients(number)
        assert w.grad is not None
        w.grad.masked_fill_(held.gone, 0)
        optimizer.step()

        gradient = 2 * (whole.masked_fill(gone, 0) - goal.double())
        score -= whole * gradient
        if number <= 21 and (number % 2 == 0 or number == 21):
            order = score.masked_fill(zeros, -torch.inf).flatten().argsort()
            new = torch.zeros(48, dtype=torch.bool)
            new[order[: max(3, round(course.share(number) * 48))]] = True
            new = new.view(6, 8)
            returned += int((gone & ~new).sum())
            first[new ^ gone], second[new ^ gone], gone = 0, 0, new
        gradient = gradient.masked_fill(gone, 0)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        done = number + 1
        step = 0.05 * (first / (1 - 0.9**done)) / ((second / (1 - 0.999**done)).sqrt() + 1e-8)
        whole = whole - step.masked_fill(gone, 0)

        assert torch.equal(held.gone, gone) and torch.equal(w.detach() == 0, gone), number
        assert torch.allclose(pruning.scores[0].double(), score, atol=1e-3), number
        assert torch.allclose(w.detach().double(), whole.masked_fill(gone, 0), atol=1e-4), number
    assert returned > 2 and int(gone.sum()) == 36


def test_training_is_resumed_to_the_same_weights_and_sparsity_is_the_course_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    dense, family = written("llama", tmp_path / "dense")
    step = single("prune", "gradual", by="movement", **SETTINGS)
    exact, plain = list[bool](), MovementPruning.gradients

    def watched(self: MovementPruning, number: int) -> None:
        plain(self, number)
        if self.course.due(number):
            wanted = [round(self.course.share(number) * held.gone.numel()) for held in self.held]
            exact.append([int((held.parameter == 0).sum()) for held in self.held] == wanted)

    monkeypatch.setattr(MovementPruning, "gradients", watched)
    whole = made(dense, family, tmp_path / "whole", step, dense)
    assert isinstance(whole, Evidence), whole
    assert len(exact) > 4 and all(exact)
    assert whole.achieved == pytest.approx(0.6, abs=2e-3)
    assert whole.curve[-1].tokens == whole.trained_tokens >= 1500
    assert "tokens, where the published run read 339,932,160" in whole.note
    resumed(dense, family, tmp_path, step, dense, whole, (4, 11))
    exactly(0.6, tmp_path / "whole", family)


def test_a_pattern_is_reached_and_zeros_of_before_stay(tmp_path: Path) -> None:
    dense, family = written("gpt2", tmp_path / "dense")
    made(dense, family, tmp_path / "cut", single("prune", "magnitude", sparsity=0.3), dense)
    step = single("prune", "gradual", by="movement", **{**SETTINGS, "sparsity": None, "pattern": "2:4"})
    found = made(tmp_path / "cut", family, tmp_path / "out", step, dense)
    assert isinstance(found, Evidence), found
    assert found.already_zero == pytest.approx(0.3 * found.prunable, rel=1e-2)
    new = Checkpoint(tmp_path / "out")
    for name, part in parts(new, family).items():
        for view in part.views:
            groups = view.shaped(new.load(name)).reshape(-1, 4)
            assert ((groups == 0).sum(1) >= 2).all(), name


def test_all_at_once_goes_by_what_the_scores_are_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, family = written("llama", tmp_path / "dense")
    told, plain = list[list[bool]](), MovementPruning.gradients

    def watched(self: MovementPruning, number: int) -> None:
        plain(self, number)
        if self.course.due(number):
            pairs = zip(self.held, self.scores, strict=True)
            told.append([bool(score[held.gone].max() <= score[~held.gone].min()) for held, score in pairs])

    monkeypatch.setattr(MovementPruning, "gradients", watched)
    step = single("prune", "gradual", by="movement", **{**SETTINGS, "schedule": "constant", "start": 0.5})
    found = made(dense, family, tmp_path / "out", step, dense)
    assert isinstance(found, Evidence), found
    assert len(told) == 1 and all(told[0]) and found.achieved == pytest.approx(0.6, abs=2e-3)


def test_settings() -> None:
    step = single("prune", "gradual", by="movement", sparsity=0.8, drop_fraction=0.5)
    assert label(step) == "gradual 80% by=movement" and "drop_fraction" not in step.settings
    plain = single("prune", "gradual", sparsity=0.8)
    kind = kinds()["prune"]
    assert kind.bytes_per_parameter(step) == kind.bytes_per_parameter(plain) + 8
    assert kind.unusual(plain) == {"sparsity": 0.8}
