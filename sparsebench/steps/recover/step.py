"""``recover`` as a step of a recipe: what a manifest may say of it, and the pass that makes what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.manifest.schema import Count, NonEmpty, Strict, wrong
from sparsebench.models.families import family_of
from sparsebench.steps.contract import Context, Emit, Settings, Step, of_text, said
from sparsebench.steps.recover import DENSE, OWN, PREDICTS, SEVERAL, teachers


class Reconstruct(Settings):
    """Block by block, each trained on calibration text to give what the dense model's block gives. Zeros stay zeros."""

    train: Literal["weights", "low_rank", "norms"] = "weights"
    """All `weights` of the block; or a product of `rank` that is added to what stays of each matrix, beside norms and biases
    (`low_rank`); or `norms` and biases alone."""
    rank: Count = 16
    """With `low_rank`: columns of the one factor, rows of the other."""
    tokens: Count | None = None
    """At most so many of the calibration text's tokens are read, in whole samples, those held out among them; default: all."""
    epochs: Count = 5
    """How often each block reads the text; the best of them stays, by windows that are held out, or none of them."""
    batch: Count = 4
    """Samples of text in each step."""
    rate: float = 5e-4
    """The learning rate (Adam) of the first step; it falls to 0 in a line."""
    held_out: float = 0.125
    """The share of the text that is not trained on."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at."""
        if not 0 < self.rate < 1:
            raise wrong(f"a rate of {self.rate:g}", "a learning rate between 0 and 1, such as 5e-4", at="rate")
        if not 0 < self.held_out < 1:
            raise wrong(f"held_out is {self.held_out:g}", "a share between 0 and 1, such as 0.125", at="held_out")
        idle = {"rank": self.train != "low_rank", "tokens": self.tokens is None}
        return self.model_dump(exclude={key for key, is_idle in idle.items() if is_idle})


class TrainingSettings(Settings):
    """What training a whole model asks for, whatever its loss."""

    tokens: Count = 1_000_000
    """How many tokens are trained on; the text is read again where it has fewer."""
    source: NonEmpty | None = None
    """The text, in any notation that `calibration` takes; default: the calibration text's. A result is known by the content."""
    field: NonEmpty | None = None
    """The column that holds the text, where the source has columns."""
    target: NonEmpty | None = None
    """The column of what an encoder-decoder is to write; without one, each text is cut in two."""
    length: Count | None = None
    """Tokens a sample; default: 512, or the model's maximum."""
    held_out: float = 0.05
    """The share of the samples that is not trained on: by them the best weights are chosen, or those before the training."""
    evaluations: Count = 8
    """How often the loss on these is looked at."""
    train: Literal["weights", "low_rank", "norms"] = "weights"
    """All `weights`; or a product of `rank` that is added to what stays of each prunable matrix, beside norms and biases
    (`low_rank`); or `norms` and biases alone."""
    rank: Count = 16
    """With `low_rank`: columns of the one factor, rows of the other."""
    batch: Count = 8
    """Samples in each step."""
    rate: float = 1e-4
    """The highest learning rate (AdamW)."""
    warm_up: float = 0.05
    """The share of the steps in which the rate rises to it."""
    decay: Literal["linear", "cosine", "none"] = "linear"
    """How it falls to 0 afterwards, if it does."""
    weight_decay: float = 0.0
    """AdamW's."""
    clip: float = 1.0
    """The longest gradient; a longer one is scaled to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; weights are float32. `auto`: bfloat16 for a bfloat16 checkpoint where the machine has instructions for
    it."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at."""
        _between(self, "rate", 0, 1, "1e-4")
        _between(self, "held_out", 0, 1, "0.05")
        _between(self, "clip", 0, 1e9, "1.0")
        for key in ("warm_up", "weight_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise wrong(f"{key} is {getattr(self, key):g}", "0, or a share below 1, such as 0.05", at=key)
        if self.target is not None and self.field is None:
            raise wrong("`target` without `field`", "`field` names the first column", at="target")
        return self.model_dump(exclude=set() if self.train == "low_rank" else {"rank"})


class Finetune(TrainingSettings):
    """The whole model on its own loss: the next token, masked words, or what an encoder-decoder is to write. Zeros stay zeros."""


LayerPair = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class Distill(TrainingSettings):
    """The whole model, to say what the dense model says. Zeros stay zeros; any shape may have been cut but the vocabulary."""

    teacher: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] = DENSE
    """Who teaches: `dense`, or another model with the same tokenizer, in any notation that a model's `source` takes. A list is
    several at once: the divergences from each are averaged; a list of lists is swept. A result is known by the content."""
    alpha: float = 1.0
    """The share of the loss that is the divergence from the teacher; the rest is the model's own loss (`finetune`'s)."""
    alpha_schedule: Literal["none", "linear_decay", "linear_growth"] = "none"
    """Whether that share falls from `alpha` to 0 while the model is trained, or grows from 0 to it, as TextBrewer's schedulers of
    weights. The loss on what is held out has `alpha` all the time."""
    temperature: float = 1.0
    """By which the logits of both are divided."""
    top_k: Annotated[int, Field(ge=0)] = 64
    """Tokens of which the teacher's probability is looked at, the likeliest; all others count as one. They are asked for
    once and kept on the disk while the training lasts. 0: all of the vocabulary, asked for at every step."""
    match: Literal["none", "hidden_mse", "cos", "attention_mse", "attention_ce", "fsp", "nst"] = "none"
    """What else is compared inside, as TextBrewer calls it: hidden states, attention, or the flow between layers."""
    match_weight: float = 1.0
    """What that counts beside the rest of the loss."""
    layers: Literal["uniform", "last"] | LayerPair | Annotated[list[LayerPair], Field(min_length=1)] = "uniform"
    """The layers that are compared: every one of the model's, with the teacher's spread evenly; or the last; or named pairs of
    the model's and the teacher's, such as `[[1, 2], [2, 4]]`. They are numbered from 1; 0 is what the first one reads, which
    has states alone. A list of such lists is swept."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at."""
        if not 0 <= self.alpha <= 1:
            raise wrong(f"alpha is {self.alpha:g}", "a share between 0 and 1", at="alpha")
        _between(self, "temperature", 0, 1000, "2.0")
        _between(self, "match_weight", 0, 1e6, "1.0")
        if isinstance(self.layers, list) and not all(isinstance(one, list) for one in self.layers):
            raise wrong(f"layers is {self.layers}", "pairs of layers, such as [[1, 2], [2, 4]]", at="layers")
        named = teachers(self.model_dump())
        if len(named) > 1 and self.match != "none":
            raise wrong("`match` beside several teachers", "`match: none`, or one teacher", at="match")
        found = super().complete(name) | {"teacher": named[0] if len(named) == 1 else named}
        idle = ("match_weight", "layers") if self.match == "none" else ()
        idle = (*idle, "alpha_schedule") if self.alpha_schedule == "none" else idle
        return {key: value for key, value in found.items() if key not in idle}

    @classmethod
    def alternatives(cls, given: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """A plain list of teachers, or of pairs of layers, is one setting; lists of such lists are swept."""
        return [together(given)]


class Student(Strict):
    """A smaller model by its numbers; a number that is left out is that of the model that it is made from."""

    layers: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """How many blocks, which begin as evenly spaced blocks of the model that it is made from; or the list of those blocks, such
    as `[0, 4, 8, 12]`. In an encoder-decoder the same in both stacks."""
    hidden: Count | None = None
    """The hidden size."""
    neurons: Count | None = None
    """Neurons of each feed-forward part."""
    heads: Count | None = None
    """Heads of each attention."""
    key_heads: Count | None = None
    """Heads of keys and values; default: in the proportion of the model that it is made from."""
    head_size: Count | None = None
    """The size of each head, where config.json has a key for it."""
    narrow: Literal["sliced", "random"] = "sliced"
    """How a tensor begins that is smaller than the original: from evenly spaced rows and columns of it, or drawn at random."""

    def checked(self) -> None:
        """Raises PydanticCustomError where nothing is described, or numbers do not go together."""
        if not self.model_dump(exclude_none=True, exclude={"narrow"}):
            raise wrong("`student` names no number", "what is smaller, such as `layers: 6`", at="student")
        if isinstance(self.layers, list) and sorted(set(self.layers)) != self.layers:
            raise wrong(f"layers are {self.layers}", "the teacher's blocks in order, each once", at="student")
        if self.heads and self.key_heads and self.heads % self.key_heads:
            raise wrong(f"{self.heads} heads beside {self.key_heads} key_heads", "a divisor of `heads`", at="student")


class DistillInto(Distill):
    """The whole model, or a smaller `student` of it, to say what the dense model says. Zeros stay zeros; any shape may have been
    cut but the vocabulary."""

    student: Student | None = None
    """A smaller model that is trained in its place and begins with weights taken from it, such as `{layers: 6, hidden: 384}`. To
    have a criterion choose what goes, use `shrink` as a step before."""

    def complete(self, name: str) -> dict[str, Any]:
        """Without what is not looked at."""
        found = super().complete(name)
        if self.student is None:
            return {key: value for key, value in found.items() if key != "student"}
        self.student.checked()
        return found | {"student": self.student.model_dump(exclude_none=True)}


def together(given: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """The values of a sweep, with a plain list of teachers, or of pairs of layers, as one of them."""
    named, layers = given.get("teacher", ()), given.get("layers", ())
    several = len(named) > 1 and all(isinstance(one, str) for one in named)
    pairs = layers and all(isinstance(one, list) and isinstance(one[0], int) for one in layers)
    return {**given, **({"teacher": [list(named)]} if several else {}), **({"layers": [list(layers)]} if pairs else {})}


def _between(own: Settings, key: str, low: float, high: float, example: str) -> None:
    value = getattr(own, key)
    if not low < value < high:
        raise wrong(f"{key} is {value:g}", f"a number between {low:g} and {high:g}, such as {example}", at=key)


def settings() -> dict[str, type[Settings]]:
    """Each way's settings, by its name."""
    return {"reconstruct": Reconstruct, "finetune": Finetune, "distill": DistillInto}


def label(step: Step) -> str:
    """``distill tokens=100000``: what differs from the defaults, the text by its name where it is not the usual one."""
    return " ".join([step.name, *unusual(step.settings, settings()[step.name])])


def unusual(own: Mapping[str, Any], kind: type[Settings]) -> list[str]:
    """The settings of a training that differ from their defaults, each in a word."""
    fields = kind.model_fields
    told = {key: value for key, value in own.items() if key in fields and value != fields[key].default}
    named = told.pop("source", None)
    first = [name] if named and (name := text_name(named)) else []
    if "teacher" in told:
        first.append(taught(own))
    if student := told.pop("student", None):
        first.append(
            "into " + " ".join(f"{key}={_listed(value)}" for key, value in student.items() if value != "sliced")
        )
    return first + said({key: value for key, value in told.items() if key not in ("field", "target", "teacher")})


def text_name(named: str) -> str:
    """The name of a text that a step reads; empty where it is the usual one."""
    from sparsebench.steps.calibration import DEFAULT

    text = of_text(named)
    return text.name if text.source != DEFAULT.source else ""


def taught(own: Mapping[str, Any]) -> str:
    """``taught by dense and wide``."""
    return "taught by " + " and ".join(of_text(one).name for one in teachers(own))


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def passes(step: Step, blocks: int) -> float:
    """A forward and a backward pass, of about twice the work, an epoch; the dense block's, and those before and behind."""
    return float(3 * step.settings["epochs"] + 3) if step.name == "reconstruct" else 0.0


def at_most(step: Step) -> float:
    """Tokens of the calibration text that are read."""
    return float(step.settings.get("tokens") or "inf")


def trains(step: Step) -> float:
    """Tokens in forward passes: three for each that is trained on, what is held out, and the teachers', as if each model were as
    large as the dense one."""
    if step.name == "reconstruct":
        return 0.0
    own = step.settings
    return float(own["tokens"] * (3 + _asked(step) + own["held_out"] * (own["evaluations"] + 1)))


def _asked(step: Step) -> int:
    """How many teachers there are."""
    return 0 if step.name in OWN else len(teachers(step.settings))


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Why the model of a config.json cannot be trained as a step asks, and the way out, as far as that tells."""
    own = step.settings
    if "alpha" not in own or family_of(config) != "encoder":
        return "", ""
    if len(teachers(own)) > 1:
        return SEVERAL
    return PREDICTS if own["alpha"] < 1 or "alpha_schedule" in own else ("", "")


def holds(step: Step) -> float:
    """Weights, gradients and two moments in float32, the best weights, and the dense model; of ADMM a sparse copy, multipliers,
    and once more the weights; of movement scores, and the weights with those that are gone."""
    if step.name == "reconstruct":
        return 0.0
    more = 12.0 * (step.name == "elsa") + 8.0 * (step.settings.get("by") == "movement")
    return 20.0 + 4.0 * (min(1, _asked(step)) if step.settings.get("top_k") else _asked(step)) + more


def run(
    parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit, pruner: Callable[..., Any] | None = None
) -> None:
    """Every recovered model of one pass, each into its folder; by a ``pruner`` weights go on the way (``prune: gradual``).

    Raises ModelError for a quantized parent, and for one that leaves weights out but by ``reconstruct`` of grouped neurons;
    UnsupportedError where its blocks or its tokens are not the dense model's, or an oracle chooses its neurons.
    """
    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.grouped import experts_of
    from sparsebench.models.quantized import FLOAT, encoding_of
    from sparsebench.models.skipping import skips
    from sparsebench.steps.calibration import first
    from sparsebench.steps.recover import whole
    from sparsebench.steps.recover.reconstruct import Reconstruction
    from sparsebench.steps.trim.weights import NESTED, SIZE

    name = next(iter(targets)).name
    if context.dense is None or (name == "reconstruct" and context.read is None):
        raise ModelError(f"{name} needs the dense model and calibration text", "use it in a manifest")
    checkpoint, dense = Checkpoint(parent), Checkpoint(context.dense)
    if encoding_of(checkpoint.config) != FLOAT:
        raise ModelError(f"{parent}: its weights are quantized", "recover first, then quantize")
    if skips(checkpoint.config):
        grouped = experts_of(checkpoint.config)
        if name != "reconstruct" or grouped is None:
            raise ModelError(f"{parent}: it leaves weights out already", "recover first, then leave weights out")
        if grouped.router == "oracle":
            raise UnsupportedError(
                f"{parent}: its oracle chooses by weights that would be trained", "another `router` in `moefy`"
            )
    # Where neither config.json says it, nothing is known to differ.
    sizes = {{**(one.config.get(NESTED) or {}), **one.config}.get(SIZE) for one in (checkpoint, dense)}
    if name not in OWN and len(sizes) > 1:
        raise UnsupportedError("the vocabulary is not the dense model's", "recover first, then trim")
    text = context.read() if context.read and name == "reconstruct" else None
    for number, (step, folder) in enumerate(targets.items()):
        try:
            if text is None:
                emit(step, whole.run(checkpoint, dense, step, context, folder, pruner))
            else:
                read = first(text, step.settings["tokens"]) if "tokens" in step.settings else text
                job = Reconstruction(dense, checkpoint, read, step, context, (number, len(targets)))
                emit(step, job.run(folder))
        except SparsebenchError as error:
            emit(step, error)
