"""Gradual magnitude pruning: the sparsity grows while the whole model is trained, after Zhu and Gupta (1710.01878).

Every ``frequency`` steps the smallest weights of each matrix go, until the sparsity of the course is reached; what is gone stays
so, with gradients of zero. With an N:M pattern the smallest go of those that the pattern would remove by then, so that every
group has it in the end; its masks are made anew each time, as BMCook does for 2:4.

The training is that of ``recover: distill``. The paper prunes during a whole training; here a run starts from a trained
model, and no budget in tokens is published for that. Other choices of what goes are in ``movement`` and ``rigl``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.prune.course import SparsitySchedule, bottom, forget
from sparsebench.steps.prune.keys import ordinals
from sparsebench.steps.prune.masks import by_pattern
from sparsebench.steps.prune.movement import MovementPruning
from sparsebench.steps.prune.rigl import RiglPruning
from sparsebench.steps.recover.trainer import MaskedParameter, Pruning, TrainedWeights


class GradualPruning(Pruning):
    """The masks of a training, which grow along its course."""

    def __init__(self, settings: Mapping[str, Any], weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        self.course, self.pattern = SparsitySchedule.of(settings, steps), settings["pattern"]
        self.held, self.optimizer = weights.held, optimizer

    def before(self, step: int) -> None:
        """Let the smallest weights of each matrix go until so many are zero, and what the optimizer knows of them."""
        if not self.course.due(step):
            return
        for held in self.held:
            parameter, gone, scores = held.parameter, held.gone, self._scores(held)
            # Experts lie in one tensor, a matrix each.
            stacks = (one if one.ndim == 3 else one[None] for one in (scores, gone))
            for one, mask in zip(*stacks, strict=True):
                count = round(self.course.share(step) * one.numel())
                mask |= bottom(one, min(count, int(one.isfinite().sum())))
            with torch.no_grad():
                parameter.masked_fill_(gone, 0)
            forget(self.optimizer, parameter, gone)

    def _scores(self, held: MaskedParameter) -> torch.Tensor:
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


KINDS: dict[str, type[GradualPruning] | type[MovementPruning] | type[RiglPruning]] = {
    "magnitude": GradualPruning,
    "movement": MovementPruning,
    "rigl": RiglPruning,
}
"""What makes the zeros, by the setting ``by``."""


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every gradually pruned model of one pass, each into its folder. Raises as ``recover`` does."""
    from sparsebench.steps.recover.step import run as recover

    recover(parent, targets, context, emit, lambda settings, *rest: KINDS[settings["by"]](settings, *rest))
