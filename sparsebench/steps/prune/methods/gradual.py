"""Gradual magnitude pruning: the sparsity grows while the whole model is trained, after Zhu and Gupta (1710.01878).

Every ``frequency`` steps the smallest weights of each matrix are removed, up to the scheduled sparsity. Removed weights
stay zero, with gradients of zero. With an N:M pattern only weights that the pattern would remove at that step are
candidates, so that every group fits the pattern in the end. The pattern's masks are made anew each time, as BMCook does
for 2:4.

The training is that of ``recover: distill``. The paper prunes during a whole training. Here a run starts from a trained
model, and no budget in tokens is published for that. ``movement`` and ``rigl`` choose the weights to remove in other
ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.prune.course import ScheduledPruning, bottom, forget
from sparsebench.steps.prune.keys import ordinals
from sparsebench.steps.prune.masks import by_pattern
from sparsebench.steps.prune.movement import MovementPruning
from sparsebench.steps.prune.rigl import RiglPruning
from sparsebench.steps.recover.weights import MaskedParameter


class GradualPruning(ScheduledPruning):
    """The masks of a training, which grow by a schedule."""

    def before(self, step: int) -> None:
        """Zero the smallest weights of each matrix up to the scheduled sparsity, and clear their optimizer state."""
        if not self.course.due(step):
            return
        for held in self.held:
            parameter, gone, scores = held.parameter, held.gone, self._scores(held)
            # Fused experts are one tensor of a matrix each.
            stacks = (one if one.ndim == 3 else one[None] for one in (scores, gone))
            for one, mask in zip(*stacks, strict=True):
                count = round(self.course.share(step) * one.numel())
                mask |= bottom(one, min(count, int(one.isfinite().sum())))
            with torch.no_grad():
                parameter.masked_fill_(gone, 0)
            forget(self.optimizer, parameter, gone)

    def _scores(self, held: MaskedParameter) -> torch.Tensor:
        """Return magnitudes, infinite for the weights that the pattern keeps."""
        scores = held.parameter.detach().abs()
        if self.pattern != "unstructured":
            for one in held.matrices(scores):
                one[~by_pattern(ordinals(one, held.name), self.pattern)] = torch.inf
        return scores

    def tensors(self) -> list[torch.Tensor]:
        """Return the masks."""
        return [held.gone for held in self.held]


KINDS: dict[str, type[GradualPruning] | type[MovementPruning] | type[RiglPruning]] = {
    "magnitude": GradualPruning,
    "movement": MovementPruning,
    "rigl": RiglPruning,
}
"""The class that makes the zeros, by the setting ``by``."""


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every gradually pruned model of one pass, each in its folder. Raises as ``recover`` does."""
    from sparsebench.steps.recover.step import run as recover

    recover(parent, targets, context, emit, lambda settings, *rest: KINDS[settings["by"]](settings, *rest))
