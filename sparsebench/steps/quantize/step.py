"""``quantize`` as a step of a recipe: what a manifest may say of it, and the pass that makes what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import Count, wrong
from sparsebench.steps.contract import Context, Emit, Evidence, Settings, Step
from sparsebench.steps.quantize.grid import BITS, GROUP, Quantize


class Grid8(Settings):
    """Weights in 8 bits, one scale a row."""

    rounding: Literal["nearest", "gptq"] = "nearest"
    """To the `nearest` place of the grid, or column by column, adjusting those to the right each time (`gptq`; it reads text)."""
    symmetric: bool = True
    """A grid around zero; otherwise one from the smallest to the largest weight, with a zero point."""
    damping: float = 0.01
    """With `gptq`: share of the Hessian's mean diagonal that is added to it."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what rounding to the nearest does not look at."""
        if self.damping <= 0:
            raise wrong(f"a damping of {self.damping:g}", "a share above 0, such as 0.01", at="damping")
        return self.model_dump(exclude=set() if self.rounding == "gptq" else {"damping"})


class Grid4(Grid8):
    """Weights in 4 bits, one scale a group of columns."""

    group: Count = GROUP
    """Columns that share a scale."""


def settings() -> dict[str, type[Settings]]:
    """Each number format's settings, by its name."""
    return {name: Grid4 if name == "int4" else Grid8 for name in BITS}


def reads_text(step: Step) -> bool:
    """GPTQ looks at what layers read."""
    return bool(step.settings["rounding"] == "gptq")


def size(step: Step) -> float:
    """Of a checkpoint in 16 bits, most of it in scope."""
    return 0.35 if step.name == "int4" else 0.6


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every version of one pass over the model in ``parent``, each into its folder."""
    wanted = {Quantize(step.name, **step.settings): step for step in targets}
    quantized(parent, {own: (step, targets[step]) for own, step in wanted.items()}, context, emit)


def quantized(parent: Path, wanted: Mapping[Quantize, tuple[Step, Path]], context: Context, emit: Emit) -> None:
    """Make what is ``wanted`` and tell of each by its step; the text is read where one of them needs it."""
    from sparsebench.steps.quantize import outputs, sweep

    def tell(own: Quantize, found: outputs.QuantizeEvidence | SparsebenchError) -> None:
        emit(wanted[own][0], found if isinstance(found, SparsebenchError) else evidence(found, len(wanted), tokens))

    tokens = context.read() if context.read and any(own.rounding == "gptq" for own in wanted) else None
    folders = {own: folder for own, (_, folder) in wanted.items()}
    ways = (context.progress, context.dtype, context.seed, context.device)
    sweep.run(parent, context.family, folders, tokens, tell, *ways)


def evidence(found: Any, made: int, tokens: Any) -> Evidence:
    """What was counted, in the words that all steps have: all zeros together, those of rounding besides."""
    zeros = found.zeros + found.rounded_to_zero
    return Evidence(
        prunable=found.prunable,
        zeros=zeros,
        parameters=found.parameters,
        total_zeros=zeros + found.other_zeros,
        achieved=zeros / found.prunable,
        achieved_all=(zeros + found.other_zeros) / found.parameters,
        seconds=found.seconds,
        sweep_size=made,
        peak_rss_bytes=found.peak_rss_bytes,
        tensors=(),
        note="; ".join(found.notes),
        calibration_tokens=found.tokens,
        calibration_sha256=tokens.sha256 if tokens and found.tokens else "",
        bits=found.bits_per_weight,
        rounded_to_zero=found.rounded_to_zero,
        relative_error=found.relative_error,
        already_zero=found.already_zero,
    )
