"""The settings of ``shrink`` in a manifest, for each criterion."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sparsebench.errors import Refusal, UnsupportedError
from sparsebench.manifest.schema import Count, NonEmpty, Share, wrong
from sparsebench.models.files.families import PER_LAYER, dimensions, family_of, has_classifier
from sparsebench.models.shape.architectures import architecture_of
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Settings, setting_words
from sparsebench.steps.shrink.choosing import DOCUMENTS, LENGTH, REAP, kinds_of, removable_blocks
from sparsebench.steps.shrink.labelled import labels_problem

DEPTH = ("sleb", "influence", "angular", "first", "last")
WIDTH = ("flap", "taylor", "activation", "l2")
SHARES, COUNTS = ("parameters", "keep"), ("heads", "neurons", "experts")
"""The settings that say how much stays, as a share or as numbers."""
LABELLED = ("source", "field", "label", "documents")
"""The settings of labelled documents."""
SLEB_PASSES = 16
"""Passes over the text for each block that SLEB removes from 32: it tries each, and half of the blocks run on average."""
_NAMED_IN_LABELS = ("multiple_of", "labels", "iterations", "uneven")
"""Settings that a label states where they differ from their defaults."""
_PART = Annotated[Share, Field(gt=0, le=1)]


class Shrink(Settings):
    """What all criteria share: removed parts leave a smaller model."""

    reads_floats: ClassVar[bool] = True
    calculates_with: ClassVar[tuple[str, ...]] = ("transformers",)
    file_keys: ClassVar[tuple[str, ...]] = ("file",)
    reading: ClassVar[tuple[str, ...]] = ("sleb", "influence", "angular", "flap", "activation", REAP)
    """Criteria that read calibration text."""

    def parts(self) -> Any:
        """Return what is removed: `blocks`, or a kind of axis as the setting `of` has it; None where a file says it."""
        return getattr(self, "of", None)

    def refits(self) -> bool:
        """Return whether the columns that stay are refitted to the calibration text."""
        return getattr(self, "compensation", None) == "least_squares"

    def by_labels(self) -> bool:
        """Return whether the labels of documents give the loss."""
        return getattr(self, "labels", None) == "task"

    def reads_text(self) -> bool:
        return self.name in self.reading or self.refits()

    def on_device(self) -> bool:
        return False

    def pass_key(self) -> Hashable:
        """Return whether blocks go and whether text is read, too: random cuts differ in both."""
        return self.name, self.parts() == "blocks", self.reads_text()

    def reshapes(self) -> bool:
        return True

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse an architecture that is not declared, and parts that this one cannot lose."""
        try:
            architecture = architecture_of(config)
        except UnsupportedError as error:
            return Refusal(error.message, error.hint or "")
        parts = self.parts()
        for kind in kinds_of(parts) if parts else ():
            if not architecture.loses(kind):
                problem = f"it has no {kind} that can go"
                return Refusal(f"{config.get('model_type')}: {problem}", architecture.alternative(kind))
        return super().refuses(config)

    def refuses_shape(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse more blocks than the model can lose."""
        if self.parts() != "blocks":
            return super().refuses_shape(config)
        size, family = dimensions(config), str(family_of(config))
        counts = {family: size.layers}
        if family == "encoder-decoder":
            counts = {"encoder": size.layers, "decoder": size.decoder_layers or size.layers}
        try:
            removable_blocks(counts, self, architecture_of(config).pinned)
        except UnsupportedError as error:
            return Refusal(error.message, error.hint or "")
        return None


def uneven_refusal(config: Mapping[str, Any]) -> Refusal | None:
    """Return why the widths of this model's blocks cannot differ; None where they can."""
    if architecture_of(config).mixture:
        problem = "config.json has no key for an expert or a block of a mixture with fewer elements"
    elif family_of(config) == "encoder-decoder":
        problem = f"`{PER_LAYER}` numbers the blocks of one stack, and there are two"
    else:
        return None
    return Refusal(f"{config.get('model_type')}: uneven: {problem}", "leave `uneven` out")


class Depth(Shrink):
    """Removes whole blocks. Those that stay are renumbered without gaps, and stock transformers loads the model."""

    needs: ClassVar = {"blocks": "how many blocks go, such as 4"}

    blocks: Count | None = None
    """The number of blocks to remove; in an encoder-decoder, from each stack that `stacks` names."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """The stacks of an encoder-decoder that lose blocks."""

    def parts(self) -> Any:
        return "blocks"

    def forward_tokens(self, text: int) -> float:
        """Return the tokens that are read; SLEB reads the text again for each block that it tries."""
        return float(SLEB_PASSES * (self.blocks or 0) * text) if self.name == "sleb" else 2.0 * text

    def bytes_per_parameter(self) -> float:
        """Return 4 for SLEB: the model runs whole, in float32 at most, rather than block by block."""
        return 4.0 if self.name == "sleb" else 0.0

    def describe(self) -> str:
        """Return a label such as ``sleb -4 blocks``."""
        return _without_blocks(self.name, self.blocks, self.stacks)


class Width(Shrink):
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

    def completed(self) -> Self:
        """Check the settings against each other, and fill in what is cut and the published compensation."""
        amounts = [key for key in (*SHARES, *COUNTS) if getattr(self, key) is not None]
        counts = [key for key in amounts if key in COUNTS]
        if "experts" in counts and len(counts) > 1:
            raise wrong(f"`experts` beside `{counts[0]}`", "one after the other: a list of two steps", at="experts")
        if len(amounts) - len(counts) + bool(counts) != 1:
            problem = " beside ".join(f"`{key}`" for key in amounts) or "neither a share nor a number of what stays"
            raise wrong(problem, "one of them, such as `parameters: 0.8` or `neurons: 512`", at="parameters")
        of = "both" if len(counts) == 2 else (counts[0] if counts else self.of)
        if "of" in self.model_fields_set and self.of != of:
            count_keys = " and ".join(f"`{key}`" for key in counts)
            raise wrong(f"`of: {self.of}` beside {count_keys}", "leave `of` out", at="of")
        self._check_experts(of, counts)
        if self.multiple_of > 1 and counts:
            raise wrong("`multiple_of` beside a number", "one of them", at="multiple_of")
        if self.compensation == "bias" and self.name != "flap":
            problem = "`compensation: bias` works only with flap, which measures the mean outputs"
            raise wrong(problem, "`least_squares` or `none`", at="compensation")
        if self.multiple_of > 1 and self.uneven:
            raise wrong("`multiple_of` beside `uneven`", "one of them", at="multiple_of")
        return super().completed().model_copy(update={"of": of, "compensation": self.compensation or self.compensates})

    def idle(self) -> Collection[str]:
        absent = [key for key in type(self).model_fields if getattr(self, key) is None]
        return (*absent, *(("multiple_of",) if self.of in ("heads", "experts") else ()))

    def _check_experts(self, of: str, counts: Collection[str]) -> None:
        """Check that experts go by a criterion that scores them, and with the settings that experts have."""
        if self.name == REAP and of != "experts":
            # Only a number of `neurons` or `heads` can do this: `of` accepts only experts here.
            hint = "a number of `experts`, or a share to `keep`"
            raise wrong(f"`{of}` by {REAP}: it scores whole experts", hint, at=next(iter(counts), "of"))
        if of != "experts":
            return
        if self.name in ("flap", "taylor", "activation"):
            problem = f"experts by {self.name}: it scores single neurons and heads"
            raise wrong(problem, f"l2, random or {REAP}", at="of")
        for key, default in (("uneven", False), ("iterations", 1), ("multiple_of", 1)):
            if getattr(self, key) != default:
                raise wrong(f"`{key}` beside experts", "leave it out", at=key)
        if self.compensation not in (None, "none"):
            raise wrong(f"`compensation: {self.compensation}` beside experts", "`none`", at="compensation")

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        if refusal := super().refuses(config):
            return refusal
        if self.compensation == "bias":
            outputs = [{"heads": "o", "neurons": "down"}[kind] for kind in kinds_of(self.of)]
            if without := [name for name in outputs if name in architecture_of(config).unbiased]:
                matrices, model_type = " and ".join(without), config.get("model_type")
                problem = (
                    f"compensation: bias: {model_type} has no bias beside {matrices}, and transformers would ignore one"
                )
                return Refusal(problem, "`compensation: least_squares` or `none`")
        return uneven_refusal(config) if self.uneven else None

    def draws(self) -> bool:
        return self.name == "random"

    def forward_tokens(self, text: int) -> float:
        return 2.0 * text * self.iterations

    def describe(self) -> str:
        """Return a label such as ``flap/both to 0.8 of parameters``."""
        counts = [key for key in COUNTS if getattr(self, key) is not None]
        numbers = [f"{getattr(self, key)} {key}" if self.of == "both" else str(getattr(self, key)) for key in counts]
        share = f"{self.parameters:.4g} of parameters" if self.parameters is not None else f"{self.keep or 1:.4g}"
        return ", ".join([f"{self.name}/{self.of} to {' and '.join(numbers) or share}", *_unusual_words(self)])


class Flap(Width):
    """The settings of FLAP."""

    compensates: ClassVar[str] = "bias"


class Taylor(Width):
    """The settings of Taylor's criterion."""

    text_keys: ClassVar = {"source": ("field", "target")}
    own_text_only: ClassVar = True

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

    def completed(self) -> Self:
        """Check that labelled documents are named where, and only where, they are read."""
        key = next((key for key in LABELLED if key in self.model_fields_set), "")
        if self.labels != "task" and key:
            raise wrong(f"`{key}` without `labels: task`", "leave it out, or say `labels: task`", at=key)
        if self.labels == "task" and self.source is None:
            raise wrong("`labels: task` without `source`", "labelled documents, such as path:train.jsonl", at="labels")
        return super().completed()

    def idle(self) -> Collection[str]:
        return (*super().idle(), *(LABELLED if self.labels != "task" else ()))

    def reads_text(self) -> bool:
        """Return whether the text is read: documents are read in its place."""
        return not self.by_labels() or self.refits()

    def runs_model(self) -> bool:
        return True

    def draws(self) -> bool:
        """Return whether answers or documents are drawn."""
        return self.labels != "text"

    def version(self) -> int:
        """Return 2 for even widths, whose score includes the rows that make a neuron since then."""
        return 1 if self.uneven else 2

    def forward_tokens(self, text: int) -> float:
        """Return the tokens of the text or the documents. The backward pass costs as much as a forward one, because no
        weight has a gradient."""
        return 2.0 * self.iterations * (LENGTH * self.documents if self.by_labels() else text)

    def bytes_per_parameter(self) -> float:
        """Return 4: the model runs whole, in float32 at most."""
        return 4.0

    def describe(self) -> str:
        """Return a label such as ``taylor/both to 0.8 of parameters, labels=task, train.jsonl``."""
        changed = self.unusual()
        named = [key for key in ("field", "label", "documents") if key in changed]
        source = [Reference.parse(self.source).name] if self.source else []
        return ", ".join([super().describe(), *source, *setting_words({key: changed[key] for key in named})])

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        if self.labels == "text" and (family_of(config) == "encoder" or has_classifier(config)):
            return Refusal("labels: text: this model predicts no next token of a text", "`labels: own`")
        if self.by_labels() and (problem := labels_problem(config)):
            return Refusal(problem, "`labels: own`, or a checkpoint that was fine-tuned to classify")
        return super().refuses(config)


class Reap(Width):
    """Removes whole experts: those that the calibration text uses least."""

    of: Literal["experts"] = "experts"  # type: ignore[assignment]
    """What is removed: whole experts only."""


class Listed(Shrink):
    """Removes the neurons and heads that a file chooses, and no others."""

    needs: ClassVar = {"file": "a JSON file that names what goes, such as heads.json"}
    iterations: ClassVar[int] = 1
    uneven: ClassVar[bool] = False

    file: NonEmpty | None = None
    """A JSON file that lists, by kind and block, the elements to remove (`go`) or the only ones to keep (`stay`):
    `{"neurons": {"0": {"go": [3, 17]}, "1": {"go": [4, 5]}}}`. The content, not the name, identifies a result."""
    compensation: Literal["none", "least_squares"] = "none"
    """How the removal is compensated: not at all, or by refitting the columns that stay to the calibration text."""

    def describe(self) -> str:
        """Return a label such as ``shrink heads.json``."""
        compensation = "" if self.compensation == "none" else f", {self.compensation.replace('_', ' ')}"
        return f"shrink {Reference.parse(str(self.file)).name}{compensation}"


class RandomCut(Width):
    """Removes whole blocks, neurons, heads or experts at random."""

    blocks: Count | None = None
    """The number of blocks to remove, in place of the settings that say how many neurons and heads stay."""
    stacks: Literal["both", "encoder", "decoder"] = "both"
    """With `blocks`: the stacks of an encoder-decoder that lose blocks."""

    def completed(self) -> Self:
        if self.blocks is None:
            return super().completed()
        if idle_keys := sorted(self.model_fields_set - {"blocks", "stacks"}):
            raise wrong(f"`{idle_keys[0]}` has no effect together with `blocks`", "one of them", at=idle_keys[0])
        return self

    def idle(self) -> Collection[str]:
        if self.blocks is None:
            return (*super().idle(), "stacks")
        return type(self).model_fields.keys() - {"blocks", "stacks"}

    def parts(self) -> Any:
        return "blocks" if self.blocks else super().parts()

    def describe(self) -> str:
        """Return a label such as ``random -4 blocks`` or ``random/neurons to 0.5``."""
        return _without_blocks(self.name, self.blocks, self.stacks) if self.blocks else super().describe()


def _without_blocks(name: str, blocks: int | None, stacks: str) -> str:
    of_stacks = "" if stacks == "both" else f" of the {stacks}"
    return f"{name} -{blocks} blocks{of_stacks}"


def _unusual_words(cut: Width) -> list[str]:
    """Return what a label says of the compensation, the file and other settings that are not usual."""
    compensation = "" if cut.compensation in (None, cut.compensates) else cut.compensation.replace("_", " ")
    file = Reference.parse(cut.file).name if cut.file else ""
    changed = cut.unusual()
    return [
        *filter(None, (compensation, file)),
        *(f"{key}={changed[key]}" for key in _NAMED_IN_LABELS if key in changed),
    ]
