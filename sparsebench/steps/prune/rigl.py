"""RigL (Evci et al. 2020, 1911.11134): the number of zeros stays the same at all steps; their positions change.

Each matrix has the same sparsity (the paper's ``uniform``). The paper's other choice, by the matrices' shapes (ERK), is
not offered. Every ``frequency`` steps until ``end``, the share α/2 (1 + cos(π t / T_end)) of the remaining weights is
dropped, the smallest first. As many weights are grown where |∂L/∂w| is largest among all that are not kept, those just
dropped included, as in the authors' code. A grown weight begins at zero, with moments of zero; one that is dropped and
grown at once keeps its value and moments.

The paper starts from random weights and a random mask. Here the model is already trained, so the first mask removes the
smallest weights. In the paper a change of masks replaces an optimizer step. Here the optimizer takes the step with the
new mask and the same gradients, so that no batch is lost and grown weights are no longer zero. Weights that were zero
before the training stay zero.

Published: networks for images, whose masks change every 100 steps for 25,000 steps (the authors' code), α = 0.3. No budget in
tokens is published for a Transformer. A run of less than a hundredth of these steps gets a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi
from typing import Any

import torch

from sparsebench.errors import ModelError
from sparsebench.steps.prune.course import bottom, forget
from sparsebench.steps.recover.trainer import Pruning
from sparsebench.steps.recover.weights import TrainedWeights


class RiglPruning(Pruning):
    """The masks of a training whose zeros change their positions."""

    def __init__(self, settings: Mapping[str, Any], weights: TrainedWeights, optimizer: Any, steps: int) -> None:
        """Zero the smallest weights. Raises ModelError where the training is too short for any change of masks."""
        self.held, self.optimizer = weights.held, optimizer
        self.alpha, self.frequency = settings["drop_fraction"], settings["frequency"]
        self.last = settings["end"] * steps
        if not any(map(self.due, range(steps))):
            raise ModelError(
                "prune: gradual, by: rigl: the masks would never change: no multiple of "
                f"`frequency: {self.frequency}` comes before `end` in {steps} steps",
                "a smaller `frequency`, or more `tokens`",
            )
        self.zeros = [held.gone.clone() for held in self.held]
        for held in self.held:
            for one, mask in zip(held.matrices(held.parameter.detach()), held.matrices(held.gone), strict=True):
                mask |= bottom(one.abs(), round(settings["sparsity"] * one.numel()))
            held.parameter.data.masked_fill_(held.gone, 0)

    def due(self, step: int) -> bool:
        """Return whether masks change at this step: not at step 0, which has the first mask."""
        return 0 < step < self.last and step % self.frequency == 0

    def share(self, step: int) -> float:
        """Return α/2 (1 + cos(π t / T_end)), the share of the remaining weights that is dropped."""
        return float(self.alpha) / 2 * (1 + cos(pi * step / self.last))

    @torch.no_grad()
    def gradients(self, step: int) -> None:
        """Drop the smallest remaining weights, and grow as many where the gradients are largest."""
        if not self.due(step):
            return
        for held, zeros in zip(self.held, self.zeros, strict=True):
            parameter, gradient = held.parameter, held.parameter.grad
            if gradient is None:
                continue
            chosen = torch.empty_like(held.gone)
            sheets = (parameter, gradient, held.gone, zeros, chosen)
            for value, slope, gone, fixed, mask in zip(*(held.matrices(sheet) for sheet in sheets), strict=True):
                count = int(self.share(step) * int((~gone).sum()))
                free = gone | bottom(value.abs().masked_fill(gone, torch.inf), count)
                grown = bottom((-slope.abs()).masked_fill(~free | fixed, torch.inf), count)
                mask.copy_(free & ~grown)
            changed = chosen ^ held.gone
            parameter.masked_fill_(changed, 0)
            forget(self.optimizer, parameter, changed)
            held.gone.copy_(chosen)

    def tensors(self) -> list[torch.Tensor]:
        """Return the masks."""
        return [held.gone for held in self.held]
