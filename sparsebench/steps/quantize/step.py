"""``quantize`` as a step of a recipe: the pass that makes its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sparsebench.errors import SparsebenchError
from sparsebench.steps.contract import Context, Emit, Step, StepReport
from sparsebench.steps.grid import Quantize
from sparsebench.steps.quantize.gguf import make_gguf
from sparsebench.steps.quantize.settings import Gguf
from sparsebench.steps.quantize.sweep import quantize_model


def make_quantized(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every quantized variant of one pass over the model in ``parent``, each in its folder."""
    if all(isinstance(step.settings, Gguf) for step in targets):
        return make_gguf(parent, targets, context, emit)
    step_of = {Quantize(step.name, **step.settings.record()): step for step in targets}

    def report(quantize: Quantize, result: StepReport | SparsebenchError) -> None:
        if isinstance(result, StepReport):
            result = replace(result, sweep_size=len(targets))
        emit(step_of[quantize], result)

    quantize_model(parent, {quantize: targets[step] for quantize, step in step_of.items()}, context, report)
