"""What a manifest may say of ``shrink``: the settings of each criterion."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.manifest.schema import Count, NonEmpty, Positive, Share, wrong
from sparsebench.steps.contract import Settings
from sparsebench.steps.shrink.choosing import DOCUMENTS, ROUTED
from sparsebench.steps.shrink.gated import GATES, Gates

DEPTH = ("sleb", "influence", "angular", "first", "last")
WIDTH = ("flap", "taylor", "activation", "l1", "l2")
NAMED = "list"
"""The criterion that is a file: it names what goes."""
COUNTS = ("heads", "neurons", "experts")
SIZES = ("parameters", "operations", "keep", *COUNTS)
"""The settings that say how much stays, ``COUNTS`` as numbers and the others as shares."""
_PART = Annotated[Share, Field(gt=0, le=1)]


class Depth(Settings):
    """Whole blocks go; those that stay close up, and stock transformers loads the model."""

    needs: ClassVar = {"blocks": "how many blocks go, such as 4"}

    blocks: Count | None = None
    """How many blocks go. Of an encoder-decoder so many of each stack that `stacks` names."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """Of an encoder-decoder, the stacks that lose blocks."""


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
    damping: Positive = 0.01
    """With `least_squares`: the share of the Gram matrix's mean diagonal that is added to it."""
    iterations: Count = 1
    """In how many equal cuts it is done; what is left is scored anew, and compensated, after each (TextPruner)."""
    file: NonEmpty | None = None
    """A JSON file with neurons or heads that go before all others, or stay longer than all others, by block:
    `{"neurons": {"0": {"go": [3, 17], "stay": [5]}}, "heads": {"1": {"stay": [0]}}}`. A result is known by the file's content."""

    def complete(self, name: str) -> dict[str, Any]:
        """With the published compensation filled in, without what nothing looks at."""
        given = [key for key in SIZES if getattr(self, key) is not None]
        counts = [key for key in given if key in COUNTS]
        if "experts" in counts and len(counts) > 1:
            raise wrong(f"`experts` beside `{counts[0]}`", "one after the other: a list of two steps", at="experts")
        if len(given) - len(counts) + bool(counts) != 1:
            what = " beside ".join(f"`{key}`" for key in given) or "neither a share nor a number of what stays"
            raise wrong(what, "one of them, such as `parameters: 0.8` or `neurons: 512`", at="parameters")
        of = "both" if len(counts) == 2 else counts[0] if counts else self.of
        if "of" in self.model_fields_set and self.of != of:
            beside = " and ".join(f"`{key}`" for key in counts)
            raise wrong(f"`of: {self.of}` beside {beside}", "leave `of` out", at="of")
        for broken, what, way, key in self._rules(name, of, counts):
            if broken:
                raise wrong(what, way, at=key)
        found = {key: value for key, value in self.model_dump().items() if value is not None} | {"of": of}
        found["compensation"] = self.compensation or self.compensates
        idle = ["damping"] * (found["compensation"] != "least_squares") + ["multiple_of"] * (of in ("heads", "experts"))
        return _without(found, idle)

    def _rules(self, name: str, of: str, counts: Sequence[str]) -> Iterator[tuple[bool, str, str, str]]:
        """What does not go together: whether a rule is broken, in words, what would do, and the key at fault."""
        how, hidden, experts = self.compensation, of == "hidden", of == "experts"
        said, key = f"`compensation: {how}`", "compensation"
        yield how == "rescale" and not hidden, f"{said} without `of: hidden`", "`least_squares` or `none`", key
        flap = "`of: hidden` by flap: it scores what one matrix reads, and every block reads hidden channels"
        yield hidden and name == "flap", flap, "another criterion, such as `activation`", "of"
        before = f"{said} beside `of: hidden`: what went was written by all blocks before"
        yield hidden and how not in (None, "none", "rescale"), before, "`rescale` or `none`", key
        same = "the same channels go in all blocks: leave it out"
        yield hidden and self.uneven, "`uneven` beside `of: hidden`", same, "uneven"
        yield hidden and self.file is not None, "`file` beside `of: hidden`", same, "file"
        single = experts and name in ("flap", "taylor", "activation")
        others = f"one of l1, l2, random, {', '.join(ROUTED)}"
        yield single, f"experts by {name}: it scores single neurons and heads", others, "of"
        # Only a number of neurons or heads can say so: `of` takes nothing else there.
        whole = f"`{of}` by {name}: it scores whole experts"
        yield (
            name in ROUTED and not experts,
            whole,
            "a number of `experts`, or a share to `keep`",
            counts[0] if counts else "of",
        )
        for idle, plain in (("uneven", False), ("iterations", 1), ("multiple_of", 1), ("operations", None)):
            yield experts and getattr(self, idle) != plain, f"`{idle}` beside experts", "leave it out", idle
        yield experts and how not in (None, "none"), f"{said} beside experts", "`none`", key
        several = self.multiple_of > 1
        yield several and bool(counts), "`multiple_of` beside a number", "one of them", "multiple_of"
        means = f"{said} without the means that flap sees"
        yield how == "bias" and name != "flap", means, "`least_squares` or `none`", key
        yield several and self.uneven, "`multiple_of` beside `uneven`", "one of them", "multiple_of"


class Flap(Width):
    """FLAP's settings."""

    compensates: ClassVar[str] = "bias"


class Taylor(Width):
    """The settings of Taylor's criterion."""

    labels: Literal["own", "text", "task"] = "own"
    """Whose loss it is: that of answers drawn from what the model itself says (`own`), of the text's next tokens (`text`; not
    for encoders), or of a classification head on labelled documents (`task`, as TextPruner has it)."""
    source: NonEmpty | None = None
    """With `labels: task`: the documents, in any notation that `calibration` takes, such as `path:train.jsonl`. A result is known
    by the content."""
    field: NonEmpty | None = None
    """The column that holds their text; default: `text`."""
    label: NonEmpty = "label"
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
            return _without(found, own)
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

    needs: ClassVar = {"file": "a JSON file that names what goes, such as heads.json"}

    file: NonEmpty | None = None
    """A JSON file: by kind and block the numbers of those that go, or of those that alone stay:
    `{"neurons": {"0": {"go": [3, 17]}, "1": {"go": [4, 5]}}}`. A result is known by the file's content."""
    compensation: Literal["none", "least_squares"] = "none"
    """What makes up for what went: nothing, or the columns that stay refitted to the calibration text."""
    damping: Positive = 0.01
    """With `least_squares`: the share of the Gram matrix's mean diagonal that is added to it."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what nothing looks at."""
        found = super().complete(name)
        return _without(found, () if self.compensation != "none" else ("damping",))


class RandomCut(Width):
    """The settings of what goes at random: blocks, or neurons and heads."""

    blocks: Count | None = None
    """How many blocks go, in place of what says how many neurons and heads stay."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """With `blocks`, of an encoder-decoder: the stacks that lose blocks."""

    def complete(self, name: str) -> dict[str, Any]:
        """Those of blocks, or those of what goes from within them."""
        if self.blocks is None:
            return _without(super().complete(name), ("stacks",))
        if given := sorted(self.model_fields_set - {"blocks", "stacks"}):
            raise wrong(f"`{given[0]}` beside `blocks`, of which it says nothing", "one of them", at=given[0])
        return {"blocks": self.blocks, "stacks": self.stacks}


def settings() -> dict[str, type[Settings]]:
    """Each criterion's settings, by its name."""
    own: dict[str, type[Settings]] = {"flap": Flap, "taylor": Taylor, "random": RandomCut, NAMED: Listed, GATES: Gates}
    own |= dict.fromkeys(ROUTED, Routed)
    names = (*DEPTH, *WIDTH, *ROUTED, "random", NAMED, GATES)
    return {name: own.get(name, Depth if name in DEPTH else Width) for name in names}


def _without(found: dict[str, Any], idle: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in idle}
