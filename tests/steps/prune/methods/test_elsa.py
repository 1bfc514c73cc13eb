"""ADMM on the model's own loss: exact zeros, the steps of the paper, and better weights than the cut alone leaves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import parts
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.prune.methods.elsa import ElsaPruning
from sparsebench.steps.prune.trained import Elsa
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import single
from tests.models.replaying import written
from tests.steps.prune.methods.synthetic import two_of_four
from tests.steps.recover.making import made, step

SETTINGS = {"tokens": 1500, "batch": 4, "rate": 3e-3, "held_out": 0.1, "evaluations": 3, "interval": 4, "penalty": 0.1}


def counting(samples: int) -> Calibrated:
    """Samples that go on by a rule, with a word in ten at random: what is learned of some holds for the others."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(60, (samples, 16), generator=draw)
    random = torch.rand(samples, 16, generator=draw) < 0.1
    for place in range(1, 16):
        ids[:, place] = torch.where(random[:, place], ids[:, place], (7 * ids[:, place - 1] + 11) % 60)
    given, mask = ids + 3, torch.ones(samples, 16, dtype=torch.bool)
    return Calibrated(Batch(given, mask), "sha", "text", int(mask.sum()), ())


def test_it_beats_the_cut_alone_and_the_zeros_are_exact(tmp_path: Path) -> None:
    start, family = written("llama", tmp_path / "start")
    dense, text = tmp_path / "dense", {"training_tokens": lambda wanted: counting(400)}
    # It has learned to count, so that there is something to lose.
    made(start, family, dense, step("finetune", tokens=30000, rate=1e-2, held_out=0.1, batch=16), start, **text)
    asked = single("prune", "elsa", **{**SETTINGS, "sparsity": 0.7, "tokens": 10000})
    found = made(dense, family, tmp_path / "out", asked, dense, **text)
    cut = made(dense, family, tmp_path / "cut", single("prune", "magnitude", sparsity=0.7), dense)
    still = step("finetune", rate=1e-9, held_out=0.1, tokens=64)
    told = made(tmp_path / "cut", family, tmp_path / "same", still, dense, **text)
    # What is looked at first is the cut by magnitude, before any step.
    assert found.curve[0].held_out == pytest.approx(told.curve[0].held_out, rel=1e-4)
    assert found.curve[-1].held_out < 0.8 * found.curve[0].held_out
    new = Checkpoint(tmp_path / "out")
    for name, part in parts(new, family).items():
        if part.prunable:
            assert int((new.load(name) == 0).sum()) == round(0.7 * new.tensors[name].numel), name
    assert found.zeros == cut.zeros and found.trained_tokens >= 10000
    assert "the published run read 67,108,864" in found.note


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_pattern_is_that_of_every_group(kind: str, tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense")
    made(dense, family, tmp_path / "out", single("prune", "elsa", **SETTINGS, pattern="2:4"), dense)
    two_of_four(tmp_path / "out", family)


def test_zeros_of_before_stay(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    made(dense, family, tmp_path / "cut", single("prune", "magnitude", sparsity=0.5), dense)
    asked = single("prune", "elsa", **SETTINGS, sparsity=0.7)
    found = made(tmp_path / "cut", family, tmp_path / "out", asked, dense)
    assert found.already_zero == pytest.approx(0.5 * found.prunable, rel=1e-2)
    assert found.achieved == pytest.approx(0.7, abs=2e-3)


def test_its_steps_are_those_of_the_paper() -> None:
    """One matrix under a quadratic loss, against the equations written out in float64."""
    draw = torch.Generator().manual_seed(3)
    start, goal = torch.randn(2, 6, 8, generator=draw)
    x = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([x], lr=0.01, weight_decay=0.0)
    held = MaskedParameter("w", x, torch.zeros(6, 8, dtype=torch.bool), False, torch.float32)
    asked = Elsa(sparsity=0.75, penalty=0.3, interval=5)
    weights: Any = SimpleNamespace(masked=[held])
    pruning = ElsaPruning(asked, weights, optimizer, 40)

    def top(values: torch.Tensor, weigh: torch.Tensor) -> torch.Tensor:
        kept = (weigh * values.square()).flatten().topk(12).indices
        return torch.zeros(48, dtype=torch.float64).index_put((kept,), values.flatten()[kept]).view(6, 8)

    own, first, second = start.double(), torch.zeros(6, 8).double(), torch.zeros(6, 8).double()
    z, u = top(own, torch.ones(6, 8).double()), torch.zeros(6, 8).double()
    for number in range(40):
        optimizer.zero_grad()
        pruning.before_gradients(number)
        (x - goal).square().sum().backward()
        pruning.before_update(number)
        optimizer.step()
        pruning.after_update(number)
        gradient = 2 * (own - goal.double()) + 0.3 * (own - z + u)
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        done = number + 1
        own = own - 0.01 * (first / (1 - 0.9**done)) / ((second / (1 - 0.999**done)).sqrt() + 1e-8)
        if done % 5 == 0:
            z, u = top(own + u, second), u + own
            u = u - z
    assert torch.allclose(x.detach().double(), own, atol=1e-4)
    assert torch.allclose(pruning.copies[0].double(), z, atol=1e-4)
    assert torch.allclose(pruning.duals[0].double(), u, atol=1e-4)
    before = x.detach().clone()
    with pruning.as_written(40) as whole:
        assert whole and torch.allclose(x.detach().double(), top(own, second), atol=1e-4)
    assert torch.equal(x.detach(), before)
