"""The settings of ``shrink`` in a manifest, for each criterion."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.manifest.schema import Count, NonEmpty, Share, wrong
from sparsebench.steps.contract import Settings
from sparsebench.steps.recover.step import Distill
from sparsebench.steps.shrink.choosing import DOCUMENTS, REAP

DEPTH = ("sleb", "influence", "angular", "first", "last")
WIDTH = ("flap", "taylor", "activation", "l2")
GATES, NAMED = "gates", "list"
"""The criteria that are learned in a training, and that remove what a file names."""
SHARES, COUNTS = ("parameters", "keep"), ("heads", "neurons", "experts")
"""The settings that say how much stays, as a share or as numbers."""
_PART = Annotated[Share, Field(gt=0, le=1)]


class Depth(Settings):
    """Removes whole blocks. Those that stay are renumbered without gaps, and stock transformers loads the model."""

    needs: ClassVar = {"blocks": "how many blocks go, such as 4"}

    blocks: Count | None = None
    """The number of blocks to remove; in an encoder-decoder, from each stack that `stacks` names."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """The stacks of an encoder-decoder that lose blocks."""


class Width(Settings):
    """Removes neurons of the feed-forward parts and attention heads, as many from every block or where they matter
    least. Or removes whole experts, as many from every block."""

    compensates: ClassVar[str] = "none"
    former: ClassVar = {"damping": 0.01}

    parameters: _PART | None = None
    """The share of the blocks' parameters that stays, above 0 and at most 1: 0.8 removes a fifth of them. Alternatives
    to this are `keep`, `neurons`, `heads` and `experts`."""
    keep: _PART | None = None
    """The share of the neurons, heads or experts that stays."""
    neurons: Count | None = None
    """The number of neurons that stay in each block or expert, such as 512; together with `heads`, both are cut."""
    heads: Count | None = None
    """The number of heads that stay in each attention, as config.json counts them. They go in whole groups that share
    keys and values."""
    experts: Count | None = None
    """The number of experts that stay in each block of a mixture, at least as many as a token is routed to."""
    of: Literal["neurons", "heads", "both", "experts"] = "both"
    """What is removed; `neurons`, `heads` and `experts`, where given, decide it. Heads go in whole groups that share
    keys and values. With `both`, the same share of neurons and heads goes, and neurons make up for what whole groups
    leave over. `experts` go with their rows of the router."""
    uneven: bool = False
    """Whether the elements are ranked across all blocks, so that some blocks lose more than others; otherwise each
    loses the same number. Such a model is written in transformers' `per_layer_config`, which only sparsebench loads.
    Not for encoder-decoders or mixtures of experts."""
    multiple_of: Count = 1
    """The number of neurons that stay is rounded to a multiple of this."""
    compensation: Literal["none", "bias", "least_squares"] | None = None
    """How the removal is compensated. `none`: not at all. `bias`: by a bias that holds the removed elements' mean
    output, where the model can have one (only with flap, which measures the means). `least_squares`: by refitting the
    columns that stay to the calibration text. Default, as published: `bias` for flap and `none` for the others."""
    iterations: Count = 1
    """The number of equal cuts. After each, what is left is compensated, and scored anew for the next (TextPruner)."""
    file: NonEmpty | None = None
    """A JSON file that names neurons or heads by block: those to remove before all others (`go`), and those to keep
    longer than all others (`stay`): `{"neurons": {"0": {"go": [3, 17], "stay": [5]}}, "heads": {"1": {"stay": [0]}}}`.
    The file's content, not its name, identifies a result."""

    def complete(self, name: str) -> dict[str, Any]:
        """Check the settings against each other; return those that count, with the published compensation filled in."""
        given = [key for key in (*SHARES, *COUNTS) if getattr(self, key) is not None]
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
        return _without(found, ["multiple_of"] if of in ("heads", "experts") else [])

    def _rules(self, name: str, of: str, counts: Sequence[str]) -> Iterator[tuple[bool, str, str, str]]:
        """Yield, for each rule about settings that exclude each other: whether it is broken, what is wrong, what to
        write instead, and the key at fault."""
        how, experts = self.compensation, of == "experts"
        said, key = f"`compensation: {how}`", "compensation"
        single = experts and name in ("flap", "taylor", "activation")
        yield single, f"experts by {name}: it scores single neurons and heads", f"l2, random or {REAP}", "of"
        # Only a number of `neurons` or `heads` can break this rule: `of` accepts only experts here.
        whole, at = f"`{of}` by {name}: it scores whole experts", counts[0] if counts else "of"
        yield name == REAP and not experts, whole, "a number of `experts`, or a share to `keep`", at
        for idle, plain in (("uneven", False), ("iterations", 1), ("multiple_of", 1)):
            yield experts and getattr(self, idle) != plain, f"`{idle}` beside experts", "leave it out", idle
        yield experts and how not in (None, "none"), f"{said} beside experts", "`none`", key
        several = self.multiple_of > 1
        yield several and bool(counts), "`multiple_of` beside a number", "one of them", "multiple_of"
        means = f"{said} works only with flap, which measures the mean outputs"
        yield how == "bias" and name != "flap", means, "`least_squares` or `none`", key
        yield several and self.uneven, "`multiple_of` beside `uneven`", "one of them", "multiple_of"


class Flap(Width):
    """The settings of FLAP."""

    compensates: ClassVar[str] = "bias"


class Taylor(Width):
    """The settings of Taylor's criterion."""

    labels: Literal["own", "text", "task"] = "own"
    """The targets of the loss: answers drawn from the model's own outputs (`own`), the text's next tokens (`text`; not
    for encoders), or the labels of documents, through a classification head (`task`, as in TextPruner)."""
    source: NonEmpty | None = None
    """With `labels: task`: the documents, in any notation that `calibration` takes, such as `path:train.jsonl`. Their
    content, not this name, identifies a result."""
    field: NonEmpty | None = None
    """The column that holds the documents' text; default: `text`."""
    label: NonEmpty = "label"
    """The column that holds the documents' labels, as config.json's `id2label` names them or as numbers from 0."""
    documents: Count = DOCUMENTS
    """The number of documents to read; all where there are fewer."""

    def complete(self, name: str) -> dict[str, Any]:
        """Check and return the settings, those of labelled documents only with `labels: task`."""
        own = ("source", "field", "label", "documents")
        given = [key for key in own if key in self.model_fields_set]
        if self.labels != "task" and given:
            raise wrong(f"`{given[0]}` without `labels: task`", "leave it out, or say `labels: task`", at=given[0])
        found = super().complete(name)
        if self.labels != "task":
            return _without(found, own)
        if self.source is None:
            raise wrong("`labels: task` without `source`", "labelled documents, such as path:train.jsonl", at="labels")
        return found


class Reap(Width):
    """Removes whole experts: those that the calibration text uses least."""

    of: Literal["experts"] = "experts"  # type: ignore[assignment]
    """What is removed: whole experts only."""


class Listed(Settings):
    """Removes the neurons and heads that a file chooses, and no others."""

    needs: ClassVar = {"file": "a JSON file that names what goes, such as heads.json"}

    file: NonEmpty | None = None
    """A JSON file that lists, by kind and block, the elements to remove (`go`) or the only ones to keep (`stay`):
    `{"neurons": {"0": {"go": [3, 17]}, "1": {"go": [4, 5]}}}`. The content, not the name, identifies a result."""
    compensation: Literal["none", "least_squares"] = "none"
    """How the removal is compensated: not at all, or by refitting the columns that stay to the calibration text."""


class RandomCut(Width):
    """Removes whole blocks, neurons, heads or experts at random."""

    blocks: Count | None = None
    """The number of blocks to remove, in place of the settings that say how many neurons and heads stay."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """With `blocks`: the stacks of an encoder-decoder that lose blocks."""

    def complete(self, name: str) -> dict[str, Any]:
        """Return `blocks` and `stacks` alone where `blocks` is given, otherwise what ``Width`` returns."""
        if self.blocks is None:
            return _without(super().complete(name), ("stacks",))
        if given := sorted(self.model_fields_set - {"blocks", "stacks"}):
            raise wrong(f"`{given[0]}` has no effect together with `blocks`", "one of them", at=given[0])
        return {"blocks": self.blocks, "stacks": self.stacks}


class Gates(Distill):
    """Learns a gate for each neuron and head while the whole model is trained, and removes those whose gates close."""

    parameters: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """The share of the blocks' parameters that stays, between 0 and 1. The alternative is `keep`."""
    keep: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """The share of the neurons, or of the heads, that stays."""
    of: Literal["neurons", "heads", "both"] = "both"
    """What is removed. Heads go in whole groups that share keys and values. With `both`, the same share of neurons and
    heads goes, and neurons make up for what whole groups leave over."""
    uneven: bool = False
    """Whether one Lagrangian covers all blocks, so that some lose more than others; otherwise each block has its own.
    Such a model is written in transformers' `per_layer_config`, which only sparsebench loads. Not for
    encoder-decoders."""

    def complete(self, name: str) -> dict[str, Any]:
        """Check the settings; return them with the one of `parameters` and `keep` that is given."""
        given = [key for key in SHARES if getattr(self, key) is not None]
        if len(given) != 1:
            what = " beside ".join(f"`{key}`" for key in given) or "no share of what stays"
            raise wrong(what, "one of them, such as `parameters: 0.8`", at="parameters")
        found = super().complete(name)
        return {key: value for key, value in found.items() if key not in SHARES or key in given}


def settings() -> dict[str, type[Settings]]:
    """Return each criterion's class of settings, by the criterion's name."""
    own: dict[str, type[Settings]] = {"flap": Flap, "taylor": Taylor, "random": RandomCut, NAMED: Listed, GATES: Gates}
    own[REAP] = Reap
    names = (*DEPTH, *WIDTH, REAP, "random", NAMED, GATES)
    return {name: own.get(name, Depth if name in DEPTH else Width) for name in names}


def _without(found: dict[str, Any], idle: Collection[str]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in idle}
