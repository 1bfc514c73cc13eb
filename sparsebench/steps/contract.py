"""The interface of a step: a name with typed settings, and a function that makes folders from one model folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, ClassVar, Generic, Protocol, Self, cast

from pydantic import ConfigDict
from typing_extensions import TypeVar

from sparsebench.errors import ModelError, Refusal, SparsebenchError
from sparsebench.manifest.names import Family
from sparsebench.manifest.schema import Strict, wrong
from sparsebench.steps.calibration import Calibrated, Calibration

GENERATED = ConfigDict(use_attribute_docstrings=False)
"""The configuration of generated classes: their fields bring their descriptions, so pydantic reads no source for them."""


class Settings(Strict):
    """One step's settings, with defaults as published; a manifest may sweep any of them.

    A step is described by the methods below: what it reads and costs, what fits it, and its label. No method imports
    torch. Each name of a verb has a class of its own (``named``).
    """

    name: ClassVar[str] = ""
    """The name under the verb, such as ``wanda``."""
    needs: ClassVar[Mapping[str, str]] = {}
    """The required settings, each with a description of its values."""
    former: ClassVar[Mapping[str, Any]] = {}
    """Settings that older records have and that are gone, each with the value that the code still has for it."""
    file_keys: ClassVar[tuple[str, ...]] = ()
    """The settings that name files. A plan makes each a ``Reference`` to an absolute path; the hash of the file's
    content stands for it in the id."""
    text_keys: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The settings that name a source of text, each with the settings that name its columns. Where none is named, a
    plan fills in the calibration text, its field and its target. It makes each a ``Reference``; the hash of the content
    stands for the text in the id."""
    fitted_keys: ClassVar[tuple[str, ...]] = ()
    """Those of ``text_keys`` to which weights are fitted: a benchmark whose documents occur in one is refused."""
    own_text_only: ClassVar[bool] = False
    """Whether a plan fills in none of ``text_keys``: the step reads only a text that the manifest names."""
    teacher_keys: ClassVar[tuple[str, ...]] = ()
    """The settings that name teacher models, one or a list: ``dense``, or a source. A plan makes each a ``Reference``,
    as for ``text_keys``, and refuses a teacher with another tokenizer."""
    release: ClassVar[int] = 1
    """A number raised by hand when a change to the step's code can change its result."""
    reads_floats: ClassVar[bool] = False
    """Whether the step changes float weights, so that it cannot follow one that ``leaves_integers``."""
    leaves_integers: ClassVar[bool] = False
    calculates_with: ClassVar[tuple[str, ...]] = ()
    """Libraries whose major.minor version can change the result, beside torch and those with which a model reads text.
    A plan refuses the step where one is not installed."""

    @classmethod
    @cache
    def named(cls, name: str, **attributes: Any) -> type[Settings]:
        """Return the settings class of one name, with class attributes of its own: the same one for the same words."""
        meta: Any = type(cls)
        body = {"__module__": cls.__module__, "__doc__": cls.__doc__, "model_config": GENERATED, "name": name}
        return cast("type[Settings]", meta(cls.__name__, (cls,), body | attributes))

    @classmethod
    def alternatives(cls, swept: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """Return the groups of fields of which a sweep makes every combination; None: ``swept`` is the only group."""
        return None

    def completed(self) -> Self:
        """Return the settings with every default resolved.

        Raises PydanticCustomError for a required setting that is missing, and for settings that contradict each other.
        """
        for key, example in self.needs.items():
            if getattr(self, key) is None:
                raise wrong(f"`{key}` is missing", example, at=key)
        return self

    def idle(self) -> Collection[str]:
        """Return the settings that have no effect beside the others: records, ids and labels leave them out."""
        return ()

    def record(self) -> dict[str, Any]:
        """Return every setting that can change the result, as records hold them."""
        return self.model_dump(exclude=set(self.idle()))

    def unusual(self) -> dict[str, Any]:
        """Return the settings that can change the result and differ from their defaults."""
        fields = type(self).model_fields
        return {key: value for key, value in self.record().items() if value != fields[key].default}

    # What it costs

    def reads_text(self) -> bool:
        """Return whether the step reads the calibration text."""
        return False

    def runs_model(self) -> bool:
        """Return whether the model runs, so that the precision of calculations decides the result."""
        return self.reads_text()

    def reads_dense(self) -> bool:
        """Return whether the step reads the dense model as well as its parent."""
        return False

    def on_device(self) -> bool:
        """Return whether the step calculates on the context's device; other steps stay on the CPU."""
        return self.reads_text()

    def forward_tokens(self, text: int) -> float:
        """Return how many tokens go through the whole model where the calibration text has ``text`` (0 where none is
        read), for the plan's time: a forward pass counts once, a training's three times."""
        return 2.0 * text

    def bytes_per_parameter(self) -> float:
        """Return the bytes for each parameter that the step holds in memory, and on disk to be resumed."""
        return 0.0

    def pass_key(self) -> Hashable:
        """Return a key: steps with the same parent and the same key are made in one pass."""
        return self.name

    # What identifies the result

    def draws(self) -> bool:
        """Return whether the result depends on the seed."""
        return False

    def version(self) -> int:
        """Return ``release``, or a number that depends on the settings where a change concerns only some of them."""
        return self.release

    def libraries(self) -> tuple[str, ...]:
        """Return ``calculates_with``, or those that these settings need where they differ."""
        return self.calculates_with

    def describe(self) -> str:
        """Return the step's label; by default its name and the settings that are not the defaults."""
        return " ".join([self.name, *setting_words(self.unusual())])

    # What fits it

    def refuses(self, config: Mapping[str, Any]) -> Refusal | None:
        """Return why a model with this config.json cannot be given the step."""
        return None

    def refuses_shape(self, config: Mapping[str, Any]) -> Refusal | None:
        """As ``refuses``, by the shapes in config.json: asked only where no earlier step of the recipe ``reshapes``."""
        return None

    def refuses_chain(self, before: Sequence[Step]) -> Refusal | None:
        """Return why the step cannot follow the steps ``before`` it in a recipe."""
        if self.reads_floats and any(step.settings.leaves_integers for step in before):
            return Refusal("the step before leaves integers, and this one changes floats", "quantize last")
        return None

    def reshapes(self) -> bool:
        """Return whether the shapes of the result differ from those of the parent's config.json."""
        return False

    def closing_key(self) -> str:
        """Return the key of the setting because of which no step may follow; empty where steps may."""
        return ""


class UnknownSettings(Settings):
    """What a record says of a step that is not installed here, or that has a setting that is no more."""

    model_config = ConfigDict(extra="allow")

    def record(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    unusual = record


S = TypeVar("S", bound=Settings, covariant=True, default=Any)


@dataclass(frozen=True)
class Step(Generic[S]):
    """One change to a model: ``{prune: wanda, sparsity: 0.5}`` has verb ``prune``, name ``wanda`` and its settings."""

    verb: str
    name: str
    settings: S = field(hash=False)

    def record(self) -> dict[str, Any]:
        """Return the step as records hold it."""
        return {"verb": self.verb, "name": self.name, "settings": self.settings.record()}

    def provenance(self, family: str, seed: int) -> dict[str, Any]:
        """Return the entries about the step for a variant's ``sparsebench.json``."""
        return {"family": family, self.verb: self.name, **self.settings.record(), "seed": seed}

    def __reduce__(self) -> tuple[Callable[..., Step], tuple[Any, ...]]:
        """Pickle the record: the class of the settings is made at run time (``Settings.named``)."""
        return resolve_name("sparsebench.steps.registry:recorded"), (self.record(),)


@dataclass(frozen=True)
class TensorCount:
    """The zeros of one tensor: ``zeros`` of its ``count`` weights are exactly zero in the written file.

    ``side`` is its stack: records and views have that name.
    """

    name: str
    layer: int | None
    side: str
    kind: str
    count: int
    zeros: int


@dataclass(frozen=True)
class Point:
    """A point of a training curve, after ``step`` optimizer steps and ``tokens`` tokens.

    ``loss`` is the mean over the steps since the last point (None at the beginning), ``held_out`` the loss on text that
    is not trained on.
    """

    step: int
    tokens: int
    loss: float | None
    held_out: float


@dataclass(frozen=True)
class Activity:
    """The activations of one ``module`` (its path) while the unchanged model reads the calibration text.

    Recorded where a step skips values or groups neurons into experts. ``near_zero`` is the share of the module's values
    that are at most 1% of their root mean square in magnitude.

    A skip has ``threshold``, and ``skipped``, the share of the values up to it. Experts have the other three. ``uses``
    is the share of the tokens for which each expert is computed, without the experts that all tokens share.
    ``together`` is how often two neurons of one expert are active for the same token, divided by how often any two are.
    ``inside`` is the share of all pairs' co-activation that lies inside experts: 1 less the cut.
    """

    side: str
    layer: int
    module: str
    near_zero: float
    threshold: float | None = None
    skipped: float | None = None
    uses: tuple[float, ...] | None = None
    together: float | None = None
    inside: float | None = None


@dataclass(frozen=True)
class StepReport:
    """What a step achieved, counted in the written files.

    ``achieved`` is the share of zeros among prunable weights, ``achieved_all`` among all parameters (tied ones once).
    ``already_zero`` counts those of ``zeros`` that the parent had as zeros; the step made the others. ``bits`` is the
    average size of a prunable weight, scales included (0 where none was quantized). ``relative_error`` is ‖W - Ŵ‖ / ‖W‖
    over these weights. ``rounded_to_zero`` counts the zeros that a quantizer made of kept weights.

    ``trained_tokens`` counts the tokens trained on, every epoch. ``operations`` are the floating-point operations of
    that training: two for each parameter and token of a forward pass, four of a backward pass. ``curve`` is the course
    of the loss. ``joules`` is what the counters of ``energy_source`` measured meanwhile; where it is None,
    ``energy_source`` says why.

    ``read_share`` is the share of the prunable weights that one token reads, a router's own included (1: all of them).
    ``activity`` describes the modules concerned on the calibration text. ``seconds`` is the time of the pass, shared by
    the ``sweep_size`` variants that it made. ``peak_rss_bytes`` is the process's. ``note`` says what a reader must
    know. ``calibration_tokens`` (without padding) and ``calibration_sha256`` (of the token ids) identify the text that
    was read, if any.
    """

    prunable: int
    zeros: int
    parameters: int
    total_zeros: int
    achieved: float
    achieved_all: float
    seconds: float
    sweep_size: int
    peak_rss_bytes: int
    tensors: tuple[TensorCount, ...]
    note: str = ""
    calibration_tokens: int = 0
    calibration_sha256: str = ""
    bits: float = 0.0
    rounded_to_zero: int = 0
    relative_error: float = 0.0
    already_zero: int = 0
    trained_tokens: int = 0
    operations: float = 0.0
    curve: tuple[Point, ...] = ()
    read_share: float = 1.0
    activity: tuple[Activity, ...] = ()
    joules: float | None = None
    energy_source: str = ""


Emit = Callable[[Step, "StepReport | SparsebenchError"], None]
"""Called once for each step of a pass, with its report or with the error that made this step fail."""


class StepProgress(Protocol):
    """A callback that a pass calls as it advances."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """Report that ``done`` of ``total`` parts are done; ``detail`` is further information in words."""


T = TypeVar("T")


def reported(items: Sequence[T], progress: Callable[[int, int], None] | None) -> Iterator[T]:
    """Yield the items of a pass one after another, and call ``progress`` when each is done."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress:
            progress(done, len(items))


@dataclass(frozen=True)
class Context:
    """What a pass may use.

    ``dense`` is the folder that its recipe began with. ``calibration_tokens`` returns the calibration text as the
    model's tokens, and fetches it at the first call. ``fetch_file`` returns the file that a source of text names.
    ``training_tokens`` returns the samples of a text to train on: the number asked for, or as many as there are.
    ``dtype`` is the precision to calculate in, ``device`` is named as torch names it. ``resume`` returns the folder
    in which a step keeps the state that a later process resumes from if this one is killed. ``note`` shows the user
    a sentence at once. A field that is None is not available.
    """

    family: Family
    seed: int = 0
    dtype: str = "auto"
    calibration_tokens: Callable[[], Calibrated] | None = None
    progress: StepProgress | None = None
    fetch_file: Callable[[str], Path] | None = None
    dense: Path | None = None
    training_tokens: Callable[[Calibration], Calibrated] | None = None
    resume: Callable[[Step], Path] | None = None
    note: Callable[[str], None] | None = None
    device: str = "cpu"

    def text(self, needed_by: str) -> Calibrated:
        """Return the calibration text. Raises ModelError, saying ``needed_by`` needs it, where it is not available."""
        if self.calibration_tokens is None:
            raise ModelError(f"{needed_by} needs calibration text", "name it under `calibration:`")
        return self.calibration_tokens()


Run = Callable[[Path, Mapping[Step, Path], Context, Emit], None]
"""Makes, from the model folder, one folder for each of several steps of one ``Settings.pass_key``.

A step that fails alone is reported by ``emit``; the others are made.
"""


@dataclass(frozen=True)
class StepKind:
    """A row of the table of steps: all steps of one verb.

    ``settings`` returns the settings class of each name. ``run`` is ``module:function`` (a ``Run``), imported on use.
    """

    name: str
    settings: Callable[[], Mapping[str, type[Settings]]]
    run: str
    _: KW_ONLY
    terminal: bool = False
    """Whether no step may follow: what the step writes is valid for its own weights only."""
    may_follow: tuple[tuple[str, str], ...] = ()
    """The verb and name of steps that may follow nonetheless."""
    stages: tuple[str, ...] = ()
    """The stages that measure the step's results; empty: all of them."""

    def classes(self) -> Mapping[str, type[Settings]]:
        """Return the settings class of each name, which knows its name."""
        return {
            name: settings if settings.name == name else settings.named(name)
            for name, settings in self.settings().items()
        }

    def load(self) -> Run:
        """Import and return the function that makes the variants."""
        return resolve_name(self.run)


def setting_words(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as they appear in labels: ``rate=0.001``."""
    return [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()]
