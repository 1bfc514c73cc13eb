"""``shrink`` as a step of a recipe: what a step reads, costs and is called, and the pass that makes what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.steps.contract import Context, Emit, Evidence, Step, of_file, of_text, unusual
from sparsebench.steps.shrink import gated
from sparsebench.steps.shrink.choosing import LENGTH, ROUTED, by_labels
from sparsebench.steps.shrink.gated import GATES
from sparsebench.steps.shrink.settings import COUNTS, NAMED, settings
from sparsebench.steps.shrink.unfit import check

READ_TEXT = ("sleb", "influence", "angular", "flap", "taylor", "activation", *ROUTED)
"""Criteria that read calibration text."""
REFITS = ("least_squares", "rescale")
"""Compensations that read it."""
TRIALS = 16
"""How often SLEB reads the text for each block that it removes: on average half of a model's blocks, for each of 32."""


def reads_text(step: Step) -> bool:
    """Whether the criterion or the compensation reads calibration text."""
    return (step.name in READ_TEXT and not by_labels(step)) or step.settings.get("compensation") in REFITS


def draws(step: Step) -> bool:
    """Whether the seed decides what goes, or which documents are read."""
    return step.name in ("random", GATES) or (step.name == "taylor" and step.settings["labels"] != "text")


def version(step: Step) -> int:
    """Return 2 for Taylor with even widths, whose score includes the rows that make a neuron since then; else 1."""
    return 2 if step.name == "taylor" and not step.settings["uneven"] else 1


def label(step: Step) -> str:
    """Return the step's label, such as ``sleb -4 blocks`` or ``flap/both to 0.8 of parameters``."""
    own = step.settings
    if step.name == GATES:
        return gated.label(step)
    if "blocks" in own:
        where = "" if own["stacks"] == "both" else f" of the {own['stacks']}"
        return f"{step.name} -{own['blocks']} blocks{where}"
    usual = "bias" if step.name == "flap" else "none"
    ways = [own["compensation"].replace("_", " ")] if own["compensation"] != usual else []
    file = [of_file(own["file"])[0].name] if "file" in own else []
    changed = unusual(own, settings()[step.name])
    others = [f"{key}={changed[key]}" for key in _OTHERS if key in changed]
    if step.name == NAMED:
        return ", ".join([f"shrink {file[0]}", *ways, *others])
    counts = " and ".join(f"{own[key]}{f' {key}' * (own['of'] == 'both')}" for key in COUNTS if key in own)
    shares = [f"{own[key]:.4g} of {key}" for key in ("parameters", "operations") if key in own]
    share = counts or "".join(shares) or format(own.get("keep", 1), ".4g")
    text = [of_text(own["source"]).name] if by_labels(step) else []
    return ", ".join([f"{step.name}/{own['of']} to {share}", *ways, *file, *others, *text])


_OTHERS = ("multiple_of", "labels", "damping", "iterations", "uneven")
"""Settings that a label states where they differ from their defaults."""


def forward_tokens(step: Step, text: int) -> float:
    """Return how many tokens go through the model.

    SLEB reads the text again for each block that it tries. Taylor's backward pass costs as much as a forward one,
    because no weight has a gradient. Labelled documents are read in place of the text.
    """
    if step.name == "sleb":
        return float(TRIALS * step.settings["blocks"] * text)
    read = LENGTH * step.settings["documents"] if by_labels(step) else text
    return 2.0 * read * step.settings.get("iterations", 1)


def trains(step: Step) -> bool:
    """Whether the whole model is trained."""
    return step.name == GATES


def bytes_per_parameter(step: Step) -> float:
    """Return the bytes per parameter of a model that runs whole, in float32, rather than block by block."""
    return 4.0 if step.name in ("sleb", "taylor") or step.settings.get("compensation") == "rescale" else 0.0


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every smaller model of one pass, each in its folder. A step that fails does not stop the others.

    Raises UnsupportedError for an architecture that is not declared, ModelError for a quantized parent.
    """
    from sparsebench.models.axes import shape
    from sparsebench.models.quantized import float_checkpoint
    from sparsebench.steps.shrink import channels, depth, gates, width

    checkpoint = float_checkpoint(parent, "shrink first, then quantize")
    found = shape(checkpoint, context.family)
    parts: dict[tuple[Any, bool], dict[Step, Path]] = {}
    for step, folder in targets.items():
        hidden = step.settings.get("of") == "hidden"
        module: Any = gates if trains(step) else depth if "blocks" in step.settings else channels if hidden else width
        try:
            check(step, checkpoint.config, context.family)
            parts.setdefault((module.make, reads_text(step)), {})[step] = folder
        except UnsupportedError as error:
            emit(step, error)
    told, name = set[Step](), next(iter(targets)).name

    def tell(step: Step, result: Evidence | SparsebenchError) -> None:
        told.add(step)
        emit(step, result)

    for (make, reads), chosen in parts.items():
        try:
            make(found, chosen, context, context.text(f"shrink: {name}") if reads else None, tell)
        except SparsebenchError as error:
            for step in chosen:
                if step not in told:
                    emit(step, error)
