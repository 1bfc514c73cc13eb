"""``quantize`` as a step of a recipe: the pass that makes its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.steps.contract import Context, Emit, Step, StepReport
from sparsebench.steps.grid import Quantize
from sparsebench.steps.quantize import gguf, sweep
from sparsebench.steps.quantize.settings import Gguf


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every quantized variant of one pass over the model in ``parent``, each in its folder.

    Calibration text is read only if one of them needs it.
    """
    if all(isinstance(step.settings, Gguf) for step in targets):
        return gguf.run(parent, targets, context, emit)
    wanted = {Quantize(step.name, **step.settings.record()): step for step in targets}

    def tell(own: Quantize, found: StepReport | SparsebenchError) -> None:
        emit(wanted[own], replace(found, sweep_size=len(wanted)) if isinstance(found, StepReport) else found)

    reads = any(step.settings.reads_text() for step in targets)
    tokens = context.text("quantize: gptq") if reads else None
    folders = {own: targets[step] for own, step in wanted.items()}
    ways = (context.progress, context.dtype, context.seed, context.device)
    sweep.run(parent, context.family, folders, tokens, tell, *ways)
