"""The sparsity grows as TensorFlow's toolkit lets it grow, and what is gone stays so to the end, a kill between or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic_core import PydanticCustomError

from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.topology import parts
from sparsebench.steps.contract import Evidence
from sparsebench.steps.prune.methods.gradual import Course
from sparsebench.steps.recover import trainer
from sparsebench.steps.registry import label, single
from tests.models.replaying import written
from tests.steps.recover.test_whole import Killed, killer, made

SETTINGS = {
    "tokens": 1500,
    "batch": 2,
    "rate": 3e-3,
    "held_out": 0.2,
    "evaluations": 3,
    "frequency": 2,
    "sparsity": 0.6,
}


@pytest.mark.parametrize(
    ("initial", "final", "start", "end", "frequency"), [(0.0, 0.8, 0, 100, 10), (0.2, 0.95, 7, 61, 9)]
)
def test_the_course_is_that_of_polynomial_decay(
    initial: float, final: float, start: int, end: int, frequency: int
) -> None:
    """By the words of ``PolynomialDecay`` and its ``_should_prune_in_step``, at every step."""
    course = Course(initial, final, start, end, frequency)
    for step in range(end + 20):
        due = start <= step <= end and (step - start) % frequency == 0
        assert course.due(step) == due
        share = min(1.0, max(0.0, (step - start) / (end - start)))
        assert course.share(step) == pytest.approx((initial - final) * (1 - share) ** 3 + final, abs=1e-7)


def test_the_whole_sparsity_is_there_before_the_end() -> None:
    for steps in (1, 2, 7, 100):
        for start, end in ((0.0, 0.75), (0.5, 1.0), (1.0, 1.0)):
            asked = {"start": start, "end": end, "schedule": "cubic", "initial": 0.0, "sparsity": 0.8, "frequency": 30}
            course = Course.of(asked, steps)
            last = max(step for step in range(steps) if course.due(step))
            assert course.share(last) == 0.8
            constant = Course.of({**asked, "schedule": "constant"}, steps)
            assert [constant.share(step) for step in range(steps) if constant.due(step)] == [0.8]


def test_the_smallest_weights_go_and_training_is_resumed_to_the_same_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    dense, family = written("llama", tmp_path / "dense")
    step = single("prune", "gradual", **SETTINGS)
    shares: list[float] = []
    plain = torch.optim.AdamW.step

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = plain(self, *args, **kwargs)
        leaves = [one for group in self.param_groups for one in group["params"] if one.ndim == 2 and len(one) != 96]
        shares.append(sum(int((one == 0).sum()) for one in leaves) / sum(one.numel() for one in leaves))
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    whole = made(dense, family, tmp_path / "whole", step, dense)
    assert isinstance(whole, Evidence), whole
    assert shares == sorted(shares) and len(set(shares)) > 4
    assert shares[0] == 0 and shares[-1] == pytest.approx(0.6, abs=2e-3)
    assert whole.achieved == pytest.approx(0.6, abs=2e-3)
    for at in (4, 11):
        with pytest.raises(Killed):
            made(dense, family, tmp_path / "out", step, dense, resume=lambda _: tmp_path / "r", progress=killer(at))
    found = made(dense, family, tmp_path / "out", step, dense, resume=lambda _: tmp_path / "r")
    one, other = Checkpoint(tmp_path / "whole"), Checkpoint(tmp_path / "out")
    assert all(torch.equal(one.load(tensor), other.load(tensor)) for tensor in one.tensors)
    assert found.curve == whole.curve
    for name, part in parts(one, family).items():
        if part.prunable:
            assert float((one.load(name) == 0).float().mean()) == pytest.approx(0.6, abs=2e-3), name


def test_settings() -> None:
    assert label(single("prune", "gradual", sparsity=0.8)) == "gradual 80%"
    assert (
        label(single("prune", "gradual", sparsity=0.8, tokens=7, source="path:/b/a.txt"))
        == "gradual 80% a.txt tokens=7"
    )
    assert "frequency" not in single("prune", "gradual", sparsity=0.8, schedule="constant").settings
    for wrong in ({}, {"initial": 0.9}, {"start": 0.9}, {"train": "norms"}):
        with pytest.raises(PydanticCustomError):
            single("prune", "gradual", **({"sparsity": 0.8} if wrong else {}), **wrong)
