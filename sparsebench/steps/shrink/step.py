"""``shrink`` as a step of a recipe: the pass that makes what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.contract import Context, Emit, Step, StepReport
from sparsebench.steps.shrink import depth, gates, width
from sparsebench.steps.shrink.gate_settings import Gates


def make_smaller(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every smaller model of one pass, each in its folder. A step that fails does not stop the others.

    Raises UnsupportedError for an architecture that is not declared, ModelError for a quantized parent.
    """
    checkpoint = float_checkpoint(parent, "shrink first, then quantize")
    shape = shape_of(checkpoint, context.family)
    passes: dict[tuple[Any, bool], dict[Step, Path]] = {}
    for step, folder in targets.items():
        settings = step.settings
        if refusal := settings.refuses(checkpoint.config):
            emit(step, refusal.error())
        else:
            passes.setdefault((_maker(settings), settings.reads_text()), {})[step] = folder
    emitted: set[Step] = set()
    name = next(iter(targets)).name

    def emit_and_note(step: Step, result: StepReport | SparsebenchError) -> None:
        emitted.add(step)
        emit(step, result)

    for (make, reads_text), steps in passes.items():
        try:
            make(shape, steps, context, context.text(f"shrink: {name}") if reads_text else None, emit_and_note)
        except SparsebenchError as error:
            for step in steps:
                if step not in emitted:
                    emit(step, error)


def _maker(settings: Any) -> Any:
    """Return the function that makes what ``settings`` ask for."""
    if isinstance(settings, Gates):
        return gates.make
    return depth.make if settings.parts() == "blocks" else width.make
