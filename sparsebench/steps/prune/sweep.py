"""A sweep: makes all variants of a model that are asked for, and does expensive work once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import prunable_parts
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.outputs import VariantWriters, run_passes
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.registry import methods
from sparsebench.steps.prune.tensorwise import TensorSweep


def make_pruned(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every pruning step of one pass over the model in ``parent``, each in its folder.

    Raises ModelError for a quantized model, and UnsupportedError for an architecture.
    """
    apart = {step: methods()[step.name].run for step in targets if methods()[step.name].run}
    for where in dict.fromkeys(apart.values()):
        resolve_name(where)(parent, {step: targets[step] for step in apart if apart[step] == where}, context, emit)
    steps = [step for step in targets if step not in apart]
    if not steps:
        return
    checkpoint = float_checkpoint(parent, "prune first, then quantize")
    parts = prunable_parts(checkpoint, context.family)
    calibrated = [step for step in steps if step.settings.reads_text()]
    by_weights = [step for step in steps if step not in calibrated]

    def tensorwise(outputs: VariantWriters) -> dict[str, Any]:
        TensorSweep(checkpoint, parts, by_weights, context.seed).run(outputs, context.progress)
        return {"seed": context.seed}

    def blockwise(outputs: VariantWriters) -> dict[str, Any]:
        text, propagate = context.text(calibrated[0].name), calibrated[0].settings.propagate
        settings = (text.batch, context.seed, propagate, context.dtype, context.device)
        BlockSweep(checkpoint, parts, context.family, calibrated, *settings).run(outputs, context.progress)
        return {"seed": context.seed, "propagate": propagate, "dtype": context.dtype, **text.provenance()}

    passes = ((by_weights, tensorwise), (calibrated, blockwise))
    run_passes(targets, passes, partial(VariantWriters, checkpoint), context.family, emit)
