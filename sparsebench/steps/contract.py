"""What a step is to the rest of the program: a name with typed settings, and a function from one folder to others."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from sparsebench.errors import SparsebenchError
from sparsebench.manifest.schema import Strict, wrong
from sparsebench.sources.cache import sha256_of

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family
    from sparsebench.steps.calibration import Calibrated, Calibration


class Settings(Strict):
    """One step's settings, with defaults as published; a manifest may sweep any of them."""

    needs: ClassVar[Mapping[str, str]] = {}
    """The settings without a default, each with what it may be."""

    def complete(self, name: str) -> dict[str, Any]:
        """Every setting that can change the result of the step ``name``, resolved.

        Raises PydanticCustomError for one that is needed and left out, and for settings that do not go together.
        """
        for key, example in self.needs.items():
            if getattr(self, key) is None:
                raise wrong(f"`{key}` is missing", example, at=key)
        return self.model_dump()

    @classmethod
    def alternatives(cls, given: Mapping[str, Sequence[Any]]) -> Sequence[Mapping[str, Any]] | None:
        """The settings that a sweep of ``given`` fields asks for, where that is not simply every combination."""
        return None


@dataclass(frozen=True)
class Step:
    """One thing done to a model: ``{prune: wanda, sparsity: 0.5}`` is verb ``prune``, name ``wanda`` and all its settings."""

    verb: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class TensorCount:
    """What became of one tensor: ``zeros`` of its ``count`` weights are exactly zero in the written file."""

    name: str
    layer: int | None
    side: str
    kind: str
    count: int
    zeros: int


@dataclass(frozen=True)
class Point:
    """A training after ``step`` optimizer steps and ``tokens`` tokens: the mean loss of the steps since the last point (None at
    the beginning), and the loss on text that is not trained on."""

    step: int
    tokens: int
    loss: float | None
    held_out: float


@dataclass(frozen=True)
class Activity:
    """What a text showed of one ``module`` (its path) where values are skipped or neurons grouped, read by the unchanged model.

    ``near_zero`` is the share of its values within 1% of their root mean square. Of a skip: ``threshold``, and ``skipped``, the
    share of the values up to it. Of experts: ``uses``, the share of the tokens for which each is computed, those that all tokens
    share left out; ``together`` is how often two neurons of one expert are active for the same token, over how often any two are;
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
class Evidence:
    """What a step achieved, counted in the written files.

    ``achieved`` is the share of zeros among prunable weights, ``achieved_all`` among all parameters (tied ones once);
    ``bits`` is what a prunable weight takes on average, scales included (0 where none was quantized), ``relative_error`` is
    ‖W - Ŵ‖ / ‖W‖ over these; ``rounded_to_zero`` are the zeros that a quantizer made of kept weights.
    ``already_zero`` are those of ``zeros`` that the step was given as zeros: it made the others. ``trained_tokens`` are those
    that it was trained on, every epoch counted, ``operations`` the floating-point operations that this took, by the rule of two
    for each parameter and token of a forward pass and four of a backward pass; ``curve`` is how the loss went; ``joules`` is what
    the counters of ``energy_source`` counted meanwhile, None where that says why there is none.
    ``read_share`` is the share of the prunable weights that one token reads, a router's own included, where it is not all;
    ``activity`` says what text showed of the modules concerned.
    ``seconds`` is the pass's, shared by the ``sweep_size`` variants that it made;
    ``peak_rss_bytes`` is the process's. ``note`` says what a reader must know. ``calibration_tokens`` (padding left out) and
    ``calibration_sha256`` (of the token ids) tell what was read, if anything.
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


Emit = Callable[[Step, "Evidence | SparsebenchError"], None]
"""Called once for each step of a pass: with what it achieved, or why it alone failed."""


class Progress(Protocol):
    """Told how much of a pass is done, and in words what else a reader would like to know."""

    def __call__(self, done: int, total: int, told: str = "") -> None:
        """``done`` of ``total``."""


T = TypeVar("T")


def reported(items: Sequence[T], progress: Callable[[int, int], None] | None) -> Iterator[T]:
    """The items of a pass one after another; ``progress`` is told when each is done."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress:
            progress(done, len(items))


@dataclass(frozen=True)
class Context:
    """What a pass may use: ``dense`` is the folder that its recipe began with; ``read`` gives the calibration text as the
    model's tokens (when called first, it is fetched);
    ``dtype`` is the precision to calculate in, ``device`` where, as torch names it; ``progress`` is told (done, of) where there
    is somebody to tell; ``fetch`` gives the file that a source of text names, ``draw`` the samples of such a text to train on, as
    many as there are up to the number asked for; ``resume`` names a folder in which what a killed process has done of a step is
    found again, where there is one."""

    family: Family
    seed: int = 0
    dtype: str = "auto"
    read: Callable[[], Calibrated] | None = None
    progress: Progress | None = None
    fetch: Callable[[str], Path] | None = None
    dense: Path | None = None
    draw: Callable[[Calibration], Calibrated] | None = None
    resume: Callable[[Step], Path] | None = None
    device: str = "cpu"


Run = Callable[[Path, Mapping[Step, Path], Context, Emit], None]
"""Makes from the model folder one folder per step, whose settings differ. A failing step fails alone, by ``emit``."""


@dataclass(frozen=True)
class StepKind:
    """A row of the table of steps: all steps of one verb.

    ``settings`` gives each name's settings, ``run`` is ``module:function`` (a ``Run``), imported when it is used.
    """

    name: str
    settings: Callable[[], Mapping[str, type[Settings]]]
    run: str
    _: KW_ONLY
    reads_text: Callable[[Step], bool] = lambda step: False
    """Whether the step looks at calibration text."""
    passes: Callable[[Step, int], float] = lambda step, blocks: 1.0
    """How often that text goes through a model of so many blocks, in forwards: for the plan's estimate."""
    one_pass: Callable[[Step], bool] = lambda step: False
    """Whether the text goes through the model once for all versions of a pass together: for the plan's estimate."""
    moments: bool = True
    """Whether it gathers second moments of what layers read: for the plan's estimate."""
    at_most: Callable[[Step], float] = lambda step: float("inf")
    """How many of the text's tokens it reads, where that may be fewer than all: for the plan's estimate."""
    trains: Callable[[Step], float] = lambda step: 0.0
    """How many tokens of a text of its own go through the whole model, every forward pass counted (a backward pass is two): for
    the plan's estimate."""
    holds: Callable[[Step], float] = lambda step: 0.0
    """Bytes a parameter that it holds in memory, and that resuming it takes on the disk: for the plan's estimate."""
    whole: Callable[[Step], bool] = lambda step: False
    """Whether it has the whole model in memory: for the plan's estimate."""
    on_device: Callable[[Step], bool] = lambda step: False
    """Whether it calculates on the context's device; other steps stay on the CPU."""
    reads_dense: Callable[[Step], bool] = lambda step: False
    """Whether the step looks at the dense model beside their parent."""
    draws: Callable[[Step], bool] = lambda step: False
    """Whether the seed decides its result."""
    shares: Callable[[Step], Hashable] = lambda step: step.name
    """Steps with the same parent and the same of this are made in one pass."""
    label: Callable[[Step], str] | None = None
    """A step in few words; default: its name and the settings that are not the defaults."""
    version: Callable[[Step], int] = lambda step: 1
    """Raised by hand when a change to its code can change its result."""
    extra_libraries: Callable[[Step], tuple[str, ...]] = lambda step: ()
    """Libraries whose major.minor can change its result, beside torch and those by which a model reads text; a plan refuses the
    step where one is not installed."""
    files: tuple[str, ...] = ()
    """The settings that name files. A plan makes each absolute and adds the hash of its content (``with_hash``), which stands
    for it in the id; whoever reads the file takes both apart (``of_file``)."""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The settings that name a source of text, each with those that name its columns. A plan fills in the calibration text, its
    field and its target where none is named, makes each canonical and adds the hash of its content (``with_content``), which
    stands for it in the id; whoever reads the text takes both apart (``of_text``)."""
    refuses: Callable[[Step, Mapping[str, Any]], tuple[str, str]] = lambda step, config: ("", "")
    """Why a model of a config.json cannot be given the step, and the way out, as far as that tells; empty where it can."""
    refuses_shape: Callable[[Step, Mapping[str, Any]], tuple[str, str]] = lambda step, config: ("", "")
    """As ``refuses``, but by the shapes in config.json: asked only where no earlier step of the recipe ``reshapes``."""
    reshapes: Callable[[Step], bool] = lambda step: False
    """Whether the shapes of its result are others than those of config.json."""
    only_named: tuple[str, ...] = ()
    """The names of steps that read one of ``texts`` only where it is named."""
    teachers: tuple[str, ...] = ()
    """The settings that name models which teach, one or a list: ``dense``, or a source. A plan makes each canonical and adds the
    hash of its content, as of ``texts``, and refuses one with another tokenizer."""
    fits: tuple[str, ...] = ()
    """Those of ``texts`` to which weights are fitted: a benchmark whose documents stand there is refused."""
    last: bool = False
    """Whether no step may follow: what it writes belongs to these weights alone."""
    but: tuple[tuple[str, str], ...] = ()
    """The verb and name of steps that may follow nonetheless."""
    ends: Callable[[Step], str] = lambda step: ""
    """The key of the setting that lets no step follow, those of ``but`` included; empty where there is none."""
    stages: tuple[str, ...] = ()
    """The only stages that measure its results, where not all of them do."""
    size: Callable[[Step], float] = lambda step: 1.0
    """The bytes of its result over those of its parent, roughly: for the plan's estimate."""

    def load(self) -> Run:
        """The function that makes the variants."""
        run: Run = resolve_name(self.run)
        return run

    def describe(self, step: Step) -> str:
        """The step's label."""
        if self.label:
            return self.label(step)
        return " ".join([step.name, *said(self.unusual(step))])

    def unusual(self, step: Step) -> dict[str, Any]:
        """The settings of a step that differ from their defaults."""
        fields = self.settings()[step.name].model_fields
        return {key: value for key, value in step.settings.items() if key in fields and value != fields[key].default}


_HASH = "#sha256="


def with_hash(path: Path, sha256: str) -> str:
    """A file as a planned step names it: its path and the hash of its content."""
    return f"{path}{_HASH}{sha256}"


def of_file(named: str) -> tuple[Path, str]:
    """The path and the hash of a file that a step names; the hash is empty where nothing was planned."""
    path, _, sha256 = named.rpartition(_HASH)
    return (Path(path), sha256) if path else (Path(named), "")


def as_planned(named: str, what: str, error: type[SparsebenchError]) -> Path:
    """The file that a step names. Raises ``error`` where it is not there (``what`` is to be named), or was changed meanwhile."""
    path, sha256 = of_file(named)
    if not path.is_file():
        raise error(f"{path}: no such file", f"name {what}")
    if sha256 and sha256_of(path) != sha256:
        raise error(f"{path}: changed since the run was planned", "run again: its new content has a plan of its own")
    return path


@dataclass(frozen=True)
class TextSource:
    """A source of text as a planned step names it: its notation, and the hash of its content, empty where nothing was planned."""

    source: str
    content: str = ""

    @property
    def name(self) -> str:
        """What a reader calls it: the last part of its path."""
        return re.split(r"[/\\]", self.source.partition("#sha256=")[0].rstrip("/"))[-1]

    @property
    def identity(self) -> str:
        """What stands for it in an id."""
        return self.content or self.source


_CONTENT = "#content="


def with_content(source: str, content: str) -> str:
    """A source of text as a planned step names it: its notation and the hash of its content."""
    return f"{source}{_CONTENT}{content}"


def of_text(named: str) -> TextSource:
    """The source of text that a step names."""
    source, _, content = named.partition(_CONTENT)
    return TextSource(source, content)


def said(settings: Mapping[str, Any]) -> list[str]:
    """Settings as labels have them: ``rate=0.001``."""
    return [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()]
