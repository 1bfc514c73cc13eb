"""A sweep: makes all variants of a model that are asked for, and does expensive work once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from sparsebench.manifest.names import Family
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import prunable_parts
from sparsebench.steps.calibration import Calibrated
from sparsebench.steps.contract import Context, Emit, Step, StepProgress
from sparsebench.steps.outputs import EmitTarget, VariantWriters, run_passes
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.registry import methods
from sparsebench.steps.prune.settings import TARGET
from sparsebench.steps.prune.tensorwise import TensorSweep


def make_pruned(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every pruning step of one pass over the model in ``parent``, each in its folder."""
    apart = {step: methods()[step.name].run for step in targets if methods()[step.name].run}
    for where in dict.fromkeys(apart.values()):
        resolve_name(where)(parent, {step: targets[step] for step in apart if apart[step] == where}, context, emit)
    steps = {target_of(step): step for step in targets if step not in apart}
    if not steps:
        return
    folders = {target: targets[step] for target, step in steps.items()}
    reading = next((step.name for step in steps.values() if step.settings.reads_text()), None)
    tokens = context.text(reading) if reading else None
    propagate = next((step.settings.propagate for step in steps.values() if step.settings.reads_text()), "pruned")
    sweep = Sweep(parent, context.family, folders, context.seed, tokens, propagate, context.dtype, context.device)
    sweep.run(lambda target, result: emit(steps[target], result), context.progress)


def target_of(step: Step) -> Target:
    """Return the ``Target`` of a pruning step."""
    settings = step.settings.record()
    options = tuple((key, value) for key, value in settings.items() if key not in (*TARGET, "propagate"))
    return Target(step.name, options=options, **{key: settings[key] for key in TARGET})


@dataclass(frozen=True)
class Sweep:
    """Variants of the model in ``dense``, each in its folder of ``folders``; ``tokens`` is the calibration text or
    None.

    Three settings apply to calibrated methods only. ``propagate`` (pruned or dense) is the model whose activations they
    read. ``dtype`` is the precision in which the model reads the text (``auto``: the checkpoint's), on ``device``.
    """

    dense: Path
    family: Family
    folders: dict[Target, Path]
    seed: int = 0
    tokens: Calibrated | None = None
    propagate: str = "pruned"
    dtype: str = "auto"
    device: str = "cpu"

    def run(self, emit: EmitTarget, progress: StepProgress | None = None) -> None:
        """Make every variant, count each in its files, and emit its result or its error.

        Raises ModelError for a quantized model, and UnsupportedError for an architecture.
        """
        checkpoint = float_checkpoint(self.dense, "prune first, then quantize")
        parts = prunable_parts(checkpoint, self.family)
        calibrated = [
            target for target in self.folders if methods()[target.method].needs or target.allocation != "uniform"
        ]
        plain = [target for target in self.folders if target not in calibrated]

        def tensorwise(outputs: VariantWriters) -> dict[str, Any]:
            TensorSweep(checkpoint, parts, plain, self.seed).run(outputs, progress)
            return {"seed": self.seed}

        def blockwise(outputs: VariantWriters) -> dict[str, Any]:
            assert self.tokens is not None, "calibrated methods read text"
            ways = (self.tokens.batch, self.seed, self.propagate, self.dtype, self.device)
            BlockSweep(checkpoint, parts, self.family, calibrated, *ways).run(outputs, progress)
            return {"seed": self.seed, "propagate": self.propagate, "dtype": self.dtype, **self.tokens.provenance()}

        passes = ((plain, tensorwise), (calibrated, blockwise))
        run_passes(self.folders, passes, partial(VariantWriters, checkpoint), self.family, emit)
