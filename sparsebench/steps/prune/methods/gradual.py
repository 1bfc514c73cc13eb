"""Gradual magnitude pruning: the sparsity grows while the whole model is trained, after Zhu and Gupta (1710.01878).

Every ``frequency`` steps the smallest weights of each matrix are removed, up to the scheduled sparsity. Removed weights
stay zero, with gradients of zero. With an N:M pattern only weights that the pattern would remove at that step are
candidates, so that every group fits the pattern in the end. The pattern's masks are made anew each time, as BMCook does
for 2:4.

The schedule is that of TensorFlow's Model Optimization Toolkit: ``PolynomialDecay`` with a power of 3, or
``ConstantSparsity``. The training is that of ``recover: distill``. The paper prunes during a whole training. Here a run
starts from a trained model, and no budget in tokens is published for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from sparsebench.steps.prune.keys import ordinals
from sparsebench.steps.prune.masks import by_pattern
from sparsebench.steps.prune.settings import resolve_sparsity
from sparsebench.steps.prune.trained import Gradual
from sparsebench.steps.recover.step import make_trained
from sparsebench.steps.recover.trainer import Pruning
from sparsebench.steps.recover.weights import MaskedParameter, TrainedWeights

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
    def of(cls, settings: Gradual, steps: int) -> SparsitySchedule:
        """Return the schedule for a training of ``steps`` steps; the last step at the latest has the final sparsity."""
        last = max(0, steps - 1)
        start = min(last, round(settings.start * steps))
        goal = resolve_sparsity(settings.sparsity, settings.pattern)
        if settings.schedule == "constant":
            return cls(goal, goal, start, start, 1)
        end = min(last, max(start, round(settings.end * steps)))
        return cls(settings.initial, goal, start, end, settings.frequency)

    def share(self, step: int) -> float:
        """Return the sparsity at step t, s_f + (s_i - s_f)(1 - (t - t_0) / (t_1 - t_0))³, t clamped to [t_0, t_1]."""
        time = (step - self.start) / (self.end - self.start) if self.end > self.start else 1.0
        return self.final + (self.initial - self.final) * (1 - min(1.0, max(0.0, time))) ** POWER

    def due(self, step: int) -> bool:
        """Return whether masks are chosen at this step: every ``frequency`` steps from ``start`` on, and at ``end``."""
        if not self.start <= step <= self.end:
            return False
        return step == self.end or (step - self.start) % self.frequency == 0


class GradualPruning(Pruning):
    """The masks of a training, which grow by a schedule."""

    def __init__(self, settings: Gradual, weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        self.schedule, self.pattern = SparsitySchedule.of(settings, steps), settings.pattern
        self.masked, self.optimizer = weights.masked, optimizer

    def before_gradients(self, step: int) -> None:
        """Zero the smallest weights of each matrix up to the scheduled sparsity, and clear their optimizer state."""
        if not self.schedule.due(step):
            return
        for masked in self.masked:
            parameter, zeros = masked.parameter, masked.zeros
            rows = len(zeros) if zeros.ndim == 3 else 1  # a row for each expert where experts are fused
            for scores, mask in zip(self._scores(masked).view(rows, -1), zeros.view(rows, -1), strict=True):
                count = min(round(self.schedule.share(step) * len(scores)), int(scores.isfinite().sum()))
                mask[scores.topk(count, largest=False, sorted=False).indices] = True
            with torch.no_grad():
                parameter.masked_fill_(zeros, 0)
            # Even without a gradient, old moments of AdamW would move removed weights.
            for name in ("exp_avg", "exp_avg_sq"):
                if name in self.optimizer.state[parameter]:
                    self.optimizer.state[parameter][name].masked_fill_(zeros, 0)

    def _scores(self, masked: MaskedParameter) -> torch.Tensor:
        """Return magnitudes, infinite for the weights that the pattern keeps."""
        scores = masked.parameter.detach().abs()
        if self.pattern != "unstructured":
            for matrix in masked.matrices(scores):
                matrix[~by_pattern(ordinals(matrix, masked.name), self.pattern)] = torch.inf
        return scores

    @contextmanager
    def as_written(self, step: int) -> Iterator[bool]:
        yield step > self.schedule.end

    def tensors(self) -> list[torch.Tensor]:
        return [masked.zeros for masked in self.masked]


make_gradual = partial(make_trained, pruner=GradualPruning)
"""Makes every gradually pruned model of one pass, each in its folder."""
