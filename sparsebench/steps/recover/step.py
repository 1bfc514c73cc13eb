"""``recover`` as a step of a recipe: the pass that makes the recovered models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import dimensions
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.modules.skipping import experts_of, skips_weights
from sparsebench.steps.calibration import first
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.recover import whole
from sparsebench.steps.recover.reconstruct import Reconstruction
from sparsebench.steps.recover.settings import DENSE, TrainingSettings


def check_vocabulary(step: Step, checkpoint: Checkpoint, dense: Checkpoint) -> None:
    """Raise UnsupportedError where a step learns from the dense model, and the vocabularies differ in size.

    Two models whose config.json names no size count as equal.
    """
    learns = isinstance(step.settings, TrainingSettings) and DENSE in step.settings.teachers()
    configs = ({**(model.config.get("text_config") or {}), **model.config} for model in (checkpoint, dense))
    ours, theirs = (dimensions(config).vocabulary for config in configs)
    if learns and ours != theirs:
        raise UnsupportedError("the vocabulary is not the dense model's", f"{step.verb} first, then trim")


def make_recovered(
    parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit, pruner: Callable[..., Any] | None = None
) -> None:
    """Make every recovered model of one pass, each in its folder.

    A ``pruner``, that of ``prune: gradual`` or ``prune: elsa``, prunes meanwhile.

    Raises ModelError without the dense model or the calibration text, for a quantized parent, and for one that leaves
    weights out. Grouped neurons, which leave weights out, are allowed in ``reconstruct`` alone. Raises UnsupportedError
    where an oracle chooses its neurons. A step that fails later, for example because its blocks do not match the dense
    model's, is emitted as an error.
    """
    name = next(iter(targets)).name
    if context.dense is None:
        raise ModelError(f"{name} needs the dense model", "use it in a manifest")
    checkpoint = float_checkpoint(parent, "recover first, then quantize")
    dense = Checkpoint(context.dense)
    if skips_weights(checkpoint.config):
        grouped = experts_of(checkpoint.config)
        if name != "reconstruct" or grouped is None:
            raise ModelError(f"{parent}: it leaves weights out already", "recover first, then leave weights out")
        if grouped.router == "oracle":
            raise UnsupportedError(
                f"{parent}: its oracle router reads all neurons, so it cannot be kept while they are trained",
                "another `router` in `moefy`",
            )
    text = context.text(name) if name == "reconstruct" else None
    for number, (step, folder) in enumerate(targets.items()):
        try:
            check_vocabulary(step, checkpoint, dense)
            if text is None:
                emit(step, whole.train_model(checkpoint, dense, step, context, folder, pruner))
            else:
                read = first(text, step.settings.tokens) if step.settings.tokens else text
                job = Reconstruction(dense, checkpoint, read, step, context, (number, len(targets)))
                emit(step, job.run(folder))
        except SparsebenchError as error:
            emit(step, error)
