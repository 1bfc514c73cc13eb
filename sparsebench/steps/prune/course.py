"""The scheduled sparsity at each step of a training, what pruning by it needs, and helpers that choose the zeros.

The course is that of TensorFlow's Model Optimization Toolkit: ``PolynomialDecay`` with a power of 3, or ``ConstantSparsity``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sparsebench.steps.recover.trainer import Pruning
from sparsebench.steps.recover.weights import TrainedWeights

POWER = 3.0


@dataclass(frozen=True)
class SparsitySchedule:
    """The sparsity over optimizer steps: from ``initial`` at the step ``start`` to ``final`` at the step ``end``."""

    initial: float
    final: float
    start: int
    end: int
    frequency: int

    @classmethod
    def of(cls, settings: Mapping[str, Any], steps: int) -> SparsitySchedule:
        """Return the schedule for a training of ``steps`` steps; the last step at the latest has the final sparsity."""
        last = max(0, steps - 1)
        start = min(last, round(settings["start"] * steps))
        if settings["schedule"] == "constant":
            return cls(settings["sparsity"], settings["sparsity"], start, start, 1)
        end = min(last, max(start, round(settings["end"] * steps)))
        return cls(settings["initial"], settings["sparsity"], start, end, settings["frequency"])

    def share(self, step: int) -> float:
        """Return the sparsity at step t, s_f + (s_i - s_f)(1 - (t - t_0) / (t_1 - t_0))³, t clamped to [t_0, t_1]."""
        time = (step - self.start) / (self.end - self.start) if self.end > self.start else 1.0
        return self.final + (self.initial - self.final) * (1 - min(1.0, max(0.0, time))) ** POWER

    def due(self, step: int) -> bool:
        """Return whether masks are chosen at this step: every ``frequency`` steps from ``start`` on, and at ``end``."""
        if not self.start <= step <= self.end:
            return False
        return step == self.end or (step - self.start) % self.frequency == 0


class ScheduledPruning(Pruning):
    """Pruning whose sparsity grows by a schedule: the weights to prune, their optimizer, and the pattern."""

    def __init__(self, settings: Mapping[str, Any], weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        self.course, self.pattern = SparsitySchedule.of(settings, steps), settings["pattern"]
        self.held, self.optimizer = weights.held, optimizer

    @contextmanager
    def sparse(self, step: int) -> Iterator[bool]:
        """Yield whether the schedule has ended."""
        yield step > self.course.end


def forget(optimizer: Any, parameter: torch.Tensor, where: torch.Tensor) -> None:
    """Zero AdamW's moments of some entries: even without a gradient, old moments would move removed weights."""
    for name in ("exp_avg", "exp_avg_sq"):
        if name in optimizer.state[parameter]:
            optimizer.state[parameter][name].masked_fill_(where, 0)


def bottom(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask of the ``count`` lowest scores of a matrix, in their shape."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[scores.flatten().topk(count, largest=False, sorted=False).indices] = True
    return mask.view(scores.shape)
