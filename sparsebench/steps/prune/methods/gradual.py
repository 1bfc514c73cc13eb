"""Gradual magnitude pruning: the sparsity grows while the whole model is trained, after Zhu and Gupta (1710.01878).

Every ``frequency`` steps the smallest weights of each matrix go, until the sparsity of the course is reached; what is gone stays
so, with gradients of zero. With an N:M pattern the smallest go of those that the pattern would remove by then, so that every
group has it in the end; its masks are made anew each time, as BMCook does for 2:4.

The course is that of TensorFlow's Model Optimization Toolkit: ``PolynomialDecay`` with a power of 3, or ``ConstantSparsity``. The
training is that of ``recover: distill``. The paper prunes during a whole training; a run here starts from a trained model, and no
budget in tokens is published for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.prune.keys import ordinals
from sparsebench.steps.prune.masks import by_pattern
from sparsebench.steps.recover.trainer import Held, Pruning, Weights

POWER = 3.0


@dataclass(frozen=True)
class Course:
    """The sparsity over optimizer steps: from ``initial`` at the step ``start`` to ``final`` at the step ``end``."""

    initial: float
    final: float
    start: int
    end: int
    frequency: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], steps: int) -> Course:
        """The course of a training of so many ``steps``; at the latest its last step has the whole sparsity."""
        last = max(0, steps - 1)
        start = min(last, round(settings["start"] * steps))
        if settings["schedule"] == "constant":
            return cls(settings["sparsity"], settings["sparsity"], start, start, settings["frequency"])
        end = min(last, max(start, round(settings["end"] * steps)))
        return cls(settings["initial"], settings["sparsity"], start, end, settings["frequency"])

    def share(self, step: int) -> float:
        """s_f + (s_i - s_f)(1 - (t - t_0) / (t_1 - t_0))³, the time kept between its ends."""
        time = (step - self.start) / (self.end - self.start) if self.end > self.start else 1.0
        return self.final + (self.initial - self.final) * (1 - min(1.0, max(0.0, time))) ** POWER

    def due(self, step: int) -> bool:
        """Whether masks are chosen before this step: every ``frequency`` of the course, and at its end."""
        if not self.start <= step <= self.end:
            return False
        return step == self.end or (step - self.start) % self.frequency == 0


class Growing(Pruning):
    """The masks of a training, which grow along its course."""

    def __init__(self, settings: Mapping[str, Any], weights: Weights, optimizer: Any, steps: int) -> None:
        self.course, self.pattern = Course.of(settings, steps), settings["pattern"]
        self.held, self.optimizer = weights.held, optimizer

    def before(self, step: int) -> None:
        """Let the smallest weights of each matrix go until so many are zero, and what the optimizer knows of them."""
        if not self.course.due(step):
            return
        for held in self.held:
            parameter, gone = held.parameter, held.gone
            scores, count = self._scores(held), round(self.course.share(step) * parameter.numel())
            count = min(count, int(scores.isfinite().sum()))
            going = scores.flatten().topk(count, largest=False, sorted=False).indices
            gone.view(-1)[going.to(gone.device)] = True
            with torch.no_grad():
                parameter.masked_fill_(gone, 0)
            # Without a gradient a moment would still move it.
            for name in ("exp_avg", "exp_avg_sq"):
                if name in self.optimizer.state[parameter]:
                    self.optimizer.state[parameter][name].masked_fill_(gone, 0)

    def _scores(self, held: Held) -> torch.Tensor:
        """Magnitudes; infinite of what the pattern keeps."""
        scores = held.parameter.detach().abs()
        if self.pattern != "unstructured":
            for one in held.matrices(scores):
                one[~by_pattern(ordinals(one, held.name), self.pattern)] = torch.inf
        return scores

    @contextmanager
    def sparse(self, step: int) -> Iterator[bool]:
        """Whether the course has ended."""
        yield step > self.course.end

    def tensors(self) -> list[torch.Tensor]:
        """The masks."""
        return [held.gone for held in self.held]


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every gradually pruned model of one pass, each into its folder. Raises as ``recover`` does."""
    from sparsebench.steps.recover.step import run as recover

    recover(parent, targets, context, emit, Growing)
