"""Remove hidden channels, the same ones everywhere: score them, find how many stay, and write the smaller model.

With x_j what a matrix of a block reads in channel j:

    l1, l2      Σ|w|, or √Σw², over all that would go, embeddings and output head too, without biases and norms
    activation  Σ √(mean of x_j² over the tokens) over the inputs of each block's attention and feed-forward part, as
                Minitron ranks its embedding channels (Muralidharan et al. 2024): after the norm where it comes first
    taylor      Σ |Σ W_:j·∂L/∂W_:j| over the matrices W that read channel j, plus |Σ V_j:·∂L/∂V_j: + b_j·∂L/∂b_j| over all
                V that write it together, summed over batches: the score of a neuron, taken over all blocks
    random      drawn at random
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import lcm
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.models import residual
from sparsebench.models.axes import Axis, ModelShape
from sparsebench.models.axes import shape as shape_of
from sparsebench.models.building import temporary
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.replay import Block, Replay
from sparsebench.models.safety import told
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.evidence import counted
from sparsebench.steps.shrink import choosing, rescaling, scores, writing
from sparsebench.steps.shrink.whole import WholeModel

if TYPE_CHECKING:
    import torch

    from sparsebench.steps.calibration import Calibrated


def make(
    shape: ModelShape, targets: Mapping[Step, Path], context: Context, text: Calibrated | None, emit: Emit
) -> None:
    """Make every hidden size that is asked for of one model by one criterion; ``emit`` gets each result or error."""
    started = time.perf_counter()
    work = _ChannelPass(shape, context, text, next(iter(targets.values())).parent)
    made: dict[Step, list[str]] = {}
    for step, folder in targets.items():
        try:
            made[step] = _made(work, step, folder)
        except SparsebenchError as error:
            emit(step, error)
    seconds = time.perf_counter() - started
    for step, words in made.items():
        note, read = "; ".join(filter(None, words)), text.told() if text else None
        emit(step, counted(targets[step], context.family, seconds, len(made), note, read))


def _made(work: _ChannelPass, step: Step, folder: Path) -> list[str]:
    """Cut the model in equal parts, each scored on what the last one left; return the notes for its variant."""
    shape, hidden, cuts = work.shape, work.axis.units, int(step.settings["iterations"])
    count, each = staying(shape, work.axis, step), residual.multiple(shape)
    with temporary(folder.with_name(f"{folder.name}-cuts")) as scratch:
        for cut in range(1, cuts):
            part = hidden - round((hidden - count) * cut / cuts / each) * each
            work.cut(step, part, scratch / str(cut))
            work = work.after(scratch / str(cut))
            shutil.rmtree(scratch / str(cut - 1), ignore_errors=True)
        notes = work.cut(step, count, folder)
    left = shape_of(Checkpoint(folder), work.context.family).block_parameters / shape.block_parameters
    return [f"{count} of {hidden} hidden channels stay; {1 - left:.1%} of the blocks' parameters went", *notes]


def staying(shape: ModelShape, axis: Axis, step: Step) -> int:
    """Return how many channels stay, in multiples of what the step and transformers require.

    Raises UnsupportedError where hidden channels hold too few parameters or operations for the share.
    """
    own = step.settings
    share = own.get("keep")
    if share is None:
        key = "parameters" if "parameters" in own else "operations"
        inside = replace(axis, cuts=tuple(cut for cut in axis.cuts if shape.places[cut.tensor].layer is not None))
        cost, total = choosing.costs(shape, key, [inside])
        most = axis.units * cost[inside] / total
        share = 1 - (1 - own[key]) / most
        if share <= 0:
            raise UnsupportedError(
                f"{key}: {own[key]:g}: what reads or writes hidden channels is {most:.0%} of the blocks' {key}",
                f"a share above {1 - most:.2f}",
            )
    each = lcm(own["multiple_of"], residual.multiple(shape))
    return min(max(1, round(share * axis.units / each)) * each, axis.units)


@dataclass
class _ChannelPass:
    """A model whose channels go. After a first cut, Taylor's ``answers`` are still those drawn from the whole model.

    Hidden states that are too large for memory are files under ``spill``.
    """

    shape: ModelShape
    context: Context
    text: Calibrated | None
    spill: Path
    answers: scores.Answers = field(default_factory=dict)
    scored: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def axis(self) -> Axis:
        """The axis of hidden channels. Raises UnsupportedError, naming the model type or tensor, where none can go."""
        return residual.channels(self.shape, self.context.family)

    @cached_property
    def model(self) -> WholeModel:
        """The whole model in memory, for Taylor's scores and for rescaling."""
        return WholeModel.load(self.shape.checkpoint.folder, self.context.family, self.batch, self.context.dtype)

    @property
    def batch(self) -> Any:
        assert self.text is not None, "the criterion reads text"
        return self.text.batch

    def after(self, folder: Path) -> _ChannelPass:
        """Return the pass for the model that a cut has written to ``folder``."""
        found = shape_of(Checkpoint(folder), self.context.family)
        return _ChannelPass(found, self.context, self.text, self.spill, self.answers)

    def scores(self, step: Step) -> torch.Tensor:
        """Return each channel's score, (channels,) float64; computed once for all settings that share it."""
        labels = step.settings.get("labels", "")
        if labels not in self.scored:
            self.scored[labels] = self._scores(step.name, labels)
        return self.scored[labels]

    def _scores(self, name: str, labels: str) -> torch.Tensor:
        axis, context = self.axis, self.context
        if name == "random":
            return scores.drawn([axis], context.seed)[axis]
        if name in ("l1", "l2"):
            ties = self.shape.checkpoint.ties
            once = replace(axis, cuts=tuple(cut for cut in axis.cuts if cut.tensor not in ties))
            return scores.norms(self.shape, [once], int(name[1]), context.progress)[once]
        if name == "taylor":
            matrices = tuple(cut for cut in axis.cuts if self.shape.places[cut.tensor].prunable)
            # A channel is scored as one neuron of all blocks at once: columns that read it, and rows that make it.
            neurons = replace(axis, kind="neurons", cuts=matrices)
            return scores.taylor(self.model, [neurons], labels, context.seed, context.progress, self.answers)[neurons]
        reading = _ChannelScorer(axis)
        replay = Replay(self.shape.checkpoint, context.family, self.batch, 1, self.spill, context.dtype)
        replay.run(reading.visit, context.progress)
        return reading.found

    def cut(self, step: Step, count: int, folder: Path) -> list[str]:
        """Write the model with the ``count`` channels that score highest; return the notes for its variant."""
        shape, checkpoint = self.shape, self.shape.checkpoint
        stay = choosing.best(self.scores(step), count)
        smaller = writing.Smaller(shape, {self.axis: stay}, config=residual.words(checkpoint.config, count))
        factors = residual.factors(shape, count)
        if step.settings["compensation"] == "rescale":
            norms = residual.norms(shape, self.axis)
            for name, factor in rescaling.factors(self.model, shape, norms, stay, self.context.progress).items():
                factors[name] = factors.get(name, 1.0) * factor
        said = {"family": self.context.family, "shrink": step.name, **step.settings, "seed": self.context.seed}
        with writing.opened(smaller, self.context.family, folder) as writer:
            residual.write_pooling(writer.partial, count)
            for name, factor in factors.items():
                tensor = smaller.cut(name, checkpoint.load(name))
                if shape.places[name].kind == "norm" and checkpoint.config["model_type"] in residual.ONE_MORE:
                    writer.write(name, ((tensor.double() + 1) * factor - 1).to(tensor.dtype))
                else:
                    writer.write(name, tensor * factor)
            writing.finish(smaller, writer, said | (self.text.told() if self.text else {}))
        return [smaller.loads, told(writer.left_out)]


class _ChannelScorer:
    """Scores by ``activation``: the root mean square of each channel in what the blocks read, summed."""

    def __init__(self, axis: Axis) -> None:
        import torch

        self.axis = axis
        self.found = torch.zeros(axis.units, dtype=torch.float64)

    def visit(self, block: Block) -> None:
        """Score one block of the replay; an input that several matrices read counts once."""
        names = [cut.tensor for _, cut in scores.outputs_in([self.axis], block)]
        seen = block.observe(0, gram=False, names=names)
        for inputs in {id(one): one for one in seen.values()}.values():
            self.found += (inputs.squares.double() / inputs.tokens).sqrt().cpu()
