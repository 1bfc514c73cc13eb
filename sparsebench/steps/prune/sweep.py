"""A sweep: makes all variants of a model that are asked for, and does expensive work once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from sparsebench.errors import SparsebenchError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import Part, prunable_parts
from sparsebench.steps.contract import Context, Emit, Progress, Step
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.outputs import EmitTarget, VariantWriters
from sparsebench.steps.prune.registry import methods, needs_calibration, reads_text
from sparsebench.steps.prune.settings import TARGET
from sparsebench.steps.prune.tensorwise import TensorSweep

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family
    from sparsebench.steps.calibration import Calibrated

Places = dict[str, Part]
"""The part of the model that each tensor is, by the tensor's name."""


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every pruning step of one pass over the model in ``parent``, each in its folder."""
    apart = {step: methods()[step.name].run for step in targets if methods()[step.name].run}
    for where in dict.fromkeys(apart.values()):
        resolve_name(where)(parent, {step: targets[step] for step in apart if apart[step] == where}, context, emit)
    steps = {target_of(step): step for step in targets if step not in apart}
    if not steps:
        return
    folders = {target: targets[step] for target, step in steps.items()}
    reading = next((step.name for step in steps.values() if reads_text(step)), None)
    tokens = context.text(reading) if reading else None
    propagate = next((step.settings["propagate"] for step in steps.values() if "propagate" in step.settings), "pruned")
    sweep = Sweep(parent, context.family, folders, context.seed, tokens, propagate, context.dtype, context.device)
    sweep.run(lambda target, found: emit(steps[target], found), context.progress)


def target_of(step: Step) -> Target:
    """Return the ``Target`` of a pruning step."""
    settings = step.settings
    own = tuple((key, value) for key, value in settings.items() if key not in (*TARGET, "propagate"))
    return Target(step.name, options=own, **{key: settings[key] for key in TARGET})


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

    def run(self, emit: EmitTarget, progress: Progress | None = None) -> None:
        """Make every variant, count each in its files, and emit its result or its error.

        Raises ModelError for a quantized model, unusable weights or text, and UnsupportedError for an architecture or
        a pattern, but only where no variant is left.
        """
        checkpoint = float_checkpoint(self.dense, "prune first, then quantize")
        places = prunable_parts(checkpoint, self.family)
        calibrated = [target for target in self.folders if needs_calibration(target.method, target.allocation)]
        plain = [target for target in self.folders if target not in calibrated]
        failed: dict[Target, SparsebenchError] = {}
        passes = ((plain, self._tensorwise), (calibrated, self._blockwise))
        for targets, one_pass in passes:
            own: dict[Target, SparsebenchError] = {}
            try:
                if targets:
                    sweep, made = one_pass(checkpoint, places, targets)
                    with VariantWriters(checkpoint, {target: self.folders[target] for target in targets}) as outputs:
                        own = outputs.failed
                        sweep.run(outputs, progress)
                        outputs.finish(self.family, {"seed": self.seed, **made}, emit)
                failed |= own
            except SparsebenchError as error:  # fails all that have no earlier error of their own
                failed |= dict.fromkeys(targets, error) | own
        if len(failed) == len(self.folders):
            raise next(iter(failed.values()))
        for target, reason in failed.items():
            emit(target, reason)

    def _tensorwise(self, checkpoint: Checkpoint, places: Places, targets: list[Target]) -> tuple[Any, dict[str, Any]]:
        """Return the sweep of variants that read no text, and the entries of their ``sparsebench.json``."""
        return TensorSweep(checkpoint, places, targets, self.seed), {}

    def _blockwise(self, checkpoint: Checkpoint, places: Places, targets: list[Target]) -> tuple[Any, dict[str, Any]]:
        """Return the sweep of calibrated variants, and the entries of their ``sparsebench.json``."""
        assert self.tokens is not None, "calibrated methods read text"
        ways = (self.tokens.batch, self.seed, self.propagate, self.dtype, self.device)
        made = {"propagate": self.propagate, "dtype": self.dtype, **self.tokens.told()}
        return BlockSweep(checkpoint, places, self.family, targets, *ways), made
