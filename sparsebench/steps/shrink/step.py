"""``shrink`` as a step of a recipe: what a manifest may say of it, and the pass that makes what it asks for."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.manifest.schema import Count, Family, Share, wrong
from sparsebench.models.types import PER_LAYER
from sparsebench.steps.contract import Context, Emit, Evidence, Settings, Step, of_file, of_text
from sparsebench.steps.recover import step as recover
from sparsebench.steps.shrink import gated
from sparsebench.steps.shrink.choosing import DOCUMENTS, LENGTH, ROUTED, by_labels, kinds_of
from sparsebench.steps.shrink.gated import GATES, Gates

if TYPE_CHECKING:
    from sparsebench.steps.calibration import Calibrated

DEPTH = ("sleb", "influence", "angular", "first", "last")
WIDTH = ("flap", "taylor", "activation", "l1", "l2")
NAMED = "list"
"""The criterion that is a file: it names what goes."""
READ_TEXT = ("sleb", "influence", "angular", "flap", "taylor", "activation", *ROUTED)
"""Criteria that look at text."""
_BLOCKS = "how many blocks go, such as 4"
_PART = Annotated[Share, Field(gt=0, le=1)]


class Depth(Settings):
    """Whole blocks go; those that stay close up, and stock transformers loads the model."""

    blocks: Count | None = None
    """How many blocks go. Of an encoder-decoder so many of each stack that `stacks` names."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """Of an encoder-decoder, the stacks that lose blocks."""

    def complete(self, name: str) -> dict[str, Any]:
        """As it stands; there is no default for how many."""
        if self.blocks is None:
            raise wrong("`blocks` is missing", _BLOCKS, at="blocks")
        return self.model_dump()


class Width(Settings):
    """Neurons of the feed-forward parts and heads go, as many in every block or where they matter least; or hidden channels,
    the same ones everywhere; or whole experts, as many in every block."""

    compensates: ClassVar[str] = "none"

    parameters: _PART | None = None
    """The share of the blocks' parameters that stays, above 0 and at most 1: 0.8 removes a fifth of them. Or say one of
    `operations`, `keep`, `neurons`, `heads` and `experts`."""
    operations: _PART | None = None
    """The share of the blocks' floating-point operations a token that stays, counted over 512 tokens, attention included."""
    keep: _PART | None = None
    """The share of the neurons, of the heads, of the hidden channels or of the experts that stays."""
    neurons: Count | None = None
    """How many neurons stay of each block, or of each expert, such as 512; with `heads` beside it, both are cut."""
    heads: Count | None = None
    """How many heads stay of each attention, as config.json counts them: whole groups that share keys and values."""
    experts: Count | None = None
    """How many experts stay of each block of a mixture, at least as many as a token takes."""
    of: Literal["neurons", "heads", "both", "hidden", "experts"] = "both"
    """What goes; it follows from `neurons`, `heads` and `experts` where these are said. Heads go in whole groups that share keys
    and values; with `both` the same share of either goes, and neurons make up for what whole groups leave over. `hidden` are the
    channels of a token's states, cut alone: out of all that reads or writes them, embeddings and output head too. `experts` go
    with their rows of the router."""
    uneven: bool = False
    """Whether the elements with the lowest scores of all blocks go, more from some blocks than from others, and not as many from
    each. Such a model is written in transformers' `per_layer_config`, which sparsebench alone loads. Not for two stacks."""
    multiple_of: Count = 1
    """The number of neurons, or of hidden channels, that stay is a multiple of this."""
    compensation: Literal["none", "bias", "least_squares", "rescale"] | None = None
    """What makes up for what went: nothing; a `bias` with its mean output, where the model has such a bias (FLAP, which alone
    sees the means); `least_squares`, the columns that stay refitted to the calibration text; or, of hidden channels, `rescale`:
    a factor for each norm, which divides by another width. Default: as published, `bias` for flap and `none` for the others."""
    damping: Annotated[float, Field(gt=0)] = 0.01
    """With `least_squares`: the share of the Gram matrix's mean diagonal that is added to it."""
    iterations: Count = 1
    """In how many equal cuts it is done; what is left is scored anew, and compensated, after each (TextPruner)."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """A JSON file with neurons or heads that go before all others, or stay longer than all others, by block:
    `{"neurons": {"0": {"go": [3, 17], "stay": [5]}}, "heads": {"1": {"stay": [0]}}}`. A result is known by the file's content."""

    def complete(self, name: str) -> dict[str, Any]:
        """With the published compensation filled in, without what nothing looks at."""
        given = self.targets()
        counts = [key for key in ("heads", "neurons", "experts") if key in given]
        if "experts" in counts and len(counts) > 1:
            raise wrong(f"`experts` beside `{counts[0]}`", "one after the other: a list of two steps", at="experts")
        if len(given) - len(counts) + bool(counts) != 1:
            what = " beside ".join(f"`{key}`" for key in given) or "neither a share nor a number of what stays"
            raise wrong(what, "one of them, such as `parameters: 0.8` or `neurons: 512`", at="parameters")
        of = "both" if len(counts) == 2 else counts[0] if counts else self.of
        if "of" in self.model_fields_set and self.of != of:
            raise wrong(
                f"`of: {self.of}` beside {' and '.join(f'`{key}`' for key in counts)}", "leave `of` out", at="of"
            )
        self._check_hidden(name)
        if of == "experts":
            self._check_experts(name)
        if counts and self.multiple_of > 1:
            raise wrong("`multiple_of` beside a number", "one of them", at="multiple_of")
        if self.compensation == "bias" and name != "flap":
            raise wrong(
                "`compensation: bias` without the means that flap sees", "`least_squares` or `none`", at="compensation"
            )
        if self.uneven and self.multiple_of > 1:
            raise wrong("`multiple_of` beside `uneven`", "one of them", at="multiple_of")
        found = {key: value for key, value in self.model_dump().items() if value is not None} | {"of": of}
        found["compensation"] = self.compensation or self.compensates
        if found["compensation"] != "least_squares":
            del found["damping"]
        if of in ("heads", "experts"):
            del found["multiple_of"]
        return found

    def _check_experts(self, name: str) -> None:
        """Raise for what makes no sense of whole experts."""
        if name in ("flap", "taylor", "activation"):
            others = f"one of l1, l2, random, {', '.join(ROUTED)}"
            raise wrong(f"experts by {name}: it scores single neurons and heads", others, at="of")
        for key, plain in (("uneven", False), ("iterations", 1), ("multiple_of", 1), ("operations", None)):
            if getattr(self, key) != plain:
                raise wrong(f"`{key}` beside experts", "leave it out", at=key)
        if self.compensation not in (None, "none"):
            raise wrong(f"`compensation: {self.compensation}` beside experts", "`none`", at="compensation")

    def _check_hidden(self, name: str) -> None:
        """Raise for what makes no sense of hidden channels, or only of them."""
        if self.of != "hidden":
            if self.compensation == "rescale":
                raise wrong(
                    "`compensation: rescale` without `of: hidden`", "`least_squares` or `none`", at="compensation"
                )
            return
        if name == "flap":
            raise wrong(
                "`of: hidden` by flap: it scores what one matrix reads, and every block reads hidden channels",
                "another criterion, such as `activation`",
                at="of",
            )
        if self.compensation not in (None, "none", "rescale"):
            raise wrong(
                f"`compensation: {self.compensation}` beside `of: hidden`: what went was written by all blocks before",
                "`rescale` or `none`",
                at="compensation",
            )
        if self.uneven or self.file is not None:
            key = "uneven" if self.uneven else "file"
            raise wrong(f"`{key}` beside `of: hidden`", "the same channels go in all blocks: leave it out", at=key)

    def targets(self) -> list[str]:
        """The settings that say how much stays."""
        named = ("parameters", "operations", "keep", "heads", "neurons", "experts")
        return [key for key in named if getattr(self, key) is not None]


class Flap(Width):
    """FLAP's settings."""

    compensates: ClassVar[str] = "bias"


class Taylor(Width):
    """The settings of Taylor's criterion."""

    labels: Literal["own", "text", "task"] = "own"
    """Whose loss it is: that of answers drawn from what the model itself says (`own`), of the text's next tokens (`text`; not
    for encoders), or of a classification head on labelled documents (`task`, as TextPruner has it)."""
    source: Annotated[str, Field(min_length=1)] | None = None
    """With `labels: task`: the documents, in any notation that `calibration` takes, such as `path:train.jsonl`. A result is known
    by the content."""
    field: Annotated[str, Field(min_length=1)] | None = None
    """The column that holds their text; default: `text`."""
    label: Annotated[str, Field(min_length=1)] = "label"
    """The column that holds their labels, as config.json's `id2label` names them or as numbers from 0."""
    documents: Count = DOCUMENTS
    """How many of them are read; all where there are fewer."""

    def complete(self, name: str) -> dict[str, Any]:
        """With what labelled documents need filled in, and without it where there are none."""
        own = ("source", "field", "label", "documents")
        given = [key for key in own if key in self.model_fields_set]
        if self.labels != "task" and given:
            raise wrong(f"`{given[0]}` without `labels: task`", "leave it out, or say `labels: task`", at=given[0])
        found = super().complete(name)
        if self.labels != "task":
            return {key: value for key, value in found.items() if key not in own}
        if self.source is None:
            raise wrong("`labels: task` without `source`", "labelled documents, such as path:train.jsonl", at="labels")
        if self.of == "hidden":
            raise wrong("`labels: task` beside `of: hidden`", "`labels: own`", at="labels")
        return found


class Routed(Width):
    """Whole experts go, those that calibration text takes least."""

    of: Literal["experts"] = "experts"  # type: ignore[assignment]
    """What goes."""


class Listed(Settings):
    """Neurons and heads that a file names go, and no others."""

    file: Annotated[str, Field(min_length=1)] | None = None
    """A JSON file: by kind and block the numbers of those that go, or of those that alone stay:
    `{"neurons": {"0": {"go": [3, 17]}, "1": {"go": [4, 5]}}}`. A result is known by the file's content."""
    compensation: Literal["none", "least_squares"] = "none"
    """What makes up for what went: nothing, or the columns that stay refitted to the calibration text."""
    damping: Annotated[float, Field(gt=0)] = 0.01
    """With `least_squares`: the share of the Gram matrix's mean diagonal that is added to it."""

    def complete(self, name: str) -> dict[str, Any]:
        """As it stands, without what nothing looks at; there is no default for the file."""
        if self.file is None:
            raise wrong("`file` is missing", "a JSON file that names what goes, such as heads.json", at="file")
        found = self.model_dump()
        if self.compensation == "none":
            del found["damping"]
        return found


class Random(Width):
    """The settings of what goes at random: blocks, or neurons and heads."""

    blocks: Count | None = None
    """How many blocks go, in place of what says how many neurons and heads stay."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """With `blocks`, of an encoder-decoder: the stacks that lose blocks."""

    def complete(self, name: str) -> dict[str, Any]:
        """Those of blocks, or those of what goes from within them."""
        if self.blocks is None:
            found = super().complete(name)
            return {key: value for key, value in found.items() if key != "stacks"}
        if given := sorted(self.model_fields_set - {"blocks", "stacks"}):
            raise wrong(f"`{given[0]}` beside `blocks`, of which it says nothing", "one of them", at=given[0])
        return {"blocks": self.blocks, "stacks": self.stacks}


def settings() -> dict[str, type[Settings]]:
    """Each criterion's settings, by its name."""
    own: dict[str, type[Settings]] = {"flap": Flap, "taylor": Taylor, "random": Random, NAMED: Listed, GATES: Gates}
    own |= dict.fromkeys(ROUTED, Routed)
    names = (*DEPTH, *WIDTH, *ROUTED, "random", NAMED, GATES)
    return {name: own.get(name, Depth if name in DEPTH else Width) for name in names}


def reads_text(step: Step) -> bool:
    """Whether the criterion, or the compensation, looks at calibration text."""
    return (step.name in READ_TEXT and not by_labels(step)) or step.settings.get("compensation") in (
        "least_squares",
        "rescale",
    )


def draws(step: Step) -> bool:
    """Whether the seed decides what goes, or which documents are read."""
    return step.name in ("random", GATES) or (step.name == "taylor" and step.settings["labels"] != "text")


def version(step: Step) -> int:
    """Taylor's score of even widths has since 2 what the rows that make a neuron say of it."""
    return 2 if step.name == "taylor" and not step.settings["uneven"] else 1


def label(step: Step) -> str:
    """``sleb -4 blocks``, ``flap/both to 80%``: what goes, or to what share of the blocks' parameters."""
    own = step.settings
    if step.name == GATES:
        return gated.label(step)
    if "blocks" in own:
        where = "" if own["stacks"] == "both" else f" of the {own['stacks']}"
        return f"{step.name} -{own['blocks']} blocks{where}"
    if step.name == NAMED:
        ways = [own["compensation"].replace("_", " ")] if own["compensation"] != "none" else []
        return ", ".join([f"shrink {of_file(own['file'])[0].name}", *ways, *_unusual(own)])
    numbers = [
        f"{own[key]}{f' {key}' * (own['of'] == 'both')}" for key in ("heads", "neurons", "experts") if key in own
    ]
    counts = " and ".join(numbers)
    shares = [f"{own[key]:.4g} of {key}" for key in ("parameters", "operations") if key in own]
    share = f"to {counts or ''.join(shares) or format(own.get('keep', 1), '.4g')}"
    usual = "bias" if step.name == "flap" else "none"
    ways = [own["compensation"].replace("_", " ")] if own["compensation"] != usual else []
    ways += [of_file(own["file"])[0].name] if "file" in own else []
    ways += _unusual(own) + ([of_text(own["source"]).name] if by_labels(step) else [])
    return f"{step.name}/{own['of']} {share}{''.join(f', {way}' for way in ways)}"


_PLAIN = {"multiple_of": 1, "labels": "own", "damping": 0.01, "iterations": 1, "uneven": False}


def _unusual(own: Mapping[str, Any]) -> list[str]:
    return [f"{key}={own[key]}" for key, plain in _PLAIN.items() if own.get(key, plain) != plain]


def passes(step: Step, blocks: int) -> float:
    """How often the text goes through the model: of sleb once for each block that is tried; of Taylor there and back, where the
    way back costs one forward, because no weight has a gradient."""
    own = step.settings
    if step.name == "sleb":
        return float(sum(max(1, blocks - gone) for gone in range(own["blocks"])))
    scored = 0 if by_labels(step) else (step.name in READ_TEXT) + (step.name == "taylor")
    once = scored + (own.get("compensation") in ("least_squares", "rescale"))
    return float(once * own.get("iterations", 1))


def own_tokens(step: Step) -> float:
    """How many tokens of labelled documents go through the whole model, there and back."""
    return 2.0 * LENGTH * step.settings["documents"] * step.settings["iterations"] if by_labels(step) else 0.0


def trains(step: Step) -> bool:
    """Whether the whole model is trained."""
    return step.name == GATES


def whole(step: Step) -> bool:
    """Whether the model is run as it stands, and not block by block."""
    return step.name in ("sleb", "influence", "angular", "taylor") or step.settings.get("compensation") == "rescale"


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Why nothing of a config.json's model can go as a step asks, and the way out, as far as that alone tells."""
    from sparsebench.models.families import family_of

    try:
        _refuse(step, config, family_of(config))
    except UnsupportedError as error:
        return error.message, error.hint or ""
    return recover.refuses(step, config)


def _refuse(step: Step, config: Mapping[str, Any], family: Family | None) -> None:
    """Raise UnsupportedError for what ``refuses`` tells of."""
    from sparsebench.models import residual
    from sparsebench.models.architectures import architecture
    from sparsebench.steps.shrink.labelled import lacking

    own, how, type_ = step.settings, architecture(config), config.get("model_type")
    of: Any = "blocks" if "blocks" in own else own.get("of")
    if of == "hidden":
        residual.refuse(config)
    for kind in kinds_of(of) if of not in (None, "hidden") else ():
        if why := how.cannot(kind):
            raise UnsupportedError(f"{type_}: {why}", how.instead(kind))
    if step.name == GATES and how.mixture:
        raise UnsupportedError(f"{type_}: gates are not learned for mixtures of experts", "another criterion")
    if own.get("uneven") and (how.mixture or family == "encoder-decoder"):
        why = (
            "config.json has no key for an expert or a block of a mixture with fewer elements"
            if how.mixture
            else f"`{PER_LAYER}` numbers the blocks of one stack, and there are two"
        )
        raise UnsupportedError(f"{type_}: uneven: {why}", "leave `uneven` out")
    if own.get("operations") is not None and how.mixture:
        raise UnsupportedError(
            f"{type_}: operations: shapes do not tell which experts a token takes, and how often",
            "`parameters` or `keep`",
        )
    if own.get("labels") == "text" and family == "encoder":
        raise UnsupportedError("labels: text: an encoder predicts no next token of a text", "`labels: own`")
    if by_labels(step) and (why := lacking(config)):
        raise UnsupportedError(why, "`labels: own`, or a checkpoint that was fine-tuned to classify")


def size(step: Step) -> float:
    """Blocks are most of a model."""
    return float(
        next((step.settings[key] for key in ("parameters", "operations", "keep") if key in step.settings), 0.9)
    )


def run(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Every smaller model of one pass, each into its folder; what fails, fails alone.

    Raises UnsupportedError for an architecture that is not declared, ModelError for a quantized parent.
    """
    from sparsebench.models.axes import shape
    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.quantized import FLOAT, encoding_of
    from sparsebench.steps.shrink import channels, gates, width

    checkpoint = Checkpoint(parent)
    if encoding_of(checkpoint.config) != FLOAT:
        raise ModelError(f"{parent}: its weights are quantized", "shrink first, then quantize")
    found = shape(checkpoint, context.family)
    parts: dict[tuple[Any, bool], dict[Step, Path]] = {}
    for step, folder in targets.items():
        hidden = step.settings.get("of") == "hidden"
        make = _depth if "blocks" in step.settings else channels.make if hidden else width.make
        try:
            _refuse(step, checkpoint.config, context.family)
            parts.setdefault((gates.make if trains(step) else make, reads_text(step)), {})[step] = folder
        except UnsupportedError as error:
            emit(step, error)
    told: set[Step] = set()

    def tell(step: Step, result: Evidence | SparsebenchError) -> None:
        told.add(step)
        emit(step, result)

    text = cache(lambda: _text(context, next(iter(targets)).name))
    for (make, reads), chosen in parts.items():
        try:
            make(found, chosen, context, text() if reads else None, tell)
        except SparsebenchError as error:
            for step in chosen:
                if step not in told:
                    emit(step, error)


def _text(context: Context, criterion: str) -> Calibrated:
    found = context.read() if context.read else None
    if found is None:
        raise ModelError(f"shrink: {criterion} needs calibration text", "name it under `calibration:`")
    return found


def _depth(found: Any, targets: Mapping[Step, Path], context: Context, text: Any, emit: Emit) -> None:
    from sparsebench.models.safety import told
    from sparsebench.steps.evidence import counted
    from sparsebench.steps.shrink import depth, writing

    started = time.perf_counter()
    free: dict[Step, dict[str, list[int]]] = {}
    for step in targets:
        try:
            free[step] = _free(found, step)
        except SparsebenchError as error:
            emit(step, error)
    gone = depth.chosen(found, free, context, text) if free else {}
    made: dict[Step, list[str]] = {}
    for step, removed in gone.items():
        try:
            smaller = writing.without(found, removed)
            settings = {"family": context.family, "shrink": step.name, **step.settings, "removed": removed}
            settings |= {"seed": context.seed, **(text.told() if text else {})}
            writer = writing.write(smaller, context.family, targets[step], settings)
            made[step] = [smaller.loads, told(writer.left_out)]
        except SparsebenchError as error:
            emit(step, error)
    seconds = time.perf_counter() - started
    for step, notes in made.items():
        words = []
        for side, without in gone[step].items():
            total = found.blocks[side]
            named = f" of the {side}" if len(found.blocks) > 1 else ""
            words.append(
                f"{total - len(without)} of {total} blocks{named} stay, without {', '.join(map(str, without))}"
            )
        note = "; ".join(filter(None, [*words, *notes]))
        emit(step, counted(targets[step], context.family, seconds, len(made), note, text.told() if text else None))


def _free(found: Any, step: Step) -> dict[str, list[int]]:
    """By side, the blocks that may go."""
    from sparsebench.steps.shrink import depth

    stacks = step.settings["stacks"]
    if stacks != "both" and len(found.blocks) == 1:
        raise UnsupportedError(f"stacks: {stacks}: the model has one stack of blocks", "leave `stacks` out")
    sides = [side for side in found.blocks if stacks in ("both", side)]
    return {side: depth.going(found.blocks[side], step.settings["blocks"], found.how.pinned, side) for side in sides}
