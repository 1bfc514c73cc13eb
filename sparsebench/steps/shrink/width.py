"""Neurons and heads that go: scored once for all settings of a pass, cut evenly over the blocks, compensated, written."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.models.axes import Axis, Cut, Kind, Shape
from sparsebench.models.replay import Block, Replay
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.evidence import counted
from sparsebench.steps.shrink import choosing, compensation, scores, writing
from sparsebench.steps.shrink.choosing import Cutting, kinds_of
from sparsebench.steps.shrink.whole import Whole

if TYPE_CHECKING:
    import torch

    from sparsebench.models.checkpoint import CheckpointWriter
    from sparsebench.steps.calibration import Calibrated


@dataclass
class _Making:
    """One step's folder while it is written, or why it failed alone."""

    step: Step
    smaller: writing.Smaller
    writer: CheckpointWriter
    error: SparsebenchError | None = None

    @property
    def compensation(self) -> str:
        return str(self.step.settings["compensation"])


def make(shape: Shape, targets: Mapping[Step, Path], context: Context, text: Calibrated | None, emit: Emit) -> None:
    """Every width that is asked for of one model, by one criterion; a setting that fails is told by ``emit``."""
    started = time.perf_counter()
    chosen: dict[Step, dict[Axis, int]] = {}
    for step in targets:
        try:
            if step.settings.get("labels") == "text" and context.family == "encoder":
                raise UnsupportedError("labels: text: an encoder predicts no next token of a text", "`labels: own`")
            chosen[step] = choosing.numbers(shape, cutting(step))
        except SparsebenchError as error:
            emit(step, error)
    if not chosen:
        return
    work = _Work(shape, context, text)
    found = work.score(list(chosen))
    making: list[_Making] = []
    try:
        for step, numbers in chosen.items():
            try:
                making.append(work.open(step, numbers, found[_labels(step)], targets[step]))
            except SparsebenchError as error:
                emit(step, error)
        work.compensate(making)
        for one in making:
            if one.error:
                one.writer.abort()
                continue
            settings = {"family": context.family, "shrink": one.step.name, **one.step.settings}
            writing.finish(one.smaller, one.writer, {**settings, "seed": context.seed, **(text.told() if text else {})})
    except BaseException:
        for one in making:
            one.writer.abort()
        raise
    seconds = time.perf_counter() - started
    for one in making:
        if one.error:
            emit(one.step, one.error)
            continue
        note = "; ".join(part for part in (choosing.told(shape, one.smaller.kept), _left_out(one.writer)) if part)
        made = text.told() if text else None
        emit(one.step, counted(targets[one.step], context.family, seconds, len(making), note, made))


def cutting(step: Step) -> Cutting:
    """What a step asks for."""
    own = step.settings
    return Cutting(own["of"], own.get("parameters"), own.get("keep"), own.get("multiple_of", 1))


def _labels(step: Step) -> str:
    """What two steps of one criterion must share to share its scores."""
    return str(step.settings.get("labels", ""))


def _left_out(writer: CheckpointWriter) -> str:
    from sparsebench.models.safety import told

    return told(writer.left_out)


class _Work:
    """What the settings of a pass share."""

    def __init__(self, shape: Shape, context: Context, text: Calibrated | None) -> None:
        self.shape, self.context, self.text = shape, context, text
        self.means: dict[str, torch.Tensor] = {}
        self.folder = shape.checkpoint.folder

    @property
    def batch(self) -> Any:
        assert self.text is not None, "the criterion reads text"
        return self.text.batch

    def score(self, steps: list[Step]) -> dict[str, scores.Scores]:
        """Every axis that a step may cut, by the labels that a step asks for."""
        name = steps[0].name
        kinds: set[Kind] = {kind for step in steps for kind in kinds_of(step.settings["of"])}
        axes = [axis for axis in self.shape.axes if axis.kind in kinds]
        progress, seed = self.context.progress, self.context.seed
        if name in ("l1", "l2"):
            return {"": scores.norms(self.shape, axes, int(name[1]), progress)}
        if name == "random":
            return {"": scores.drawn(axes, seed)}
        if name == "taylor":
            model = Whole.load(self.folder, self.context.family, self.batch, self.context.dtype)
            return {
                labels: scores.taylor(model, axes, labels, seed, progress)
                for labels in dict.fromkeys(_labels(step) for step in steps)
            }
        reading = scores.Reading(name, axes)
        self.replay(1).run(reading.visit, progress)
        self.means = reading.means
        return {"": reading.result()}

    def replay(self, streams: int) -> Replay:
        """The text through the model block by block."""
        folder = self.folder.parent if streams > 1 else None
        return Replay(
            self.shape.checkpoint, self.context.family, self.batch, streams, spill=folder, dtype=self.context.dtype
        )

    def open(self, step: Step, numbers: Mapping[Axis, int], found: scores.Scores, folder: Path) -> _Making:
        """Choose what stays, and begin the folder."""
        kept = {axis: choosing.best(found[axis], count) for axis, count in numbers.items()}
        smaller = writing.Smaller(self.shape, kept, config=choosing.config_of(self.shape, kept))
        if step.settings["compensation"] == "bias":
            switches, names = compensation.biases(self.shape, kept)
            smaller.config |= switches
            smaller.add_biases(names)
        return _Making(step, smaller, writing.opened(smaller, self.context.family, folder))

    def compensate(self, making: list[_Making]) -> None:
        """Write the output matrices and biases that make up for what went."""
        for one in making:
            if one.compensation == "bias":
                self._biases(one)
        refitted = [one for one in making if one.compensation == "least_squares"]
        if refitted:
            self.replay(len(refitted)).run(_refitting(refitted), self.context.progress)

    def _biases(self, one: _Making) -> None:
        checkpoint = self.shape.checkpoint
        for axis, stay in one.smaller.kept.items():
            for cut in axis.outputs:
                weights = one.smaller.view(cut.tensor).shaped(checkpoint.load(cut.tensor))
                index = compensation.columns(axis, cut, stay, weights.shape[1])
                added = compensation.mean_output(weights, self.means[cut.tensor], index)
                name = cut.tensor.removesuffix("weight") + "bias"
                old = checkpoint.load(name).float() if name in checkpoint.tensors else 0
                one.writer.write(name, (added + old).to(weights.dtype))


def _refitting(making: list[_Making]) -> Callable[[Block], None]:
    """A visit that refits a block's output matrices: each version on what its own, smaller, blocks before it give."""

    def visit(block: Block) -> None:
        for stream, one in enumerate(making):
            if one.error:
                block.advance(stream, {})
                continue
            outputs = scores.outputs_in(one.smaller.kept, block)
            try:
                found = block.observe(stream, gram=True, only_inputs=True, names=[cut.tensor for _, cut in outputs])
                changed = {
                    cut.tensor: _refitted(block, one, axis, cut, found[cut.tensor].gram) for axis, cut in outputs
                }
            except ModelError as error:
                one.error, changed = error, {}
            block.advance(stream, changed)

    return visit


def _refitted(block: Block, one: _Making, axis: Axis, cut: Cut, gram: torch.Tensor | None) -> torch.Tensor:
    """Write what is left of an output matrix; that, with zeros in place of what went, as the next blocks are to read it."""
    assert gram is not None
    weights, view = block.matrix(cut.tensor), one.smaller.view(cut.tensor)
    index = compensation.columns(axis, cut, one.smaller.kept[axis], weights.shape[1])
    new = compensation.refit(weights, gram, index, cut.tensor, one.step.settings["damping"]).to(weights.dtype)
    one.writer.write(cut.tensor, view.stored(new))
    whole = weights.new_zeros(weights.shape)
    whole[:, index] = new
    return view.stored(whole)
