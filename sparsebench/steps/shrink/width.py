"""Remove neurons, heads or experts: score them once for a pass, or anew after each cut, then compensate and write."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.safety import left_out_sentence
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.replay.blockwise import Block, Replay
from sparsebench.models.shape.axes import Axis, AxisKind, Cut, ModelShape, shape_of
from sparsebench.steps import cut_model
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Emit, Step, StepReport
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.shrink import choosing, compensation, labelled, scores
from sparsebench.steps.shrink.choosing import REAP, kinds_of
from sparsebench.steps.shrink.labelled import Labelled
from sparsebench.steps.shrink.named import NamedElements, read_named
from sparsebench.steps.shrink.settings import LABELLED, Taylor
from sparsebench.steps.shrink.whole import WholeModel


@dataclass(frozen=True)
class _Plan:
    """What one step asks for of a model: how many elements of each axis stay, and which elements its file names."""

    step: Step
    folder: Path
    numbers: Mapping[Axis, int]
    named: NamedElements | None = None


@dataclass
class _Draft:
    """One step's folder while it is written; ``error`` says why this step failed while others go on."""

    plan: _Plan
    smaller: cut_model.SmallerModel
    writer: CheckpointWriter
    unseen: int
    error: SparsebenchError | None = None


def make(
    shape: ModelShape, targets: Mapping[Step, Path], context: Context, text: Calibrated | None, emit: Emit
) -> None:
    """Make every width that is asked for of one model by one criterion; ``emit`` gets each result or error."""
    started = time.perf_counter()
    plans: list[_Plan] = []
    for step, folder in targets.items():
        with failing_alone(step, emit):
            plans.append(_plan(shape, step, folder))
    work = _WidthPass(shape, context, text, next(iter(targets.values())).parent)
    in_one_cut = [plan for plan in plans if plan.step.settings.iterations == 1]
    drafts = work.write_drafts(in_one_cut, emit) if in_one_cut else []
    seconds = time.perf_counter() - started
    for draft in drafts:
        with failing_alone(draft.plan.step, emit):
            emit(draft.plan.step, work.report(draft, seconds, len(drafts)))
    for plan in plans:
        if plan.step.settings.iterations > 1:
            started = time.perf_counter()
            with failing_alone(plan.step, emit):
                last = _last_draft(work, plan, emit)
                if last:
                    report = work.report(replace(last, plan=plan), time.perf_counter() - started, 1)
                    emit(plan.step, report)


def _plan(shape: ModelShape, step: Step, folder: Path) -> _Plan:
    named = read_named(step.settings.file, shape) if step.settings.file else None
    if step.name == "list":
        assert named is not None
        return _Plan(step, folder, {axis: len(units) for axis, units in named.kept_by_file(shape).items()}, named)
    remaining = choosing.remaining_counts(shape, step.settings)
    if named:
        named.check_counts(shape, remaining, bool(step.settings.uneven))
    if step.settings.compensation == "bias":
        compensation.missing_biases(shape, remaining)  # raises before the text runs through the model
    return _Plan(step, folder, remaining, named)


def _last_draft(work: _WidthPass, plan: _Plan, emit: Emit) -> _Draft | None:
    """Cut the model in equal parts, each scored on what the last one left. Return None where ``emit`` got an error."""
    shape, cuts = work.shape, plan.step.settings.iterations
    with temporary(plan.folder.with_name(f"{plan.folder.name}-cuts")) as scratch:
        for cut in range(1, cuts + 1):
            counts = choosing.counts_after_cut(shape, plan.numbers, cut, cuts, plan.step.settings.uneven)
            axis_now = dict(zip(shape.axes, work.shape.axes, strict=True))
            folder = plan.folder if cut == cuts else scratch / str(cut)
            numbers = {axis_now[axis]: count for axis, count in counts.items()}
            drafts = work.write_drafts([replace(plan, folder=folder, numbers=numbers)], emit)
            if not drafts or cut == cuts:
                return drafts[0] if drafts else None
            work = work.after(drafts[0].smaller, folder)
            shutil.rmtree(scratch / str(cut - 1), ignore_errors=True)
    return None


class ScoreKey(NamedTuple):
    """Steps of one criterion with the same key share its scores; only Taylor's and random ones have more than one.

    ``labels`` are the targets of Taylor's loss, ``even`` says whether widths stay even, ``document_settings`` are those
    of labelled documents. ``of`` is what goes at random.
    """

    labels: str = ""
    even: bool = True
    document_settings: tuple[Any, ...] = ()
    of: str = ""


def _score_key(step: Step) -> ScoreKey:
    if step.name == "random":
        return ScoreKey(of=step.settings.of)
    if step.name != "taylor":
        return ScoreKey()
    settings: Taylor = step.settings
    document_settings = tuple(getattr(settings, key) for key in LABELLED) if settings.by_labels() else ()
    return ScoreKey(settings.labels, not settings.uneven, document_settings)


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
    documents: dict[tuple[Any, ...], Labelled] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.shape.checkpoint.folder
        self.origin = self.origin or tuple(tuple(range(axis.units)) for axis in self.shape.axes)

    @property
    def batch(self) -> Any:
        assert self.text is not None, "the criterion reads text"
        return self.text.batch

    def after(self, smaller: cut_model.SmallerModel, folder: Path) -> _WidthPass:
        """Return the pass for the model that a cut has written to ``folder``."""
        kept_units = [smaller.kept.get(axis, range(axis.units)) for axis in self.shape.axes]
        origin = tuple(tuple(old[unit] for unit in units) for old, units in zip(self.origin, kept_units, strict=True))
        shape = shape_of(Checkpoint(folder), self.context.family)
        return _WidthPass(shape, self.context, self.text, self.spill, origin, self.answers, documents=self.documents)

    def write_drafts(self, plans: Sequence[_Plan], emit: Emit) -> list[_Draft]:
        """Write each step's smaller model into its folder. Steps that fail are left out; ``emit`` gets their errors."""
        scores_of = self.score_axes([plan.step for plan in plans], emit)
        drafts: list[_Draft] = []
        try:
            for plan in plans:
                key = _score_key(plan.step)
                if key in scores_of:
                    with failing_alone(plan.step, emit):
                        drafts.append(self.begin_draft(plan, scores_of[key]))
            self.compensate(drafts)
            for draft in drafts:
                step = draft.plan.step
                try:
                    if draft.error:
                        raise draft.error
                    provenance = step.provenance(self.context.family, self.context.seed)
                    cut_model.write_rest(draft.smaller, draft.writer, {**provenance, **self.provenance(step)})
                except SparsebenchError as error:
                    draft.error = error
                    draft.writer.abort()
                    emit(step, error)
        except BaseException:
            for draft in drafts:
                draft.writer.abort()
            raise
        return [draft for draft in drafts if not draft.error]

    def score_axes(self, steps: list[Step], emit: Emit) -> dict[ScoreKey, scores.Scores]:
        """Score every axis that a step may cut, for each key of scores. Where Taylor fails for one key, ``emit`` gets
        the error for its steps."""
        name, key = steps[0].name, _score_key(steps[0])
        if name == "list":
            return {key: {}}
        progress, seed = self.context.progress, self.context.seed
        if name == "random":  # a step draws the same scores whichever others are in its pass
            return {_score_key(step): scores.random_scores(self._axes([step]), seed) for step in steps}
        axes = self._axes(steps)
        if name == "l2":
            return {key: scores.l2_scores(self.shape, axes, progress)}
        if name == "taylor":
            return self._taylor(steps, axes, emit)
        if name == REAP:
            routing = scores.ReapScorer(axes)
            self.replay(1).run(routing.visit, progress)
            return {key: routing.result()}
        scorer = scores.ActivationScorer(name, axes)
        self.replay(1).run(scorer.visit, progress)
        self.means = scorer.means
        self.unseen = {key: len(scorer.unseen)}
        return {key: scorer.result()}

    def _axes(self, steps: Sequence[Step]) -> list[Axis]:
        """Return the axes of which the steps may remove elements."""
        kinds: set[AxisKind] = {kind for step in steps for kind in kinds_of(step.settings.of)}
        return [axis for axis in self.shape.axes if axis.kind in kinds]

    def _taylor(self, steps: list[Step], axes: list[Axis], emit: Emit) -> dict[ScoreKey, scores.Scores]:
        scores_of: dict[ScoreKey, scores.Scores] = {}
        models: dict[tuple[Any, ...], WholeModel] = {}
        progress, seed = self.context.progress, self.context.seed
        for key, step in {_score_key(step): step for step in steps}.items():
            try:
                if key.document_settings not in models:
                    models[key.document_settings] = self.load_whole(step)
                model = models[key.document_settings]
                scores_of[key] = scores.taylor(model, axes, key.labels, seed, progress, self.answers, key.even)
            except SparsebenchError as error:
                for failed in steps:
                    if _score_key(failed) == key:
                        emit(failed, error)
        for key, by_axis in scores_of.items():
            unseen = [axis for axis in axes if axis.expert.startswith("experts") and not by_axis[axis].any()]
            self.unseen[key] = len(unseen)
            scores_of[key] = by_axis | scores.l2_scores(self.shape, unseen)
        return scores_of

    def load_whole(self, step: Step) -> WholeModel:
        """Load the whole model, with the text on which a step is scored."""
        if not step.settings.by_labels():
            return WholeModel.load(self.folder, self.context.family, self.batch, self.context.dtype)
        documents = labelled.read_documents(self.folder, step, self.context)
        self.documents[_score_key(step).document_settings] = documents
        model = WholeModel.load(self.folder, self.context.family, documents.text.batch, self.context.dtype)
        return replace(model, classes=documents.classes)

    def report(self, draft: _Draft, seconds: float, sharing: int) -> StepReport:
        """Return the report of a step whose folder is written, in a pass of ``seconds`` that ``sharing`` steps shared."""
        plan = draft.plan
        remaining: dict[Axis, int] = {}
        for axis, last_axis in zip(self.shape.axes, draft.smaller.shape.axes, strict=True):
            if axis in plan.numbers:
                remaining[axis] = len(draft.smaller.kept.get(last_axis, range(last_axis.units)))
        unseen = f"{draft.unseen} experts that no token reached are scored by their weights" if draft.unseen else ""
        documents = self.documents.get(_score_key(plan.step).document_settings)
        labels = documents.note(plan.step) if documents else ""
        code = left_out_sentence(draft.writer.left_out)
        words = (choosing.cut_note(self.shape, remaining), labels, unseen, draft.smaller.loading_note, code)
        return step_report(
            plan.folder,
            self.context.family,
            seconds=seconds,
            sweep_size=sharing,
            note="; ".join(filter(None, words)),
            provenance=self.provenance(plan.step),
        )

    def provenance(self, step: Step) -> dict[str, Any]:
        """Return what is recorded about the text that a step read; empty where it read none."""
        documents = self.documents.get(_score_key(step).document_settings)
        text = documents.text if documents else self.text
        return text.provenance() if text else {}

    def replay(self, streams: int) -> Replay:
        """Return a replay that runs the text through the model block by block."""
        return Replay(self.shape.checkpoint, self.context.family, self.batch, streams, self.spill, self.context.dtype)

    def begin_draft(self, plan: _Plan, by_axis: scores.Scores) -> _Draft:
        """Choose what stays, and begin to write the folder."""
        kept_units = self.choose_units(plan, by_axis)
        smaller = cut_model.SmallerModel(self.shape, kept_units, config=choosing.changed_config(self.shape, kept_units))
        if plan.step.settings.compensation == "bias":
            switches, names = compensation.missing_biases(self.shape, kept_units)
            smaller.config |= switches
            smaller.add_biases(names)
        writer = cut_model.open_writer(smaller, self.context.family, plan.folder)
        return _Draft(plan, smaller, writer, self.unseen.get(_score_key(plan.step), 0))

    def choose_units(self, plan: _Plan, by_axis: scores.Scores) -> dict[Axis, list[int]]:
        """Return the elements of each axis that stay, in order."""
        if plan.step.name == "list":
            assert plan.named is not None
            return plan.named.kept_by_file(self.shape)
        if plan.named:
            by_axis = {
                axis: plan.named.override_scores(index, by_axis[axis], self.origin[index])
                for index, axis in enumerate(self.shape.axes)
                if axis in plan.numbers
            }
        if plan.step.settings.uneven:
            joint = plan.step.name == "flap"
            return choosing.best_across_blocks(plan.numbers, by_axis, self.shape.checkpoint.tensors, joint)
        groups = choosing.expert_groups(self.shape)
        return {
            axis: choosing.best_units(by_axis[axis], count, groups if axis.kind == "experts" else 1)
            for axis, count in plan.numbers.items()
        }

    def compensate(self, drafts: list[_Draft]) -> None:
        """Write the biases and the refitted output matrices that compensate for what went."""
        for draft in drafts:
            if draft.plan.step.settings.compensation == "bias":
                self._write_biases(draft)
        refitted = [draft for draft in drafts if draft.plan.step.settings.compensation == "least_squares"]
        try:
            if refitted:
                self.replay(len(refitted)).run(_refitting(refitted), self.context.progress)
        except SparsebenchError as error:
            for draft in refitted:
                draft.error = draft.error or error

    def _write_biases(self, draft: _Draft) -> None:
        checkpoint = self.shape.checkpoint
        for axis in draft.smaller.kept:
            for cut in axis.outputs:
                weights = draft.smaller.shape.view(cut).to_matrix(checkpoint.load(cut.tensor))
                index = torch.nonzero(~draft.smaller.removed_entries(axis, cut, weights.shape[1])).flatten()
                added = compensation.mean_output(weights, self.means[cut.tensor], index)
                name = cut.tensor.removesuffix("weight") + "bias"
                old = checkpoint.load(name).float() if name in checkpoint.tensors else 0
                draft.writer.write(name, (added + old).to(weights.dtype))


def _refitting(drafts: list[_Draft]) -> Callable[[Block], None]:
    """Return a visitor that refits a block's output matrices, each version on the outputs of its own smaller blocks."""

    def visit(block: Block) -> None:
        for stream, draft in enumerate(drafts):
            if draft.error:
                continue
            outputs = scores.output_cuts(draft.smaller.kept, block)
            changed: dict[str, torch.Tensor] = {}
            fitted: dict[Cut, torch.Tensor] = {}
            try:
                for portion in block.portions(gram=True):
                    portion_cuts = [(axis, cut) for axis, cut in outputs if cut.name in portion]
                    names = [cut.name for _, cut in portion_cuts]
                    inputs = block.observe(stream, gram=True, only_inputs=True, names=names) if names else {}
                    for axis, cut in portion_cuts:
                        fitted[cut], changed[cut.name] = _refitted(block, draft, axis, cut, inputs[cut.name].gram)
                for name in dict.fromkeys(cut.tensor for cut in fitted):
                    slices = {cut.expert or 0: matrix for cut, matrix in fitted.items() if cut.tensor == name}
                    parts = [slices[expert] for expert in sorted(slices)]
                    draft.writer.write(name, torch.stack(parts) if draft.smaller.by_expert(name) else parts[0])
                block.advance(stream, changed)
            except ModelError as error:  # its own weights may have made its activations infinite
                draft.error = error
                block.drop(stream)

    return visit


def _refitted(
    block: Block, draft: _Draft, axis: Axis, cut: Cut, gram: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refit an output matrix. Return the columns that stay, as they are stored, and the matrix with zeros in place of
    the others, with which the replay goes on."""
    assert gram is not None
    weights, view = block.matrix(cut.name), draft.smaller.shape.view(cut)
    index = torch.nonzero(~draft.smaller.removed_entries(axis, cut, weights.shape[1])).flatten()
    refitted = compensation.refit(weights, gram, index, cut.name).to(weights.dtype)
    padded = weights.new_zeros(weights.shape)
    padded[:, index] = refitted
    return view.to_stored(refitted), view.to_stored(padded)
