"""Movement pruning (Sanh et al. 2020, 2005.07683), the hard form: keeps the weights that training moves away from zero.

The model runs W ⊙ M, where W are the weights and M the mask. The score of a weight is S = -Σ W · ∂L/∂(W ⊙ M) over all
steps so far, with gradients before clipping. These are the paper's scores under plain gradient steps, whose rate does
not change the order. Gradients reach the scores of masked weights too, straight through the mask.

A masked weight keeps its value. When its score becomes high enough, it returns with that value and with moments of
zero. M keeps the highest scores of each matrix, as many as the scheduled sparsity leaves (the paper's top v). M is
chosen when the gradients of a step are known, so that the first choice has scores, and the optimizer takes that step
with the new M. Weights that were zero before the training stay zero.

Published: BERT on SQuAD, ten epochs over 88,524 samples of 384 tokens, padding counted. A run with less
than a hundredth of that gets a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sparsebench.steps.prune.course import ScheduledPruning, bottom, forget
from sparsebench.steps.prune.masks import by_pattern
from sparsebench.steps.recover.weights import TrainedWeights


class MovementPruning(ScheduledPruning):
    """The masks of a training, its movement scores, and the values of masked weights."""

    def __init__(self, settings: Mapping[str, Any], weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        super().__init__(settings, weights, optimizer, steps)
        self.scores = [torch.zeros_like(held.parameter) for held in self.held]
        self.values = [held.parameter.detach().clone() for held in self.held]
        self.zeros = [held.gone.clone() for held in self.held]

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Update the scores, and choose the masks at the steps that the schedule sets."""
        for held, score, value, zeros in zip(self.held, self.scores, self.values, self.zeros, strict=True):
            parameter, gone = held.parameter, held.gone
            value.copy_(torch.where(gone, value, parameter))
            if parameter.grad is not None:
                score.addcmul_(value, parameter.grad, value=-1)
            if not self.course.due(step):
                continue
            chosen = torch.empty_like(gone)
            ranks = score.masked_fill(zeros, -torch.inf)
            for one, mask in zip(held.matrices(ranks), held.matrices(chosen), strict=True):
                mask.copy_(self._lowest(one, step))
            chosen |= zeros
            parameter.copy_(value.masked_fill(chosen, 0))
            forget(self.optimizer, parameter, chosen ^ gone)
            gone.copy_(chosen)

    def _lowest(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        """Return a mask of the weights to remove: a matrix's lowest scores, among those that an N:M pattern removes."""
        if self.pattern != "unstructured":
            scores = scores.masked_fill(~by_pattern(scores, self.pattern), torch.inf)
        return bottom(scores, min(round(self.course.share(step) * scores.numel()), int((scores < torch.inf).sum())))

    def tensors(self) -> list[torch.Tensor]:
        """Return the masks, the scores, and the values."""
        return [*(held.gone for held in self.held), *self.scores, *self.values]
