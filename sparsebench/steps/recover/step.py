"""``recover`` as a step of a recipe: its settings in a manifest, and the pass that makes the recovered models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from sparsebench.errors import ModelError, SparsebenchError, UnsupportedError
from sparsebench.manifest.schema import Count, NonEmpty, Strict, wrong
from sparsebench.models.files.families import family_of
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Context, Emit, Settings, Step, said, unusual
from sparsebench.steps.recover import DENSE, PREDICTS, SEVERAL, teachers

if TYPE_CHECKING:
    from sparsebench.models.files.checkpoint import Checkpoint


class Reconstruct(Settings):
    """Train one block after another on calibration text to give the dense model's block outputs. Zeros stay zeros."""

    former: ClassVar = {"train": "weights"}

    tokens: Count | None = None
    """The most tokens of the calibration text that are read, in whole samples, held-out ones included; default: all."""
    epochs: Count = 5
    """The most epochs for each block; its best weights by the held-out text, or the original ones, are kept."""
    batch: Count = 4
    """Samples of text in each step."""
    rate: float = 5e-4
    """The learning rate (Adam) of the first step; it falls to 0 linearly."""
    held_out: float = 0.125
    """The share of the text that is not trained on."""

    def complete(self, name: str) -> dict[str, Any]:
        """Return the settings without those that this step ignores. Raises PydanticCustomError for one out of range."""
        _between(self, "rate", 0, 1, "5e-4")
        _between(self, "held_out", 0, 1, "0.125")
        return self.model_dump(exclude={"tokens"} if self.tokens is None else None)


class TrainingSettings(Settings):
    """The settings of every training of a whole model, whatever its loss."""

    former: ClassVar = {"train": "weights", "decay": "linear"}

    tokens: Count = 1_000_000
    """How many tokens are trained on; a shorter text is read again."""
    source: NonEmpty | None = None
    """The text, in any notation that `calibration` takes; default: the manifest's calibration text. A result is
    identified by the text's content, not by its name."""
    field: NonEmpty | None = None
    """The column that holds the text, where the source has columns."""
    target: NonEmpty | None = None
    """The column of what an encoder-decoder is to write; without one, each text is cut in two."""
    length: Count | None = None
    """Tokens in a sample; default: 512, or the model's maximum if that is less."""
    held_out: float = 0.05
    """The share of the samples that is not trained on. The weights with the least loss on it are kept, even if they
    are those from before the training."""
    evaluations: Count = 8
    """How often the loss on the held-out samples is measured during the training, besides once before it."""
    batch: Count = 8
    """Samples in each step."""
    rate: float = 1e-4
    """The highest learning rate (AdamW)."""
    warm_up: float = 0.05
    """The share of the steps during which the learning rate rises to `rate`; then it falls to 0 linearly."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    clip: float = 1.0
    """The largest norm of the gradient; a larger gradient is scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of matrix products; weights are float32. `auto`: bfloat16 for a bfloat16 checkpoint where the
    machine has instructions for it."""

    def complete(self, name: str) -> dict[str, Any]:
        """Return the settings without those that this step ignores.

        Raises PydanticCustomError for one out of range, or a `target` without a `field`.
        """
        _between(self, "rate", 0, 1, "1e-4")
        _between(self, "held_out", 0, 1, "0.05")
        _between(self, "clip", 0, 1e9, "1.0")
        for key in ("warm_up", "weight_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise wrong(f"{key} is {getattr(self, key):g}", "0, or a share below 1, such as 0.05", at=key)
        if self.target is not None and self.field is None:
            raise wrong("`target` without `field`", "`field` names the first column", at="target")
        return self.model_dump()


class Finetune(TrainingSettings):
    """Train the whole model on its own loss: next token, masked words, or decoder output. Zeros stay zeros."""


LayerPair = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class Distill(TrainingSettings):
    """Train the whole model to reproduce the outputs of the dense model or other teachers. Zeros stay zeros. The model
    may be smaller in any dimension but the vocabulary."""

    teacher: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] = DENSE
    """The teacher: `dense`, or another model with the same tokenizer, in any notation that a model's `source` takes. A
    list names several teachers at once, and their divergences are averaged; a list of lists is swept. A result is
    identified by the teachers' content."""
    alpha: float = 1.0
    """The share of the loss that is the divergence from the teacher; the rest is the model's own loss (`finetune`'s)."""
    alpha_schedule: Literal["none", "linear_decay", "linear_growth"] = "none"
    """Whether that share falls from `alpha` to 0 during the training (`linear_decay`) or grows from 0 to `alpha`
    (`linear_growth`), as in TextBrewer's weight schedulers. The loss on held-out text always uses `alpha`."""
    temperature: float = 1.0
    """The number by which the logits of model and teacher are divided."""
    top_k: Annotated[int, Field(ge=0)] = 64
    """How many of the teacher's likeliest tokens are compared at each position; all others count as one token. Without
    a `match`, they are computed once and kept on disk during the training. 0: the whole vocabulary, computed at every
    step."""
    match: Literal["none", "hidden_mse", "cos", "attention_mse", "attention_ce", "fsp", "nst"] = "none"
    """What else is compared, by TextBrewer's names: hidden states, attention, or the flow between layers."""
    match_weight: float = 1.0
    """The weight of that comparison in the loss."""
    layers: Literal["uniform", "last"] | LayerPair | Annotated[list[LayerPair], Field(min_length=1)] = "uniform"
    """The layers that `match` compares: each layer of the model with evenly spaced layers of the teacher (`uniform`);
    the `last` of both; or pairs of a layer of the model and one of the teacher, such as `[[1, 2], [2, 4]]`. Layers are
    numbered from 1. 0 is the input of the first one, which has hidden states but no attention. A list of such lists is
    swept."""

    def complete(self, name: str) -> dict[str, Any]:
        """Return the settings without those that this step ignores; one teacher in a list becomes a plain name.

        Raises PydanticCustomError for a setting out of range, or settings that exclude each other.
        """
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
        """Return the sweep, in which a plain list of teachers, or of pairs of layers, is a single value."""
        return [together(given)]


class Student(Strict):
    """The dimensions of a smaller model. Those left out are as in the original, the model that it is made from."""

    layers: Count | Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """How many blocks; they start as evenly spaced blocks of the original. Or the list of the original's blocks to
    start from, such as `[0, 4, 8, 12]`. In an encoder-decoder both stacks get the same."""
    hidden: Count | None = None
    """The hidden size."""
    neurons: Count | None = None
    """Neurons of each feed-forward part."""
    heads: Count | None = None
    """Heads of each attention."""
    key_heads: Count | None = None
    """Heads of keys and values; default: in the same proportion to `heads` as in the original."""
    head_size: Count | None = None
    """The size of each head, where config.json has a key for it."""

    def checked(self) -> None:
        """Raise PydanticCustomError where no dimension is given, `layers` are out of order, or heads do not divide."""
        if not self.model_dump(exclude_none=True):
            raise wrong("`student` names no number", "what is smaller, such as `layers: 6`", at="student")
        if isinstance(self.layers, list) and sorted(set(self.layers)) != self.layers:
            raise wrong(f"layers are {self.layers}", "the teacher's blocks in order, each once", at="student")
        if self.heads and self.key_heads and self.heads % self.key_heads:
            raise wrong(f"{self.heads} heads beside {self.key_heads} key_heads", "a divisor of `heads`", at="student")


class DistillInto(Distill):
    """Train the whole model, or a smaller `student` of it, to reproduce the outputs of the dense model or other
    teachers. Zeros stay zeros. The model may be smaller in any dimension but the vocabulary."""

    student: Student | None = None
    """A smaller model to train instead, such as `{layers: 6, hidden: 384}`; it starts with weights of the original. To
    let a criterion choose what is removed, use a `shrink` step before this one."""

    def complete(self, name: str) -> dict[str, Any]:
        """Return the settings as ``Distill`` does, with the given dimensions of the student, which are checked."""
        found = super().complete(name)
        if self.student is None:
            return {key: value for key, value in found.items() if key != "student"}
        self.student.checked()
        return found | {"student": self.student.model_dump(exclude_none=True)}


def together(given: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """Return the values of a sweep, with a plain list of teachers, or of pairs of layers, as a single value."""
    named, layers = given.get("teacher", ()), given.get("layers", ())
    several = len(named) > 1 and all(isinstance(one, str) for one in named)
    pairs = layers and all(isinstance(one, list) and isinstance(one[0], int) for one in layers)
    return {**given, **({"teacher": [list(named)]} if several else {}), **({"layers": [list(layers)]} if pairs else {})}


def _between(own: Settings, key: str, low: float, high: float, example: str) -> None:
    value = getattr(own, key)
    if not low < value < high:
        raise wrong(f"{key} is {value:g}", f"a number between {low:g} and {high:g}, such as {example}", at=key)


def settings() -> dict[str, type[Settings]]:
    """Return the settings class of each kind of recovery, by name."""
    return {"reconstruct": Reconstruct, "finetune": Finetune, "distill": DistillInto}


def label(step: Step) -> str:
    """Return a label such as ``distill tokens=100000``: the name, and the settings that differ from their defaults."""
    return " ".join([step.name, *words(step.settings, settings()[step.name])])


def words(own: Mapping[str, Any], kind: type[Settings]) -> list[str]:
    """Return a training's settings that differ from their defaults, as ``key=value`` words or by name."""
    told = unusual(own, kind)
    named = told.pop("source", None)
    first = [name] if named and (name := text_name(named)) else []
    if "teacher" in told:
        first.append(taught(own))
    if student := told.pop("student", None):
        first.append("into " + " ".join(f"{key}={_listed(value)}" for key, value in student.items()))
    return first + said({key: value for key, value in told.items() if key not in ("field", "target", "teacher")})


def text_name(named: str) -> str:
    """Return the name of a text that a step reads; empty for the default calibration text."""
    from sparsebench.steps.calibration import DEFAULT

    text = Reference.parse(named)
    return text.name if text.source != DEFAULT.source else ""


def taught(own: Mapping[str, Any]) -> str:
    """Return words such as ``taught by dense and wide``."""
    return "taught by " + " and ".join(Reference.parse(one).name for one in teachers(own))


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def forward_tokens(step: Step, text: int) -> float:
    """Return how many tokens pass through the model, a trained one three times; ``text`` is read to fit blocks."""
    if step.name != "reconstruct":
        return 3.0 * step.settings["tokens"]
    return 3.0 * (step.settings["epochs"] + 1) * min(text, step.settings.get("tokens") or text)


def refuses(step: Step, config: Mapping[str, Any]) -> tuple[str, str]:
    """Return why a step cannot train the model of a config.json, and the way out; else empty strings."""
    own = step.settings
    if "alpha" not in own or family_of(config) != "encoder":
        return "", ""
    if len(teachers(own)) > 1:
        return SEVERAL
    return PREDICTS if own["alpha"] < 1 or "alpha_schedule" in own else ("", "")


def bytes_per_parameter(step: Step) -> float:
    """Return the bytes per parameter that a training holds in memory; 0 where blocks are reconstructed.

    Weights, gradients, two moments and the best weights take 20 (float32), each teacher in memory 4. ADMM (``elsa``)
    adds a sparse copy, multipliers and another copy of the weights.
    """
    if step.name == "reconstruct":
        return 0.0
    more = 12.0 * (step.name == "elsa")
    asked = len(teachers(step.settings))
    return 20.0 + 4.0 * (min(1, asked) if step.settings.get("top_k") else asked) + more


def check_vocabulary(step: Step, checkpoint: Checkpoint, dense: Checkpoint) -> None:
    """Raise UnsupportedError where a step learns from the dense model, and the vocabularies differ in size.

    Two models whose config.json names no size count as equal.
    """
    from sparsebench.steps.trim.weights import NESTED, SIZE

    ours, theirs = ({**(one.config.get(NESTED) or {}), **one.config}.get(SIZE) for one in (checkpoint, dense))
    if DENSE in teachers(step.settings) and ours != theirs:
        raise UnsupportedError("the vocabulary is not the dense model's", f"{step.verb} first, then trim")


def run(
    parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit, pruner: Callable[..., Any] | None = None
) -> None:
    """Make every recovered model of one pass, each in its folder.

    A ``pruner``, that of ``prune: gradual`` or ``prune: elsa``, prunes meanwhile.

    Raises ModelError without the dense model or the calibration text, for a quantized parent, and for one that leaves
    weights out. Grouped neurons, which leave weights out, are allowed in ``reconstruct`` alone. Raises UnsupportedError
    where an oracle chooses its neurons. A step that fails later, for example because its blocks do not match the dense
    model's, is emitted as an error.
    """
    from sparsebench.models.files.checkpoint import Checkpoint
    from sparsebench.models.files.quantized import float_checkpoint
    from sparsebench.models.modules.skipping import experts_of, skips
    from sparsebench.steps.calibration import first
    from sparsebench.steps.recover import whole
    from sparsebench.steps.recover.reconstruct import Reconstruction

    name = next(iter(targets)).name
    if context.dense is None:
        raise ModelError(f"{name} needs the dense model", "use it in a manifest")
    checkpoint = float_checkpoint(parent, "recover first, then quantize")
    dense = Checkpoint(context.dense)
    if skips(checkpoint.config):
        grouped = experts_of(checkpoint.config)
        if name != "reconstruct" or grouped is None:
            raise ModelError(f"{parent}: it leaves weights out already", "recover first, then leave weights out")
        if grouped.router == "oracle":
            raise UnsupportedError(
                f"{parent}: its oracle router reads all neurons, so it cannot be kept while they are trained",
                "another `router` in `moefy`",
            )
    text = context.text(name) if name == "reconstruct" else None
    for number, (step, folder) in enumerate(targets.items()):
        try:
            check_vocabulary(step, checkpoint, dense)
            if text is None:
                emit(step, whole.run(checkpoint, dense, step, context, folder, pruner))
            else:
                read = first(text, step.settings["tokens"]) if "tokens" in step.settings else text
                job = Reconstruction(dense, checkpoint, read, step, context, (number, len(targets)))
                emit(step, job.run(folder))
        except SparsebenchError as error:
            emit(step, error)
