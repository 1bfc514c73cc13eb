"""``shrink`` as a step of a recipe: the pass that makes what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.axes import shape_of
from sparsebench.steps.contract import Context, Emit, Step
from sparsebench.steps.shrink import depth, gates, width
from sparsebench.steps.shrink.gate_settings import Gates


def make_smaller(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every smaller model of one pass, each in its folder. A step that fails alone does not stop the others.

    Raises UnsupportedError for an architecture that is not declared, ModelError for a quantized parent.
    """
    checkpoint = float_checkpoint(parent, "shrink first, then quantize")
    shape = shape_of(checkpoint, context.family)
    folders: dict[Step, Path] = {}
    for step, folder in targets.items():
        if refusal := step.settings.refuses(checkpoint.config):
            emit(step, refusal.error())
        else:
            folders[step] = folder
    if not folders:
        return
    first = next(iter(folders))
    text = context.text(f"shrink: {first.name}") if first.settings.reads_text() else None
    if isinstance(first.settings, Gates):
        gates.make(shape, folders, context, text, emit)
    elif first.settings.parts() == "blocks":
        depth.make(shape, folders, context, text, emit)
    else:
        width.make(shape, folders, context, text, emit)
