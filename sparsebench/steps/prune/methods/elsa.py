"""ELSA (Lee et al. 2025, 2510.01650): minimises the model's own loss under a constraint of sparsity, by ADMM.

min f(x) where x = z and z is sparse. Between two choices of z, Adam takes steps of x on f(x) + λ/2 ‖x - z + u‖²; the
gradient of f is clipped, that of the penalty is not. Then z keeps the entries of x + u with the highest scores, with
zeros elsewhere, and u = u + x - z. The score of an entry is its square times Adam's second moment, which stands for the
Fisher information (the paper's objective-aware projection). In the end x itself is projected. Each matrix has exactly
the sparsity asked for.

Published: 4,096 steps of 8 samples of 2,048 tokens of C4. A run with less than a hundredth of these tokens gets a note.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from sparsebench.steps.prune.contract import Quota
from sparsebench.steps.prune.masks import choose
from sparsebench.steps.prune.settings import resolve_sparsity
from sparsebench.steps.prune.trained import Elsa
from sparsebench.steps.recover.step import make_trained
from sparsebench.steps.recover.trainer import Pruning
from sparsebench.steps.recover.weights import MaskedParameter, TrainedWeights


class ElsaPruning(Pruning):
    """The sparse copies z of a training's weights x, and the scaled multipliers u of x = z."""

    def __init__(self, settings: Elsa, weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        self.penalty, self.interval = float(settings.penalty), settings.interval
        self.masked, self.optimizer = weights.masked, optimizer
        self.quota = Quota(resolve_sparsity(settings.sparsity, settings.pattern), "layer", settings.pattern)
        self.copies = [self.projected(masked, masked.parameter.detach()) for masked in self.masked]
        self.duals = [torch.zeros_like(masked.parameter) for masked in self.masked]

    def projected(self, masked: MaskedParameter, values: torch.Tensor) -> torch.Tensor:
        """Return the values of one parameter with all but those of highest score set to zero."""
        moment = self.optimizer.state[masked.parameter].get("exp_avg_sq")
        projected = values.clone()
        # Square roots keep the order; small squared weights times small squared gradients would underflow.
        scores = values.abs() if moment is None else values.abs() * moment.sqrt()
        for score, matrix in zip(masked.matrices(scores), masked.matrices(projected), strict=True):
            (choice,) = choose(score, [self.quota], masked.name)
            matrix[choice.mask] = 0
        return projected

    def before_update(self, step: int) -> None:
        """Add the gradient of the penalty, λ (x - z + u)."""
        for masked, copy, dual in zip(self.masked, self.copies, self.duals, strict=True):
            assert masked.parameter.grad is not None
            masked.parameter.grad.add_(masked.parameter.detach() - copy + dual, alpha=self.penalty)

    def after_update(self, step: int) -> None:
        """Choose z anew, and add x - z to u."""
        if (step + 1) % self.interval:
            return
        for masked, copy, dual in zip(self.masked, self.copies, self.duals, strict=True):
            dual += masked.parameter.detach()
            copy.copy_(self.projected(masked, dual))
            dual.sub_(copy)

    @contextmanager
    def as_written(self, step: int) -> Iterator[bool]:
        """Project x meanwhile, as it would be written after ``step`` steps; always yield True."""
        dense_values = [masked.parameter.detach().clone() for masked in self.masked]
        for masked, values in zip(self.masked, dense_values, strict=True):
            masked.parameter.data.copy_(self.projected(masked, values))
        try:
            yield True
        finally:
            for masked, values in zip(self.masked, dense_values, strict=True):
                masked.parameter.data.copy_(values)

    def tensors(self) -> list[torch.Tensor]:
        return [*self.copies, *self.duals]


make_elsa = partial(make_trained, pruner=ElsaPruning)
"""Makes every model of one pass, each in its folder."""
