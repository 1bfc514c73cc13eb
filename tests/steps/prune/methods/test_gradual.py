"""The sparsity grows as TensorFlow's toolkit lets it grow, and what is gone stays so to the end, a kill between or not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.steps.prune.methods.gradual import GradualPruning, SparsitySchedule
from sparsebench.steps.prune.trained import Gradual
from sparsebench.steps.recover.weights import MaskedParameter
from sparsebench.steps.registry import single
from tests.models.replaying import written
from tests.steps.prune.methods.synthetic import two_of_four
from tests.steps.recover.making import made

SETTINGS = {"tokens": 1500, "batch": 2, "rate": 3e-3, "held_out": 0.2, "evaluations": 3, "frequency": 2}


@pytest.mark.parametrize(
    ("initial", "final", "start", "end", "frequency"),
    [(0.0, 0.8, 0, 100, 10), (0.2, 0.95, 7, 61, 9), (0.1, 0.7, 3, 50, 9), (0.0, 0.5, 0, 8, 30)],
)
def test_the_schedule_decays_polynomially(initial: float, final: float, start: int, end: int, frequency: int) -> None:
    """By the words of ``PolynomialDecay`` and its ``_should_prune_in_step``, at every step; and once more at the end, where the
    frequency does not divide the schedule: ``PolynomialDecay`` would never reach its sparsity."""
    schedule = SparsitySchedule(initial, final, start, end, frequency)
    for step in range(end + 20):
        theirs = start <= step <= end and (step - start) % frequency == 0
        assert schedule.due(step) == (theirs or step == end)
        share = min(1.0, max(0.0, (step - start) / (end - start)))
        assert schedule.share(step) == pytest.approx((initial - final) * (1 - share) ** 3 + final, abs=1e-7)


def test_the_whole_sparsity_is_there_before_the_end() -> None:
    for steps in (1, 2, 7, 100):
        for start, end in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.0)):
            asked = Gradual(start=start, end=end, sparsity=0.8, frequency=30)
            schedule = SparsitySchedule.of(asked, steps)
            last = max(step for step in range(steps) if schedule.due(step))
            assert schedule.share(last) == 0.8
            constant = SparsitySchedule.of(asked.model_copy(update={"schedule": "constant"}), steps)
            assert [constant.share(step) for step in range(steps) if constant.due(step)] == [0.8]


@pytest.mark.parametrize(
    ("kind", "settings"), [("llama", {"sparsity": 0.6}), ("llama", {"pattern": "2:4"}), ("gpt2", {"pattern": "2:4"})]
)
def test_every_matrix_gets_its_sparsity(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    dense, family = written(kind, tmp_path / "dense")
    report = made(dense, family, tmp_path / "out", single("prune", "gradual", **SETTINGS, **settings), dense)
    sparsity = settings.get("sparsity", 0.5)
    assert report.achieved == pytest.approx(sparsity, abs=2e-3)
    model = Checkpoint(tmp_path / "out")
    for name, part in parts(model, family).items():
        if part.prunable:
            assert float((model.load(name) == 0).float().mean()) == pytest.approx(sparsity, abs=2e-3), name
    if "pattern" in settings:
        two_of_four(tmp_path / "out", family)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_more_and_more_weights_go_and_none_comes_back(pattern: str) -> None:
    weights = torch.nn.Parameter(torch.randn(16, 32, generator=torch.Generator().manual_seed(1)))
    masked = MaskedParameter("w", weights, torch.zeros(16, 32, dtype=torch.bool), False, torch.float32)
    optimizer = torch.optim.AdamW([weights], lr=0.1)
    training: Any = SimpleNamespace(masked=[masked])
    pruning = GradualPruning(Gradual(sparsity=0.5, pattern=pattern, frequency=2), training, optimizer, 20)
    shares: list[float] = []
    for step in range(20):
        pruning.before_gradients(step)
        assert not weights[masked.zeros].any(), step
        if pattern == "2:4":  # no group ever has more zeros than the pattern gives it
            assert int((weights.reshape(-1, 4) == 0).sum(1).max()) <= 2
        shares.append(float((weights == 0).float().mean()))
        weights.grad = torch.randn(16, 32, generator=torch.Generator().manual_seed(step)) * ~masked.zeros
        optimizer.step()
    assert shares == sorted(shares) and len(set(shares)) > 4
    assert shares[0] == 0 and shares[-1] == 0.5


def test_of_a_pattern_the_smallest_go_first() -> None:
    """Half way to 1:4, those go that the pattern removes as the weights are now, the smallest of them first."""
    weights = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 9.0, 10.0, 20.0, 30.0, 40.0]]))
    held = MaskedParameter("w", weights, torch.zeros(1, 8, dtype=torch.bool), False, torch.float32)
    asked = Gradual(sparsity=0.75, pattern="1:4", initial=0.25, end=0.5, frequency=1)
    some: Any = SimpleNamespace(masked=[held])
    growing = GradualPruning(asked, some, torch.optim.AdamW([weights]), 4)
    growing.before_gradients(0)
    assert weights.tolist() == [[0, 0, 3, 9, 10, 20, 30, 40]]
    weights.data[0, 7] = 1.0  # what the pattern removes is asked of the weights of now
    growing.before_gradients(2)
    assert weights.tolist() == [[0, 0, 0, 9, 0, 0, 30, 0]]
    assert held.zeros.tolist() == [[True, True, True, False, True, True, False, True]]


def test_all_at_once(tmp_path: Path) -> None:
    dense, family = written("llama", tmp_path / "dense")
    step = single("prune", "gradual", **{**SETTINGS, "rate": 1e-9}, sparsity=0.6, schedule="constant")
    made(dense, family, tmp_path / "out", step, dense)
    made(dense, family, tmp_path / "cut", single("prune", "magnitude", sparsity=0.6), dense)
    one, other = Checkpoint(tmp_path / "out"), Checkpoint(tmp_path / "cut")
    for name, part in parts(one, family).items():
        if part.prunable:
            assert torch.equal(one.load(name) == 0, other.load(name) == 0), name
