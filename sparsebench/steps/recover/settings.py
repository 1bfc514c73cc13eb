"""The settings of ``recover`` in a manifest, and those of every other step that trains a whole model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from sparsebench.errors import Refusal
from sparsebench.manifest.schema import Count, NonEmpty, Share, Strict, wrong
from sparsebench.models.files.families import MODEL_TYPES, family_of, has_classifier, output_family
from sparsebench.models.files.quantized import GROUP, Scheme
from sparsebench.models.files.text import limit_below
from sparsebench.sources.reference import Reference
from sparsebench.steps.calibration import DEFAULT
from sparsebench.steps.contract import Settings, setting_words

DENSE = "dense"
"""The default teacher: the dense model that the recipe began with."""
Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrZero = Annotated[float, Field(ge=0, lt=1)]


class Recovery(Settings):
    """What every training after compression shares."""

    reads_floats: ClassVar[bool] = True

    def reads_dense(self) -> bool:
        """Return True: the dense model is opened, whether or not it teaches."""
        return True

    def draws(self) -> bool:
        """Return True: samples are held out at random."""
        return True


class Reconstruct(Recovery):
    """Train one block after another on calibration text to give the dense model's block outputs. Zeros stay zeros."""

    former: ClassVar = {"train": "weights"}

    tokens: Count | None = None
    """The most tokens of the calibration text that are read, in whole samples, held-out ones included; default: all."""
    epochs: Count = 5
    """The most epochs for each block; its best weights by the held-out text, or the original ones, are kept."""
    batch: Count = 4
    """Samples of text in each step."""
    rate: Fraction = 5e-4
    """The learning rate (Adam) of the first step; it falls to 0 linearly."""
    held_out: Fraction = 0.125
    """The share of the text that is not trained on."""

    def idle(self) -> Collection[str]:
        return ("tokens",) if self.tokens is None else ()

    def reads_text(self) -> bool:
        return True

    def forward_tokens(self, text: int) -> float:
        """Return the tokens of all epochs and of one pass more; a training step costs three forward passes."""
        return 3.0 * (self.epochs + 1) * min(text, self.tokens or text)


class TrainingSettings(Recovery):
    """The settings of every training of a whole model, whatever its loss."""

    former: ClassVar = {"train": "weights", "decay": "linear"}
    text_keys: ClassVar = {"source": ("field", "target")}
    fitted_keys: ClassVar = ("source",)
    teacher_keys: ClassVar = ("teacher",)
    calculates_with: ClassVar[tuple[str, ...]] = ("transformers", "tokenizers", "accelerate")

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
    held_out: Fraction = 0.05
    """The share of the samples that is not trained on. The weights with the least loss on it are kept, even if they
    are those from before the training."""
    evaluations: Count = 8
    """How often the loss on the held-out samples is measured during the training, besides once before it."""
    batch: Count = 8
    """Samples in each step."""
    rate: Fraction = 1e-4
    """The highest learning rate (AdamW)."""
    warm_up: FractionOrZero = 0.05
    """The share of the steps during which the learning rate rises to `rate`; then it falls to 0 linearly."""
    weight_decay: FractionOrZero = 0.0
    """AdamW's weight decay."""
    clip: Annotated[float, Field(gt=0, lt=1e9)] = 1.0
    """The largest norm of the gradient; a larger gradient is scaled down to it."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision of matrix products; weights are float32. `auto`: bfloat16 for a bfloat16 checkpoint where the
    machine has instructions for it."""

    def completed(self) -> Self:
        if self.target is not None and self.field is None:
            raise wrong("`target` without `field`", "`field` names the first column", at="target")
        return super().completed()

    def teachers(self) -> list[str]:
        """Return the teachers; none for a training on the model's own loss alone."""
        return []

    def qat_scheme(self) -> Scheme | None:
        """Return the format to which each forward pass rounds the weights; None where it does not."""
        return None

    def on_device(self) -> bool:
        return True

    def forward_tokens(self, text: int) -> float:
        """Return the tokens trained on, three times: a training step costs three forward passes."""
        return 3.0 * self.tokens

    def bytes_per_parameter(self) -> float:
        """Return 20: weights, gradients, two moments and the best weights, in float32."""
        return 20.0

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse samples that are longer than the model takes."""
        known = config.get("model_type") in MODEL_TYPES
        if self.length and known and (limit := limit_below(config, self.length)):
            return Refusal(f"length: {self.length:,} tokens, where it takes at most {limit:,}", f"at most {limit:,}")
        return super().refuses(config)

    def describe(self) -> str:
        """Return a label such as ``distill tokens=100000``: the name, and what differs from the defaults."""
        return " ".join([self.name, *self.training_words()])

    def training_words(self, *without: str) -> list[str]:
        """Return the settings that differ from their defaults, as ``key=value`` or by name, but for those ``without``."""
        changed = {key: value for key, value in self.unusual().items() if key not in ("field", "target", *without)}
        words = [text_name(changed.pop("source", None))]
        if changed.pop("teacher", None):
            words.append(teacher_words(self.teachers()))
        if student := changed.pop("student", None):
            words.append("into " + " ".join(f"{key}={_listed(value)}" for key, value in student.items()))
        return [*filter(None, words), *setting_words(changed)]


class QuantizationAware(TrainingSettings):
    """A training for a model that is quantized afterwards."""

    qat: Literal["none", "int8", "int4"] = "none"
    """Quantization-aware training: every forward pass rounds the linear weights of the blocks as a `quantize` step of
    that name does (nearest), and their gradients pass the rounding unchanged. What is stored are the weights before
    rounding: let `{quantize: int8}` or `{quantize: int4}` follow."""
    group: Count = GROUP
    """With `qat: int4`: the number of columns that share a scale, the `group` of the `quantize` step to come."""

    def idle(self) -> Collection[str]:
        unused = {"none": ("qat", "group"), "int8": ("group",), "int4": ()}
        return (*super().idle(), *unused[self.qat])

    def qat_scheme(self) -> Scheme | None:
        schemes = {"none": None, "int8": Scheme(8, None), "int4": Scheme(4, self.group)}
        return schemes[self.qat]


class Finetune(QuantizationAware):
    """Train the whole model on its own loss: next token, masked words, or decoder output. Zeros stay zeros."""


LayerPair = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class TaughtTraining(TrainingSettings):
    """What every training by teachers shares."""

    teacher: NonEmpty | Annotated[list[NonEmpty], Field(min_length=1)] = DENSE
    """The teacher: `dense`, or another model with the same tokenizer, in any notation that a model's `source` takes. A
    list names several teachers at once, and their divergences are averaged; a list of lists is swept. A result is
    identified by the teachers' content."""
    alpha: Share = 1.0
    """The share of the loss that is the divergence from the teacher; the rest is the model's own loss (`finetune`'s)."""
    alpha_schedule: Literal["none", "linear_decay", "linear_growth"] = "none"
    """Whether that share falls from `alpha` to 0 during the training (`linear_decay`) or grows from 0 to `alpha`
    (`linear_growth`), as in TextBrewer's weight schedulers. The loss on held-out text always uses `alpha`."""
    temperature: Annotated[float, Field(gt=0, lt=1000)] = 1.0
    """The number by which the logits of model and teacher are divided."""
    top_k: Annotated[int, Field(ge=0)] = 64
    """How many of the teacher's likeliest tokens are compared at each position; all others count as one token. Without
    a `match`, they are computed once and kept on disk during the training. 0: the whole vocabulary, computed at every
    step."""
    match: Literal["none", "hidden_mse", "cos", "attention_mse", "attention_ce", "fsp", "nst"] = "none"
    """What else is compared, by TextBrewer's names: hidden states, attention, or the flow between layers."""
    match_weight: Annotated[float, Field(gt=0, lt=1e6)] = 1.0
    """The weight of that comparison in the loss."""
    # A pair alone is no value, but a list of pairs is read as a sweep of them before ``lists_as_values`` makes it one.
    layers: Literal["uniform", "last"] | LayerPair | Annotated[list[LayerPair], Field(min_length=1)] = "uniform"
    """The layers that `match` compares: each layer of the model with evenly spaced layers of the teacher (`uniform`);
    the `last` of both; or pairs of a layer of the model and one of the teacher, such as `[[1, 2], [2, 4]]`. Layers are
    numbered from 1. 0 is the input of the first one, which has hidden states but no attention. A list of such lists is
    swept."""

    def completed(self) -> Self:
        """Return the settings with one teacher in a list as a plain name.

        Raises PydanticCustomError for settings that exclude each other.
        """
        if isinstance(self.layers, list) and not all(isinstance(pair, list) for pair in self.layers):
            raise wrong(f"layers is {self.layers}", "pairs of layers, such as [[1, 2], [2, 4]]", at="layers")
        pairs = [pair for pair in self.layers if isinstance(pair, list)]
        if self.match in ("fsp", "nst") and (self.layers == "last" or len(pairs) == 1):
            raise wrong(f"`match: {self.match}` beside one pair of layers", "two pairs, or `uniform`", at="layers")
        if self.match.startswith("attention") and any(0 in pair for pair in pairs):
            raise wrong(
                f"`match: {self.match}` beside layer 0, which has no attention", "layers from 1 on", at="layers"
            )
        teachers = self.teachers()
        if len(teachers) > 1 and self.match != "none":
            raise wrong("`match` beside several teachers", "`match: none`, or one teacher", at="match")
        return super().completed().model_copy(update={"teacher": teachers[0] if len(teachers) == 1 else teachers})

    def idle(self) -> Collection[str]:
        matched = () if self.match != "none" else ("match_weight", "layers")
        return matched if self.alpha_schedule != "none" else (*matched, "alpha_schedule")

    def teachers(self) -> list[str]:
        return [self.teacher] if isinstance(self.teacher, str) else list(self.teacher)

    def bytes_per_parameter(self) -> float:
        """Return those of a training, and 4 for each teacher in memory: one at most where their outputs are kept."""
        count = len(self.teachers())
        return super().bytes_per_parameter() + 4.0 * (1 if self.top_k else count)

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Refuse what ``refuses_family`` refuses, and heads for classes of two stacks."""
        if has_classifier(config) and config.get("is_encoder_decoder"):
            return Refusal(
                "distilling an encoder-decoder with a head for classes is not implemented", "leave `recover` out"
            )
        family = family_of(config)
        refusal = self.refuses_family(output_family(family, config) if family else None)
        return refusal or super().refuses(config)

    def refuses_family(self, family: str | None) -> Refusal | None:
        """Refuse encoders what needs predictions, and several teachers."""
        if family != "encoder":
            return None
        if len(self.teachers()) > 1:
            return Refusal("an encoder can have only one teacher", "one `teacher`")
        if self.alpha < 1 or self.alpha_schedule != "none":
            problem = "`alpha` below 1 or `alpha_schedule` needs a loss on predictions"
            return Refusal(
                f"an encoder is distilled by its hidden states; {problem}", "alpha: 1, without `alpha_schedule`"
            )
        return None

    @classmethod
    def alternatives(cls, swept: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """Return the sweep, in which a plain list of teachers, or of pairs of layers, is a single value."""
        return [lists_as_values(swept)]


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

    def check(self) -> None:
        """Raise PydanticCustomError where no dimension is given, `layers` are out of order, or heads do not divide."""
        if not self.model_dump(exclude_none=True):
            raise wrong("`student` names no number", "what is smaller, such as `layers: 6`", at="student")
        if isinstance(self.layers, list) and sorted(set(self.layers)) != self.layers:
            raise wrong(f"layers are {self.layers}", "the original's blocks in order, each once", at="student")
        if self.heads and self.key_heads and self.heads % self.key_heads:
            raise wrong(f"{self.heads} heads beside {self.key_heads} key_heads", "a divisor of `heads`", at="student")


class Distill(QuantizationAware, TaughtTraining):
    """Train the whole model, or a smaller `student` of it, to reproduce the outputs of the dense model or other
    teachers. Zeros stay zeros. The model may be smaller in any dimension but the vocabulary."""

    student: Student | None = None
    """A smaller model to train instead, such as `{layers: 6, hidden: 384}`; it starts with weights of the original. To
    let a criterion choose what is removed, use a `shrink` step before this one."""

    def completed(self) -> Self:
        if self.student:
            self.student.check()
        return super().completed()

    def record(self) -> dict[str, Any]:
        student = {"student": self.student.model_dump(exclude_none=True)} if self.student else {}
        return self.model_dump(exclude={*self.idle(), "student"}) | student

    def reshapes(self) -> bool:
        return self.student is not None


def lists_as_values(swept: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
    """Return the values of a sweep, with a plain list of teachers, or of pairs of layers, as a single value."""
    teachers, layers = swept.get("teacher", ()), swept.get("layers", ())
    single = dict(swept)
    if len(teachers) > 1 and all(isinstance(teacher, str) for teacher in teachers):
        single["teacher"] = [list(teachers)]
    if layers and all(isinstance(pair, list) and isinstance(pair[0], int) for pair in layers):
        single["layers"] = [list(layers)]
    return single


def settings() -> dict[str, type[Settings]]:
    """Return the settings class of each kind of recovery, by name."""
    return {"reconstruct": Reconstruct, "finetune": Finetune, "distill": Distill}


def text_name(source: str | None) -> str:
    """Return the name of a text that a step reads; empty for the default calibration text."""
    text = Reference.parse(source or DEFAULT.source)
    return text.name if text.source != DEFAULT.source else ""


def teacher_words(teachers: Sequence[str]) -> str:
    """Return words such as ``taught by dense and wide``."""
    return "taught by " + " and ".join(Reference.parse(teacher).name for teacher in teachers)


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
