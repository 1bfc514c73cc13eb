"""``shrink`` as a step of a recipe: what a step reads, costs and is called, and the pass that makes what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.manifest.schema import Family
from sparsebench.models.files.families import PER_LAYER, family_of
from sparsebench.models.shape.architectures import UNBIASED, architecture
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Context, Emit, Evidence, Step, unusual
from sparsebench.steps.recover import step as recover
from sparsebench.steps.shrink.choosing import LENGTH, REAP, by_labels, kinds_of
from sparsebench.steps.shrink.labelled import lacking
from sparsebench.steps.shrink.settings import COUNTS, GATES, NAMED, SHARES, Gates, settings

READ_TEXT = ("sleb", "influence", "angular", "flap", "taylor", "activation", REAP)
"""Criteria that read calibration text."""
TRIALS = 16
"""How often SLEB reads the text for each block that it removes: on average half of a model's blocks, for each of 32."""


def reads_text(step: Step) -> bool:
    """Whether the criterion or the compensation reads calibration text."""
    return (step.name in READ_TEXT and not by_labels(step)) or refits(step)


def refits(step: Step) -> bool:
    """Whether the columns that stay are refitted to the calibration text."""
    return bool(step.settings.get("compensation") == "least_squares")


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
        return _label_of_gates(step)
    if "blocks" in own:
        where = "" if own["stacks"] == "both" else f" of the {own['stacks']}"
        return f"{step.name} -{own['blocks']} blocks{where}"
    usual = "bias" if step.name == "flap" else "none"
    ways = [own["compensation"].replace("_", " ")] if own["compensation"] != usual else []
    file = [Reference.parse(own["file"]).name] if "file" in own else []
    changed = unusual(own, settings()[step.name])
    others = [f"{key}={changed[key]}" for key in _OTHERS if key in changed]
    if step.name == NAMED:
        return ", ".join([f"shrink {file[0]}", *ways, *others])
    counts = " and ".join(f"{own[key]}{f' {key}' * (own['of'] == 'both')}" for key in COUNTS if key in own)
    parts = f"{own['parameters']:.4g} of parameters" if "parameters" in own else f"{own.get('keep', 1):.4g}"
    text = [Reference.parse(own["source"]).name] if by_labels(step) else []
    return ", ".join([f"{step.name}/{own['of']} to {counts or parts}", *ways, *file, *others, *text])


_OTHERS = ("multiple_of", "labels", "iterations", "uneven")
"""Settings that a label states where they differ from their defaults."""


def _label_of_gates(step: Step) -> str:
    """Return a label such as ``gates/both to 0.8 of parameters, tokens=1000000``: results depend on the token budget."""
    own = step.settings
    (share,) = (key for key in SHARES if key in own)
    said = f"{own[share]:.4g}" if share == "keep" else f"{own[share]:.4g} of {share}"
    rest = {key: value for key, value in own.items() if key not in (share, "of", "tokens")}
    return ", ".join([f"{step.name}/{own['of']} to {said}", f"tokens={own['tokens']}", *recover.words(rest, Gates)])


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
    return 4.0 if step.name in ("sleb", "taylor") else 0.0


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a step cannot cut the model of a config.json, and the way out; empty where it shows no reason."""
    try:
        check(step, config, family_of(config))
    except UnsupportedError as error:
        return error.message, error.hint or ""
    return recover.refuses(step, config)


def check(step: Step, config: Mapping[str, Any], family: Family | None) -> None:
    """Raise UnsupportedError for every reason that ``refuses`` gives, except those that only concern training."""
    own, how, type_ = step.settings, architecture(config), config.get("model_type")
    of: Any = "blocks" if "blocks" in own else own.get("of")
    for kind in kinds_of(of) if of else ():
        if why := how.cannot(kind):
            raise UnsupportedError(f"{type_}: {why}", how.instead(kind))
    if own.get("compensation") == "bias":
        cut = [{"heads": "o", "neurons": "down"}[kind] for kind in kinds_of(of)]
        if without := [name for name in cut if name in UNBIASED.get(str(type_), ())]:
            raise UnsupportedError(
                f"compensation: bias: {type_} has no bias beside {' and '.join(without)}, "
                "and transformers would ignore one",
                "`compensation: least_squares` or `none`",
            )
    if step.name == GATES and how.mixture:
        raise UnsupportedError(f"{type_}: gates are not learned for mixtures of experts", "another criterion")
    if own.get("uneven") and (how.mixture or family == "encoder-decoder"):
        experts = "config.json has no key for an expert or a block of a mixture with fewer elements"
        why = experts if how.mixture else f"`{PER_LAYER}` numbers the blocks of one stack, and there are two"
        raise UnsupportedError(f"{type_}: uneven: {why}", "leave `uneven` out")
    if own.get("labels") == "text" and family == "encoder":
        raise UnsupportedError("labels: text: an encoder predicts no next token of a text", "`labels: own`")
    if by_labels(step) and (why := lacking(config)):
        raise UnsupportedError(why, "`labels: own`, or a checkpoint that was fine-tuned to classify")


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every smaller model of one pass, each in its folder. A step that fails does not stop the others.

    Raises UnsupportedError for an architecture that is not declared, ModelError for a quantized parent.
    """
    from sparsebench.models.files.quantized import float_checkpoint
    from sparsebench.models.shape.axes import shape
    from sparsebench.steps.shrink import depth, gates, width

    checkpoint = float_checkpoint(parent, "shrink first, then quantize")
    found = shape(checkpoint, context.family)
    parts: dict[tuple[Any, bool], dict[Step, Path]] = {}
    for step, folder in targets.items():
        module: Any = gates if trains(step) else depth if "blocks" in step.settings else width
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
