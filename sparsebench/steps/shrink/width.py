"""Remove neurons, heads or experts: score them once for a pass, or anew after each cut, then compensate and write."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.safety import left_out_note
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.axes import Axis, AxisKind, Cut, ModelShape
from sparsebench.models.shape.axes import shape as shape_of
from sparsebench.steps import cut_model
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.counting import counted
from sparsebench.steps.shrink import choosing, compensation, labelled, scores
from sparsebench.steps.shrink.choosing import REAP, Cutting, kinds_of
from sparsebench.steps.shrink.labelled import Labelled
from sparsebench.steps.shrink.named import NamedElements, read
from sparsebench.steps.shrink.settings import LABELLED, Taylor
from sparsebench.steps.shrink.whole import WholeModel

if TYPE_CHECKING:
    import torch

    from sparsebench.models.files.writing import CheckpointWriter
    from sparsebench.steps.calibration import Calibrated


@dataclass(frozen=True)
class _Plan:
    """What one step asks for of a model: how many elements of each axis stay, and which elements its file names."""

    step: Step
    numbers: Mapping[Axis, int]
    named: NamedElements | None = None

    @property
    def uneven(self) -> bool:
        return bool(getattr(self.step.settings, "uneven", False))


@dataclass
class _Making:
    """One step's folder while it is written; ``error`` says why this step failed while others go on."""

    step: Step
    smaller: cut_model.Smaller
    writer: CheckpointWriter
    unseen: int
    error: SparsebenchError | None = None

    @property
    def compensation(self) -> str:
        return str(self.step.settings.compensation)


def make(
    shape: ModelShape, targets: Mapping[Step, Path], context: Context, text: Calibrated | None, emit: Emit
) -> None:
    """Make every width that is asked for of one model by one criterion; ``emit`` gets each result or error."""
    started = time.perf_counter()
    plans: list[_Plan] = []
    for step in targets:
        try:
            plans.append(_plan(shape, step))
        except SparsebenchError as error:
            emit(step, error)
    work = _WidthPass(shape, context, text, next(iter(targets.values())).parent)

    def tell(plan: _Plan, made: _Making, seconds: float, sharing: int) -> None:
        stay = (len(made.smaller.kept.get(axis, range(axis.units))) for axis in made.smaller.shape.axes)
        left = {axis: count for axis, count in zip(shape.axes, stay, strict=True) if axis in plan.numbers}
        unseen = f"{made.unseen} experts that no token reached are scored by their weights" if made.unseen else ""
        documents = work.documents.get(_scored(plan.step))
        by = documents.note(plan.step) if documents else ""
        words = (choosing.told(shape, left), by, unseen, made.smaller.loads, left_out_note(made.writer.left_out))
        note = "; ".join(part for part in words if part)
        emit(
            plan.step, counted(targets[plan.step], context.family, seconds, sharing, note, work.told(plan.step) or None)
        )

    at_once = [plan for plan in plans if _cuts(plan.step) == 1]
    made = work.cut({plan.step: (plan, targets[plan.step]) for plan in at_once}, emit) if at_once else {}
    seconds = time.perf_counter() - started
    for plan in at_once:
        if plan.step in made:
            tell(plan, made[plan.step], seconds, len(made))
    for plan in plans:
        if _cuts(plan.step) > 1:
            started = time.perf_counter()
            try:
                last = _in_turn(work, plan, targets[plan.step], emit)
            except SparsebenchError as error:
                emit(plan.step, error)
                continue
            if last:
                tell(plan, last, time.perf_counter() - started, 1)


def _plan(shape: ModelShape, step: Step) -> _Plan:
    named = read(step.settings.file, shape) if step.settings.file else None
    if step.name == "list":
        assert named is not None
        return _Plan(step, {axis: len(stay) for axis, stay in named.exactly(shape).items()}, named)
    left = choosing.numbers(shape, cutting(step))
    if named:
        named.check(shape, left, bool(step.settings.uneven))
    if step.settings.compensation == "bias":
        compensation.biases(shape, left)  # raises before the text runs through the model
    return _Plan(step, left, named)


def _in_turn(work: _WidthPass, plan: _Plan, folder: Path, emit: Emit) -> _Making | None:
    """Cut the model in equal parts, each scored on what the last one left. Return None where ``emit`` got an error."""
    whole, cuts, last = work.shape, _cuts(plan.step), None
    with temporary(folder.with_name(f"{folder.name}-cuts")) as scratch:
        for cut in range(1, cuts + 1):
            wanted = choosing.part_way(whole, plan.numbers, cut, cuts, plan.uneven)
            now = dict(zip(whole.axes, work.shape.axes, strict=True))
            part = _Plan(plan.step, {now[axis]: count for axis, count in wanted.items()}, plan.named)
            out = folder if cut == cuts else scratch / str(cut)
            last = work.cut({plan.step: (part, out)}, emit).get(plan.step)
            if last is None:
                break
            if cut < cuts:
                work = work.after(last.smaller, out)
                shutil.rmtree(scratch / str(cut - 1), ignore_errors=True)
    return last


def cutting(step: Step) -> Cutting:
    """Return what a step's settings ask for."""
    own = step.settings
    targets = {key: getattr(own, key, None) for key in ("parameters", "keep", "neurons", "heads", "experts")}
    return Cutting(own.of, **targets, multiple_of=getattr(own, "multiple_of", 1), uneven=own.uneven)


def _cuts(step: Step) -> int:
    return int(getattr(step.settings, "iterations", 1))


ScoreKey = tuple[str, bool, tuple[Any, ...]]
"""Steps of one criterion with the same key share its scores: Taylor's labels, whether widths stay even, and the
settings of labelled documents."""


def _scored(step: Step) -> ScoreKey:
    if step.name != "taylor":
        return "", True, ()
    own: Taylor = step.settings
    documents = tuple(getattr(own, key) for key in LABELLED) if own.by_labels() else ()
    return own.labels, not own.uneven, documents


@dataclass
class _WidthPass:
    """What the steps of a pass share. ``origin`` has, by axis, each element's number in the model before any cut.

    Hidden states that are too large for memory are files under ``spill``.
    """

    shape: ModelShape
    context: Context
    text: Calibrated | None
    spill: Path
    origin: tuple[tuple[int, ...], ...] = ()
    answers: scores.Answers = field(default_factory=dict)
    means: dict[str, torch.Tensor] = field(default_factory=dict)
    unseen: dict[ScoreKey, int] = field(default_factory=dict)
    documents: dict[ScoreKey, Labelled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.shape.checkpoint.folder
        self.origin = self.origin or tuple(tuple(range(axis.units)) for axis in self.shape.axes)

    @property
    def batch(self) -> Any:
        assert self.text is not None, "the criterion reads text"
        return self.text.batch

    def after(self, smaller: cut_model.Smaller, folder: Path) -> _WidthPass:
        """Return the pass for the model that a cut has written to ``folder``."""
        kept = [smaller.kept.get(axis, range(axis.units)) for axis in self.shape.axes]
        origin = tuple(tuple(own[unit] for unit in stay) for own, stay in zip(self.origin, kept, strict=True))
        found = shape_of(Checkpoint(folder), self.context.family)
        return _WidthPass(found, self.context, self.text, self.spill, origin, self.answers, documents=self.documents)

    def cut(self, wanted: Mapping[Step, tuple[_Plan, Path]], emit: Emit) -> dict[Step, _Making]:
        """Write each step's smaller model into its folder. Steps that fail are left out; ``emit`` gets their errors."""
        found = self.score(list(wanted), emit)
        making: list[_Making] = []
        try:
            for step, (plan, folder) in wanted.items():
                if _scored(step) in found:
                    try:
                        making.append(self.open(plan, found[_scored(step)], folder))
                    except SparsebenchError as error:
                        emit(step, error)
            self.compensate(making)
            for one in making:
                said = {"family": self.context.family, "shrink": one.step.name, **one.step.settings.record()}
                said |= {"seed": self.context.seed, **self.told(one.step)}
                try:
                    if one.error:
                        raise one.error
                    cut_model.finish(one.smaller, one.writer, said)
                except SparsebenchError as error:
                    one.error = error
                    one.writer.abort()
                    emit(one.step, error)
        except BaseException:
            for one in making:
                one.writer.abort()
            raise
        return {one.step: one for one in making if not one.error}

    def score(self, steps: list[Step], emit: Emit) -> dict[ScoreKey, scores.Scores]:
        """Score every axis that a step may cut, for each key of scores. Where Taylor fails for one key, ``emit`` gets
        the error for its steps."""
        name = steps[0].name
        if name == "list":
            return {_scored(steps[0]): {}}
        kinds: set[AxisKind] = {kind for step in steps for kind in kinds_of(step.settings.of)}
        axes = [axis for axis in self.shape.axes if axis.kind in kinds]
        progress, seed = self.context.progress, self.context.seed
        if name == "l2":
            return {_scored(steps[0]): scores.norms(self.shape, axes, progress)}
        if name == "random":
            return {_scored(steps[0]): scores.drawn(axes, seed)}
        if name == "taylor":
            found: dict[ScoreKey, scores.Scores] = {}
            models: dict[tuple[Any, ...], WholeModel] = {}
            for step in {_scored(step): step for step in steps}.values():
                labels, even, documents = asked = _scored(step)
                try:
                    if documents not in models:
                        models[documents] = self.whole(step)
                    found[asked] = scores.taylor(models[documents], axes, labels, seed, progress, self.answers, even)
                except SparsebenchError as error:
                    for one in steps:
                        if _scored(one) == asked:
                            emit(one, error)
            experts = [axis for axis in axes if axis.within.startswith("experts")]
            for asked, own in found.items():
                unseen = [axis for axis in experts if not own[axis].any()]
                self.unseen[asked] = len(unseen)
                found[asked] = own | scores.norms(self.shape, unseen)
            return found
        if name == REAP:
            routing = scores.Routing(axes)
            self.replay(1).run(routing.visit, progress)
            return {_scored(steps[0]): routing.result()}
        reading = scores.ActivationScorer(name, axes)
        self.replay(1).run(reading.visit, progress)
        self.means, self.unseen = reading.means, {_scored(steps[0]): len(reading.unseen)}
        return {_scored(steps[0]): reading.result()}

    def whole(self, step: Step) -> WholeModel:
        """Load the whole model, with the text on which a step is scored."""
        if not step.settings.by_labels():
            return WholeModel.load(self.folder, self.context.family, self.batch, self.context.dtype)
        documents = self.documents[_scored(step)] = labelled.read(self.folder, step, self.context)
        model = WholeModel.load(self.folder, self.context.family, documents.text.batch, self.context.dtype)
        return replace(model, classes=documents.classes)

    def told(self, step: Step) -> dict[str, Any]:
        """Return what is recorded about the text that a step read; empty where it read none."""
        read = self.text or (self.documents[_scored(step)].text if _scored(step) in self.documents else None)
        return read.told() if read else {}

    def replay(self, streams: int) -> Replay:
        """Return a replay that runs the text through the model block by block."""
        return Replay(self.shape.checkpoint, self.context.family, self.batch, streams, self.spill, self.context.dtype)

    def open(self, plan: _Plan, found: scores.Scores, folder: Path) -> _Making:
        """Choose what stays, and begin to write the folder."""
        step = plan.step
        kept = self.kept(plan, found)
        smaller = cut_model.Smaller(self.shape, kept, config=choosing.config_of(self.shape, kept))
        if step.settings.compensation == "bias":
            switches, names = compensation.biases(self.shape, kept)
            smaller.config |= switches
            smaller.add_biases(names)
        return _Making(
            step, smaller, cut_model.opened(smaller, self.context.family, folder), self.unseen.get(_scored(step), 0)
        )

    def kept(self, plan: _Plan, found: scores.Scores) -> dict[Axis, list[int]]:
        """Return the elements of each axis that stay, in order."""
        if plan.step.name == "list":
            assert plan.named is not None
            return plan.named.exactly(self.shape)
        own = {axis: found[axis] for axis in plan.numbers}
        if plan.named:
            places = {axis: place for place, axis in enumerate(self.shape.axes)}
            own = {axis: plan.named.over(places[axis], one, self.origin[places[axis]]) for axis, one in own.items()}
        if plan.uneven:
            joint = plan.step.name == "flap"
            return choosing.spread(plan.numbers, own, self.shape.checkpoint.tensors, joint)
        groups = choosing.expert_groups(self.shape)
        return {
            axis: choosing.best(own[axis], count, groups if axis.kind == "experts" else 1)
            for axis, count in plan.numbers.items()
        }

    def compensate(self, making: list[_Making]) -> None:
        """Write the biases and the refitted output matrices that compensate for what went."""
        for one in making:
            if one.compensation == "bias":
                self._biases(one)
        refitted = [one for one in making if one.compensation == "least_squares"]
        try:
            if refitted:
                self.replay(len(refitted)).run(_refitting(refitted), self.context.progress)
        except SparsebenchError as error:
            for one in refitted:
                one.error = one.error or error

    def _biases(self, one: _Making) -> None:
        checkpoint = self.shape.checkpoint
        for axis, stay in one.smaller.kept.items():
            for cut in axis.outputs:
                weights = one.smaller.view(cut).shaped(checkpoint.load(cut.tensor))
                index = compensation.columns(axis, cut, stay, weights.shape[1])
                added = compensation.mean_output(weights, self.means[cut.tensor], index)
                name = cut.tensor.removesuffix("weight") + "bias"
                old = checkpoint.load(name).float() if name in checkpoint.tensors else 0
                one.writer.write(name, (added + old).to(weights.dtype))


def _refitting(making: list[_Making]) -> Callable[[Block], None]:
    """Return a visitor that refits a block's output matrices, each version on the outputs of its own smaller blocks."""
    import torch

    def visit(block: Block) -> None:
        for stream, one in enumerate(making):
            if one.error:
                continue
            outputs = scores.outputs_in(one.smaller.kept, block)
            changed: dict[str, torch.Tensor] = {}
            fitted: dict[Cut, torch.Tensor] = {}
            try:
                for portion in block.portions(gram=True):
                    here = [(axis, cut) for axis, cut in outputs if cut.name in portion]
                    names = [cut.name for _, cut in here]
                    found = block.observe(stream, gram=True, only_inputs=True, names=names) if names else {}
                    for axis, cut in here:
                        fitted[cut], changed[cut.name] = _refitted(block, one, axis, cut, found[cut.name].gram)
                for name in dict.fromkeys(cut.tensor for cut in fitted):
                    slices = {cut.expert or 0: made for cut, made in fitted.items() if cut.tensor == name}
                    parts = [slices[expert] for expert in sorted(slices)]
                    one.writer.write(name, torch.stack(parts) if one.smaller.by_expert(name) else parts[0])
                block.advance(stream, changed)
            except ModelError as error:  # its own weights may have made its activations infinite
                one.error = error
                block.drop(stream)

    return visit


def _refitted(
    block: Block, one: _Making, axis: Axis, cut: Cut, gram: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refit an output matrix. Return the columns that stay, as they are stored, and the matrix with zeros in place of
    the others, with which the replay goes on."""
    assert gram is not None
    weights, view = block.matrix(cut.name), one.smaller.view(cut)
    index = compensation.columns(axis, cut, one.smaller.kept[axis], weights.shape[1])
    new = compensation.refit(weights, gram, index, cut.name).to(weights.dtype)
    whole = weights.new_zeros(weights.shape)
    whole[:, index] = new
    return view.stored(new), view.stored(whole)
