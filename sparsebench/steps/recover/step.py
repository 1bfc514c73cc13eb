"""``recover`` as a step of a recipe: the pass that makes the recovered models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.families import dimensions
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.modules.skipping import experts_of, skips_weights
from sparsebench.steps.calibration import first_tokens
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.recover import whole
from sparsebench.steps.recover.reconstruct import Reconstruction
from sparsebench.steps.recover.settings import DENSE, TrainingSettings


def check_vocabulary(step: Step, checkpoint: Checkpoint, dense: Checkpoint) -> None:
    """Raise UnsupportedError where a step learns from the dense model, and the vocabularies differ in size.

    Where config.json does not state a size, it is transformers' default for the model type.
    """
    if not isinstance(step.settings, TrainingSettings) or DENSE not in step.settings.teachers():
        return
    vocabulary, dense_vocabulary = (dimensions(model.config).vocabulary for model in (checkpoint, dense))
    if vocabulary != dense_vocabulary:
        raise UnsupportedError("the vocabulary is not the dense model's", f"{step.verb} first, then trim")


def make_recovered(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every recovered model of one pass, each in its folder, by ``make_reconstructed`` or ``make_trained``."""
    if next(iter(targets)).name == "reconstruct":
        make_reconstructed(parent, targets, context, emit)
    else:
        make_trained(parent, targets, context, emit)


def make_reconstructed(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every model of one pass whose blocks are trained one by one.

    Raises ModelError without the dense model or the calibration text, for a quantized parent, and for one that leaves
    weights out other than by grouped neurons; UnsupportedError where an oracle chooses these. A step that fails later,
    for example because its blocks do not match the dense model's, is emitted as an error.
    """
    checkpoint, dense = _open_models(parent, targets, context)
    grouped = experts_of(checkpoint.config)
    if grouped is None:
        _refuse_skipping(checkpoint)
    elif grouped.router == "oracle":
        problem = f"{parent}: its oracle router reads all neurons, so it cannot be kept while they are trained"
        raise UnsupportedError(problem, "another `router` in `moefy`")
    text = context.text("reconstruct")
    for number, (step, folder) in enumerate(targets.items()):
        with failing_alone(step, emit):
            text_read = first_tokens(text, step.settings.tokens) if step.settings.tokens else text
            reconstruction = Reconstruction(dense, checkpoint, text_read, step, context, number, len(targets))
            emit(step, reconstruction.run(folder))


def make_trained(
    parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit, pruner: Callable[..., Any] | None = None
) -> None:
    """Make every model of one pass that is trained as a whole.

    A ``pruner``, that of ``prune: gradual`` or ``prune: elsa``, prunes meanwhile. Raises ModelError without the dense
    model, for a quantized parent, and for one that leaves weights out. A step that fails later is emitted as an error.
    """
    checkpoint, dense = _open_models(parent, targets, context)
    _refuse_skipping(checkpoint)
    for step, folder in targets.items():
        with failing_alone(step, emit):
            check_vocabulary(step, checkpoint, dense)
            emit(step, whole.train_model(checkpoint, dense, step, context, folder, pruner))


def _open_models(parent: Path, targets: Mapping[Step, Path], context: Context) -> tuple[Checkpoint, Checkpoint]:
    if context.dense is None:
        raise ModelError(f"{next(iter(targets)).name} needs the dense model", "use it in a manifest")
    return float_checkpoint(parent, "recover first, then quantize"), Checkpoint(context.dense)


def _refuse_skipping(checkpoint: Checkpoint) -> None:
    if skips_weights(checkpoint.config):
        raise ModelError(f"{checkpoint.folder}: it leaves weights out already", "recover first, then leave weights out")
