"""``quantize`` as a step of a recipe: its settings in a manifest, and the pass that makes its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import Count, wrong
from sparsebench.steps.contract import Context, Emit, Evidence, Settings, Step
from sparsebench.steps.quantize.grid import BITS, GROUP, Quantize


class Grid8(Settings):
    """Weights in 8 bits, one scale for each row."""

    former: ClassVar = {"symmetric": True}

    rounding: Literal["nearest", "gptq"] = "nearest"
    """Round to the `nearest` value of the grid, or column by column, each time adjusting the columns to the right
    (`gptq`, which reads calibration text)."""
    damping: float = 0.01
    """With `gptq`: the share of the Hessian's mean diagonal that is added to its diagonal."""

    def complete(self, name: str) -> dict[str, Any]:
        """Leave out the damping for rounding to the nearest, which does not use it."""
        if self.damping <= 0:
            raise wrong(f"a damping of {self.damping:g}", "a share above 0, such as 0.01", at="damping")
        return self.model_dump(exclude=set() if self.rounding == "gptq" else {"damping"})


class Grid4(Grid8):
    """Weights in 4 bits, one scale for each group of columns of a row."""

    group: Count = GROUP
    """The number of columns that share a scale."""


def settings() -> dict[str, type[Settings]]:
    """Return each number format's settings class, by its name."""
    return {name: Grid4 if name == "int4" else Grid8 for name in BITS}


def reads_text(step: Step) -> bool:
    """Return whether a step reads calibration text, as GPTQ does."""
    return bool(step.settings["rounding"] == "gptq")


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every quantized variant of one pass over the model in ``parent``, each in its folder.

    Calibration text is read only if one of them needs it.
    """
    from sparsebench.steps.quantize import sweep

    wanted = {Quantize(step.name, **step.settings): step for step in targets}

    def tell(own: Quantize, found: Evidence | SparsebenchError) -> None:
        emit(wanted[own], replace(found, sweep_size=len(wanted)) if isinstance(found, Evidence) else found)

    tokens = context.text("quantize: gptq") if any(map(reads_text, targets)) else None
    folders = {own: targets[step] for own, step in wanted.items()}
    ways = (context.progress, context.dtype, context.seed, context.device)
    sweep.run(parent, context.family, folders, tokens, tell, *ways)
