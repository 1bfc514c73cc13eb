"""Gates on neurons and heads, learned while the whole model is trained (BMCook's ``sprune``).

Each element's output is multiplied by a gate z, drawn anew at every step from the hard-concrete distribution (Louizos
et al. 1712.01312), which gives exactly 0 and exactly 1 with some probability:

    s = σ((log u - log(1 - u) + log α) / β),  u uniform in (0, 1)
    z = min(1, max(0, s(ζ - γ) + γ))
    P(z ≠ 0) = σ(log α - β log(-γ/ζ))

λ1 Δ + λ2 Δ² is added to the training's loss (Wang et al. 1910.04732). Δ is the expected sparsity less the target, with
each element weighted by the parameters that go with it. Weights and log α descend; λ1 and λ2 ascend. λ2 begins above 0,
because with few steps λ1 alone drives the sparsity far beyond its target and back. Where widths stay even, each axis
has a Δ and multipliers of its own. The target grows from 0. Later in the training, the gates with the highest log α are
opened, as many as were asked for, and all others are closed. They stay so for the rest of the training.

Sheared LLaMA (2310.06694) trains its masks this way, also those of layers and of the hidden size, for 3,200 steps of
32 x 4,096 tokens. A run on less than a hundredth of these tokens says so in its note.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import log
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.safety import left_out_sentence
from sparsebench.models.shape.axes import Axis, ModelShape
from sparsebench.steps import cut_model
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.recover.step import check_vocabulary
from sparsebench.steps.recover.trainer import Pruning
from sparsebench.steps.recover.weights import TrainedWeights
from sparsebench.steps.recover.whole import Training
from sparsebench.steps.shrink import choosing
from sparsebench.steps.shrink.whole import module_of

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
RATE, PENALTY, MULTIPLIER_RATE = 0.2, 10.0, 0.1
"""Adam's learning rate of log α; the initial λ2 (λ1 begins at 0); the shares of Δ and of Δ² by which λ1 and λ2 grow in
each step."""
GROWING, SETTLED = 0.25, 0.5
"""The share of the steps over which the target sparsity grows linearly from 0, and that after which the gates are open
or closed for good."""
START = log((1 - GAMMA) / (ZETA - 1))
"""The initial log α of every gate: without a draw the gates are then exactly 1, so that the model begins unchanged."""


def open_probability(log_alphas: torch.Tensor) -> torch.Tensor:
    """Return P(z ≠ 0) of gates with these log α, of the same shape."""
    return torch.sigmoid(log_alphas - BETA * log(-GAMMA / ZETA))


def mean_gates(log_alphas: torch.Tensor) -> torch.Tensor:
    """Return the gates without a draw, of the same shape: σ(log α), stretched and clipped as a drawn s is."""
    return (torch.sigmoid(log_alphas) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def drawn_gates(log_alphas: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Return the gates drawn with ``uniform`` numbers in (0, 1), of the same shape."""
    s = torch.sigmoid((uniform.log() - (-uniform).log1p() + log_alphas) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


class GatePlan:
    """Which elements may go, and how many of each axis are to stay (``remaining``); ``begin`` puts gates on them.

    Raises UnsupportedError where that cannot be reached, or where nothing would go.
    """

    def __init__(self, shape: ModelShape, step: Step, seed: int) -> None:
        self.shape, self.seed = shape, seed
        self.uneven = bool(step.settings.uneven)
        remaining = choosing.remaining_counts(shape, step.settings)
        self.remaining = {axis: count for axis, count in remaining.items() if self.uneven or count < axis.units}
        if all(count == axis.units for axis, count in remaining.items()):
            raise UnsupportedError("no neuron and no group of heads would go", "let less stay")
        self.pruning: GatePruning | None = None

    def begin(self, settings: Mapping[str, Any], weights: TrainedWeights, optimizer: Any, steps: int) -> GatePruning:
        """Return the gates of the model that is trained from now on."""
        self.pruning = GatePruning(self, weights, steps)
        return self.pruning

    def smaller(self, kept_units: dict[Axis, list[int]]) -> cut_model.SmallerModel:
        """Return the model with these elements alone."""
        return cut_model.SmallerModel(self.shape, kept_units, config=choosing.changed_config(self.shape, kept_units))


class GatePruning(Pruning):
    """The gates of a model that is trained, in front of the matrices that read the elements (down, o)."""

    def __init__(self, plan: GatePlan, weights: TrainedWeights, steps: int) -> None:
        self.plan = plan
        self.units = [axis.units for axis in plan.remaining]
        device = weights.leaves[0].device
        self.log_alphas = torch.full((sum(self.units),), START, device=device, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log_alphas], lr=RATE)
        # The state that Adam would make at its first step: a resumed training copies its own into it.
        self.optimizer.state[self.log_alphas] = {
            "step": torch.tensor(0.0, device="cpu"),
            "exp_avg": torch.zeros_like(self.log_alphas),
            "exp_avg_sq": torch.zeros_like(self.log_alphas),
        }
        tensors = plan.shape.checkpoint.tensors
        costs = torch.tensor([float(axis.cost(tensors)) for axis in plan.remaining], device="cpu")
        counts = torch.tensor(self.units, device="cpu")
        remaining = torch.tensor([*plan.remaining.values()], device="cpu")
        wholes = (costs * counts).sum() if plan.uneven else costs * counts
        self.shares = (costs / wholes).repeat_interleave(counts).to(device)
        removed_shares = costs * (counts - remaining) / wholes
        self.target = (removed_shares.sum(0, keepdim=True) if plan.uneven else removed_shares).to(device)
        self.multipliers = torch.zeros(2, len(self.target), device=device)
        self.multipliers[1] = PENALTY
        self.growing = max(1, round(GROWING * steps))
        self.settled = max(1, round(SETTLED * steps))
        self.mask: torch.Tensor | None = None
        self.noise: torch.Tensor | None = None
        start = 0
        for axis in plan.remaining:
            gates = slice(start, start + axis.units)
            start += axis.units
            for cut in axis.outputs:
                module = module_of(weights.model, cut.tensor)
                module.register_forward_pre_hook(partial(self._multiplied, gates, cut.size))

    def _multiplied(
        self, units: slice, size: int, module: nn.Module, args: tuple[torch.Tensor, ...]
    ) -> tuple[Any, ...]:
        """Multiply a matrix's input, (.., columns), by the gates of the elements that its columns belong to."""
        if self.mask is not None:
            gates = self.mask[units]
        else:
            log_alphas = self.log_alphas[units]
            gates = mean_gates(log_alphas) if self.noise is None else drawn_gates(log_alphas, self.noise[units])
        return (args[0] * gates.repeat_interleave(size).to(args[0].dtype), *args[1:])

    def sparsity(self) -> torch.Tensor:
        """Return the expected share of the parameters that go: (axes,), of each axis, or (1,), of all together."""
        lost = self.shares * (1 - open_probability(self.log_alphas))
        sums = torch.stack([part.sum() for part in lost.split(self.units)])
        return sums.sum(0, keepdim=True) if self.plan.uneven else sums

    def before_gradients(self, step: int) -> None:
        """Draw the step's random numbers, from the seed and the step's number alone, or fix the gates for good."""
        self.optimizer.zero_grad()
        if step >= self.settled:
            self._settle()
            return
        draw = torch.Generator().manual_seed(self.plan.seed + (step + 1) * 1_000_003)
        uniform = torch.rand(len(self.log_alphas), generator=draw, device="cpu").clamp(1e-6, 1 - 1e-6)
        self.noise = uniform.to(self.log_alphas.device)

    def before_update(self, step: int) -> None:
        """Update the gates: log α descends the loss and the Lagrangian, λ1 and λ2 ascend the Lagrangian."""
        if self.mask is not None:
            return
        excess = self.sparsity() - self.target * min(1.0, (step + 1) / self.growing)
        terms = torch.stack([excess, excess.square()])
        (self.multipliers * terms).sum().backward()
        self.optimizer.step()
        self.multipliers += MULTIPLIER_RATE * terms.detach()

    def _settle(self) -> None:
        """Open and close the gates for good."""
        self.noise = None
        if self.mask is None:
            masks = []
            for axis, units in self.kept().items():
                masks.append(torch.zeros(axis.units, device="cpu"))
                masks[-1][units] = 1
            self.mask = torch.cat(masks).to(self.log_alphas.device)

    @contextmanager
    def as_written(self, step: int) -> Iterator[bool]:
        """Use the gates without a draw; yield whether they are open or closed for good by now."""
        self.noise = None
        if step >= self.settled:
            self._settle()
        yield step >= self.settled

    def tensors(self) -> list[torch.Tensor]:
        return [self.log_alphas.detach(), *self.optimizer.state[self.log_alphas].values(), self.multipliers]

    def kept(self) -> dict[Axis, list[int]]:
        """Return the elements that stay: as many as were asked for, those with the highest log α."""
        parts = self.log_alphas.detach().cpu().double().split(self.units)
        remaining = self.plan.remaining
        scores = dict(zip(remaining, parts, strict=True))
        if self.plan.uneven:
            return choosing.best_across_blocks(remaining, scores, self.plan.shape.checkpoint.tensors, joint=True)
        return {axis: choosing.best_units(scores[axis], count) for axis, count in remaining.items()}

    def missed(self) -> float:
        """Return the largest difference between an expected sparsity and its target."""
        with torch.no_grad():
            return float((self.sparsity() - self.target).abs().max())


@dataclass(frozen=True)
class GateTraining(Training):
    """A training that writes its model without the elements whose gates are closed."""

    plan: GatePlan = field(kw_only=True)

    def zeros_in_parent(self, written: Checkpoint, name: str) -> int:
        """Return 0: the smaller matrices have no counterparts in the parent."""
        return 0

    def write(self, folder: Path, weights: Mapping[str, torch.Tensor], provenance: Mapping[str, Any]) -> list[str]:
        """Write the smaller model. Raises UnsupportedError where stock transformers would build another shape."""
        assert self.plan.pruning is not None, "the training has begun"
        missed, kept_units = self.plan.pruning.missed(), self.plan.pruning.kept()
        smaller = self.plan.smaller(kept_units)
        ready = {name: smaller.cut(name, tensor) for name, tensor in weights.items()}
        writer = cut_model.write_smaller(smaller, self.context.family, folder, {**provenance, "missed": missed}, ready)
        stay_note = choosing.cut_note(self.plan.shape, {axis: len(units) for axis, units in kept_units.items()})
        target_note = f"the gates expected a sparsity {missed:.2g} off the target when they were closed"
        return [stay_note, target_note, smaller.loading_note, left_out_sentence(writer.left_out)]


def make(shape: ModelShape, targets: Mapping[Step, Path], context: Context, _: Any, emit: Emit) -> None:
    """Make every smaller model of one pass, each in its folder; ``emit`` gets a result or an error. No calibration text is read.

    Raises ModelError without a dense model or a text.
    """
    if context.dense is None or context.training_tokens is None:
        raise ModelError("shrink: gates needs the dense model and a source of text", "use it in a manifest")
    parent, dense = shape.checkpoint, Checkpoint(context.dense)
    for step, folder in targets.items():
        with failing_alone(step, emit):
            check_vocabulary(step, parent, dense)
            plan = GatePlan(shape, step, context.seed)
            # Refuse before the training what could not be written after it.
            first = {axis: [*range(count)] for axis, count in plan.remaining.items()}
            cut_model.complete_and_lay_out(plan.smaller(first), context.family)
            training = GateTraining(dense, parent, step, context, plan.begin, plan=plan)
            emit(step, training.run(folder))
