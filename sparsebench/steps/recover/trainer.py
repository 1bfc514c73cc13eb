"""The loop that trains a whole model: AdamW in float32, warm-up and decay, clipped gradients, the mask held at every step.

Accelerate manages the device. Every random choice is a function of the seed and the step's number, and dropout stays
off. So weights, optimizer, schedule and step number are all that resuming needs, and a resumed training ends in the
same weights, on one machine's CPU bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import get_linear_schedule_with_warmup

from sparsebench import energy, heap
from sparsebench.errors import ModelError
from sparsebench.steps.contract import Context, Point, Step
from sparsebench.steps.recover.resume import ResumeFolder
from sparsebench.steps.recover.weights import TrainedWeights
from sparsebench.units import duration

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sparsebench.steps.recover.reading import TrainingText

CHECKPOINT_SECONDS = 300.0
STATE = "training.safetensors"

Loss = Callable[[Sequence[int], int], torch.Tensor]
"""Takes the samples that run together and the step's number (-1: an evaluation); returns their mean loss."""


class Pruning:
    """Hooks for pruning during the training; these do nothing. Steps are counted from 0."""

    def before_gradients(self, step: int) -> None:
        """Called before a step's gradients are computed."""

    def before_update(self, step: int) -> None:
        """Called after gradients are clipped, before the optimizer's step."""

    def after_update(self, step: int) -> None:
        """Called after the optimizer's step."""

    @contextmanager
    def as_written(self, step: int) -> Iterator[bool]:
        """Give the weights that would be written after ``step`` steps, to evaluate them; yield if their sparsity is final."""
        yield True

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors that a resumed training must restore."""
        return []


Pruner = Callable[[TrainedWeights, Any, int], Pruning]
"""Takes the weights, their optimizer and the number of steps; returns the hooks that prune during the training."""


@dataclass
class State:
    """The progress of a training, in the end its result.

    ``number`` counts the steps done, ``losses`` are those since the curve's last point. ``best`` is the lowest held-out
    loss, ``weights`` are its tensors as they are stored (none where the first weights are best). ``prepared`` are the
    seconds before the first step. ``joules`` are None where a part of the training was not counted.
    """

    number: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    curve: list[Point] = field(default_factory=list)
    best: float = float("inf")
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    prepared: float = 0.0
    joules: float | None = 0.0


@dataclass
class Trainer:
    """The training of ``weights`` by ``loss`` on the samples of ``text`` except the last ``held_samples``.

    ``plan`` has the samples of each optimizer step. ``arithmetic`` is the precision of matrix products, ``extra`` are
    parameters that only the loss has. ``resume_folder`` is the one from which a killed training is resumed, if any, and
    ``identity`` is all that decides the result: a state with another one is not this training's.
    """

    weights: TrainedWeights
    loss: Loss
    text: TrainingText
    held_samples: int
    plan: list[list[int]]
    step: Step
    context: Context
    accelerator: Accelerator
    arithmetic: str
    extra: list[nn.Parameter] = field(default_factory=list)
    resume_folder: ResumeFolder | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    pruner: Pruner | None = None
    """Makes the hooks that prune during the training, if any."""
    preparation_seconds: float = 0.0
    """Seconds spent before the training, such as on the teachers' outputs."""
    total_joules: Callable[[], float | None] = lambda: None
    """Returns the joules since that preparation began; None without a counter."""

    def __post_init__(self) -> None:
        settings, steps = self.step.settings, len(self.plan)
        self.counts = self.text.counts()
        self.leaves = [*self.weights.leaves, *self.extra]
        optimizer = torch.optim.AdamW(self.leaves, lr=settings.rate, weight_decay=settings.weight_decay)
        self.scheduler = get_linear_schedule_with_warmup(optimizer, round(settings.warm_up * steps), steps)
        self.optimizer: Any = self.accelerator.prepare(optimizer)
        self.pruning = self.pruner(self.weights, self.optimizer, steps) if self.pruner else Pruning()

    @heap.kept_for_reuse()
    def run(self) -> State:
        """Train, or resume a killed training. The seconds of the result include the preparation.

        Raises ModelError where the loss is not finite, on held-out text too.
        """
        steps, evaluations = len(self.plan), self.step.settings.evaluations
        evaluated_steps = {round(steps * number / evaluations) for number in range(evaluations + 1)}
        tokens_read = [*accumulate(map(self._tokens, self.plan), initial=0)]
        state = self._restore()
        began, earlier_joules = time.perf_counter() - state.seconds, state.joules
        state.prepared += self.preparation_seconds
        last_saved = time.perf_counter()
        while True:
            if state.number in evaluated_steps and (not state.curve or state.curve[-1].step != state.number):
                with self.pruning.as_written(state.number) as is_final:
                    self._evaluate(state, tokens_read[state.number], is_final)
            if state.number == steps:
                break
            self._step(state, self.plan[state.number])
            state.seconds = time.perf_counter() - began
            self._report_progress(state)
            if self.resume_folder and time.perf_counter() - last_saved >= CHECKPOINT_SECONDS:
                state.joules = energy.joules_in_all(earlier_joules, self.total_joules())
                self._save(state, self.resume_folder)
                last_saved = time.perf_counter()
        state.seconds = time.perf_counter() - began + state.prepared
        state.joules = energy.joules_in_all(earlier_joules, self.total_joules())
        return state

    def _tokens(self, rows: Iterable[int]) -> int:
        return sum(self.counts[row] for row in rows)

    def _step(self, state: State, rows: list[int]) -> None:
        """Take one optimizer step over a batch in groups. Raises ModelError where the loss is not finite."""
        self.pruning.before_gradients(state.number)
        self.optimizer.zero_grad()
        total_loss = 0.0
        for group in self.text.groups(rows):
            share = self._tokens(group) / self._tokens(rows)
            with self._precision():
                loss = self.loss(group, state.number) * share
            self.accelerator.backward(loss)
            total_loss += float(loss.detach())
        self._check_loss(total_loss, f"the loss is {total_loss} at step {state.number}")
        self.weights.mask_gradients()
        self.accelerator.clip_grad_norm_(self.leaves, self.step.settings.clip)
        self.pruning.before_update(state.number)
        self.optimizer.step()
        state.losses.append(total_loss)
        self.pruning.after_update(state.number)
        self.scheduler.step()
        state.number += 1

    def _check_loss(self, loss: float, problem: str) -> None:
        if not loss < float("inf"):
            raise ModelError(f"{self.step.verb}: {self.step.name}: {problem}", "a lower `rate`, such as 5e-5")

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.arithmetic == "bfloat16")

    def _evaluate(self, state: State, tokens: int, is_final: bool) -> None:
        """Measure the held-out loss, add a point to the curve, and keep the weights if they are the best so far.

        Only weights at the final sparsity (``is_final``) can be kept. Those before the first step count too: training may
        not help. Raises ModelError where the loss is not finite.
        """
        rows = range(self.text.samples - self.held_samples, self.text.samples)
        held_out = 0.0
        with torch.no_grad(), self._precision():
            for group in self.text.groups(rows):
                held_out += float(self.loss(group, -1)) * self._tokens(group) / self._tokens(rows)
        self._check_loss(held_out, f"the loss on held-out text is {held_out} after {state.number} steps")
        mean = sum(state.losses) / len(state.losses) if state.losses else None
        state.losses = []
        state.curve.append(Point(state.number, tokens, mean, held_out))
        if is_final and held_out < state.best:
            unchanged = state.number == 0 and self.pruner is None
            state.best, state.weights = held_out, {} if unchanged else self.weights.as_stored()

    def _report_progress(self, state: State) -> None:
        if self.context.progress is not None:
            steps = len(self.plan)
            time_left = state.seconds / state.number * (steps - state.number)
            self.context.progress(state.number, steps, f"loss {state.losses[-1]:.3f}, {duration(time_left)} left")

    def _save(self, state: State, folder: ResumeFolder) -> None:
        entry = {
            "leaves": self.leaves,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "gone": self.pruning.tensors(),
            **vars(state),
            "curve": [astuple(point) for point in state.curve],
        }
        folder.write(STATE, self.identity, entry)

    def _restore(self) -> State:
        """Return the state of the same training that a killed process saved, everything restored; else a new one."""
        saved = self.resume_folder.read(STATE, self.identity) if self.resume_folder else None
        if saved is None:
            return State()
        with torch.no_grad():
            for leaf, value in zip(self.leaves, saved.pop("leaves"), strict=True):
                leaf.copy_(value)
        self.optimizer.load_state_dict(saved.pop("optimizer"))
        self.scheduler.load_state_dict(saved.pop("scheduler"))
        for tensor, value in zip(self.pruning.tensors(), saved.pop("gone"), strict=True):
            tensor.copy_(value)
        return State(**{**saved, "curve": [Point(*point) for point in saved["curve"]]})
