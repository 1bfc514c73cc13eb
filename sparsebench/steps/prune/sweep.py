"""A sweep: every version of a model that is asked for, with what is expensive done once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError
from sparsebench.models.anatomy import parts
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.outputs import Emit, Outputs, Progress
from sparsebench.steps.prune.registry import needs_calibration
from sparsebench.steps.prune.tensorwise import TensorSweep

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family
    from sparsebench.steps.calibration import Calibrated


@dataclass(frozen=True)
class Sweep:
    """Versions of the model in ``dense``; ``folders`` says where each goes, ``tokens`` is the calibration, if any.

    ``propagate`` (pruned or dense) matters to calibrated methods alone: whose inputs they see; so does ``dtype``, the
    precision in which the model reads the text (``auto``: the checkpoint's).
    """

    dense: Path
    family: Family
    folders: dict[Target, Path]
    seed: int = 0
    tokens: Calibrated | None = None
    propagate: str = "pruned"
    dtype: str = "auto"

    def run(self, emit: Emit, progress: Progress | None = None) -> None:
        """Make every version, count each from its files, and emit its result.

        Raises ModelError for weights or text that cannot be used, UnsupportedError for an architecture or a pattern.
        """
        checkpoint = Checkpoint(self.dense)
        places = parts(checkpoint, self.family)
        if not any(part.prunable for part in places.values()):
            raise ModelError(
                f"{self.dense}: no prunable weights found", "is the family right? see `sparsebench inspect`"
            )
        plain = [target for target in self.folders if not needs_calibration(target.method, target.allocation)]
        calibrated = [target for target in self.folders if target not in plain]
        if plain:
            sweep = TensorSweep(checkpoint, places, plain, self.seed)
            with Outputs(checkpoint, {target: self.folders[target] for target in plain}) as outputs:
                sweep.run(outputs, progress)
                outputs.finish(self.family, {"seed": self.seed}, emit)
        if calibrated:
            if self.tokens is None:
                raise ModelError(f"{calibrated[0].method} needs calibration text", "name it under `calibration:`")
            ways = (self.tokens.batch, self.seed, self.propagate, self.dtype)
            blocks = BlockSweep(checkpoint, places, self.family, calibrated, *ways)
            with Outputs(checkpoint, {target: self.folders[target] for target in calibrated}) as outputs:
                blocks.run(outputs, progress)
                outputs.finish(self.family, self._made(self.tokens), emit)

    def _made(self, tokens: Calibrated) -> dict[str, Any]:
        """What a calibrated version's ``sparsebench.json`` says of how it was made."""
        return {
            "seed": self.seed,
            "propagate": self.propagate,
            "dtype": self.dtype,
            **tokens.told(),
        }
