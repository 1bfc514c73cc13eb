"""For notebooks: make, measure and score one variant, and read a ledger as tables. All works as the commands do.

    from sparsebench import apply, load, measure, score, sql

    dense = load("smollm2-135m", dtype="bfloat16")
    sparse = apply(dense, {"prune": "magnitude", "sparsity": 0.5}, "pruned/0.50")
    score(sparse, "perplexity", against=dense, limit=8)
    measure(sparse, against=dense, engine="sparse")
    sql("SELECT * FROM results", "ledger/sparsebench.duckdb")

Tables are pandas DataFrames with the columns that the verbs and the ledger's views have. Nothing is recorded: what is to be
kept, compared or published belongs in a manifest.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
import pyarrow as pa
from pydantic import Field

from sparsebench import benchmarks, bounded, devices, processor, runtime, sources, storage
from sparsebench.arguments import checked
from sparsebench.benchmarks import ScoredModel, ScoreResult, TaskSpec
from sparsebench.errors import BenchmarkError, ModelError, SparsebenchError, UserError
from sparsebench.ledger import schema, scored, sqlfiles
from sparsebench.ledger.query import reader, refuse_several
from sparsebench.manifest.names import Dtype, Family
from sparsebench.manifest.problems import did_you_mean
from sparsebench.manifest.recipes import verb_and_name
from sparsebench.manifest.schema import Device, ManifestCalibration, NonEmpty
from sparsebench.models.files.building import temporary
from sparsebench.models.shape.topology import refuse_replay
from sparsebench.paths import check_new_folder, ledger_path, temporary_folder
from sparsebench.plan.expand import with_defaults
from sparsebench.plan.single import SingleModel, as_user_errors, prepare_single
from sparsebench.progress import progress
from sparsebench.runtime import LatencyResult, MemoryResult, Setting, Workload
from sparsebench.runtime.engines import engine_info
from sparsebench.sources import Cache
from sparsebench.sources.cache import read_json
from sparsebench.steps.calibration import Calibration, tokens
from sparsebench.steps.contract import Context, Step, StepProgress, StepReport
from sparsebench.steps.registry import closed_by, combinations, kinds, with_text
from sparsebench.structure import assess, summary

__all__ = ["apply", "inspect", "load", "measure", "score", "sizes", "sql"]

T = TypeVar("T")
ItemCount = Annotated[int, Field(ge=1, le=bounded.MOST_ITEMS)]
Threshold = Annotated[float, Field(gt=0, le=bounded.MOST_ITEMS)]
ProcessCount = Annotated[int, Field(ge=1, le=bounded.MOST_PROCESSES)]
NonEmptyList = Annotated[Sequence[T], Field(min_length=1)]
Recipe = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@checked
def load(
    source: NonEmpty | Path, dtype: Dtype = "auto", family: Family | None = None, offline: bool = False
) -> SingleModel:
    """Fetch and prepare in the cache the model that ``source`` names: an alias, a folder or any notation of a source.

    ``dtype`` is the precision of its weights, ``auto`` the checkpoint's. Never edit the ``folder`` of what this returns.
    Raises SourceError for a model that cannot be found, or whose family can neither be read nor was given.
    """
    return prepare_single(str(source), family, dtype, Cache(offline=offline))


@dataclass(frozen=True)
class AppliedModel(SingleModel):
    """A variant that ``apply`` made: its steps in order, each with the report of what it achieved."""

    steps: tuple[tuple[Step, StepReport], ...] = ()


@checked
def apply(
    model: SingleModel,
    recipe: Recipe,
    out: NonEmpty | Path,
    *,
    calibration: Mapping[str, Any] | None = None,
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0,
    device: Device = "auto",
    offline: bool = False,
) -> AppliedModel:
    """Make one variant of ``model`` in the folder ``out``: ``recipe`` is a step as in a manifest, or a list of steps.

    ``calibration`` has the keys of the manifest's section; ``device`` is ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
    Raises UserError for a recipe that asks for several variants or cannot be read, and where ``out`` exists or cannot be
    written. An error of a step is raised as it is.
    """
    folder, chain = check_new_folder(Path(out)), Chain.parse(recipe, calibration, seed)
    resolved_device = devices.resolve(device) if chain.on_device else "cpu"
    return chain.make(model, folder, Cache(offline=offline), resolved_device)


@dataclass(frozen=True)
class Chain:
    """The steps of one variant, and the calibration text that they read."""

    steps: tuple[Step, ...]
    calibration: Calibration

    @classmethod
    def parse(cls, recipe: Recipe, section: Mapping[str, Any] | None, seed: int) -> Chain:
        """Return the chain that is written as in a manifest. Raises UserError for what is no recipe of one variant.

        ``section`` has keys of the manifest's ``calibration``. A step that reads a text and names none gets that text.
        """
        step_mappings = [recipe] if isinstance(recipe, Mapping) else recipe
        if not step_mappings:
            raise UserError("a recipe without a step", "such as {'prune': 'magnitude', 'sparsity': 0.5}")
        with as_user_errors():
            calibration = with_defaults(ManifestCalibration.model_validate(dict(section or {})), seed)
            steps = tuple(_parse_step(step, calibration) for step in step_mappings)
        for number, step in enumerate(steps):
            for later in steps[number + 1 :]:
                if closed_by(step, [(later.verb, later.name)]):
                    before = f"{step.verb}: {step.name}"
                    raise UserError(
                        f"{later.verb}: {later.name} cannot follow {before}", f"make {before} the last step"
                    )
        return cls(steps, calibration)

    @property
    def on_device(self) -> bool:
        """Whether a step calculates on a GPU where there is one."""
        return any(step.settings.on_device() for step in self.steps)

    def refuse(self, config: Mapping[str, Any]) -> None:
        """Raise UnsupportedError for a model whose config.json shows that a step cannot be made of it."""
        if any(step.settings.reads_text() for step in self.steps):
            refuse_replay(config)
        for step in self.steps:
            if refusal := step.settings.refuses(config):
                raise refusal.error()

    def make(
        self,
        model: SingleModel,
        out: Path,
        cache: Cache,
        device: str,
        dtype: Dtype = "auto",
        progress: StepProgress | None = None,
    ) -> AppliedModel:
        """Apply the steps to ``model``, one after the other, and leave the result in ``out``."""
        steps_made: list[tuple[Step, StepReport]] = []
        parent, device = model.folder, device if self.on_device else "cpu"
        with temporary(out.with_name(f"{out.name}.steps")) as scratch:
            self.refuse(read_json(model.folder / "config.json") or {})
            for number, step in enumerate(self.steps, 1):
                folder = out if number == len(self.steps) else scratch / str(number)
                context = Context(
                    model.family,
                    self.calibration.seed,
                    processor.compute_dtype(model.dtype, dtype, device),
                    calibration_tokens=partial(tokens, parent, model.family, self.calibration, cache),
                    training_tokens=partial(tokens, parent, model.family, cache=cache, training=True),
                    progress=progress,
                    fetch_file=lambda source: sources.fetch(sources.parse(source), cache),
                    dense=model.folder,
                    device=device,
                )
                steps_made.append((step, _apply_step(step, parent, folder, context)))
                parent = folder
        return AppliedModel(out.name, out, model.family, model.dtype, tuple(steps_made))


def _parse_step(step_mapping: Mapping[str, Any], calibration: Calibration) -> Step:
    verb, name = verb_and_name(step_mapping, kinds())
    settings_by_name = kinds()[verb].classes()
    if not isinstance(name, str) or name not in settings_by_name:
        hint = did_you_mean(str(name), settings_by_name) or f"one of {', '.join(settings_by_name)}"
        raise UserError(f"there is no {verb}: {name}", hint)
    settings = with_text(step_mapping, calibration.source, (calibration.field, calibration.target))
    del settings[verb]
    steps = [*combinations(verb, name, settings)]
    if len(steps) != 1:
        raise UserError(f"{verb}: {name} asks for {len(steps)} variants", "give each setting one value")
    return steps[0]


def _apply_step(step: Step, parent: Path, folder: Path, context: Context) -> StepReport:
    results: dict[Step, StepReport | SparsebenchError] = {}
    # Nothing is raised while the pass works: it would take the error for one of its own.
    kinds()[step.verb].load()(parent, {step: folder}, context, results.__setitem__)
    result = results.get(step)
    if isinstance(result, SparsebenchError):
        raise result
    if result is None or not folder.is_dir():
        raise ModelError(f"{step.verb}: {step.name}: it ended without a result", "report this as a bug of the step")
    return result


@checked
def inspect(model: SingleModel, relative: Sequence[Threshold] = (0.01, 0.1, 0.5, 1.0)) -> pd.DataFrame:
    """Return the shares of zero weights, and of weights at or above each multiple of their tensor's rms.

    There are rows for the whole model, each layer and each kind of module.
    """
    rows: list[dict[str, Any]] = []
    for row in summary(assess(model.folder, model.family, (), tuple(relative))):
        group = {"scope": row.scope, "stack": row.side, "layer": row.layer, "kind": row.kind}
        shares = {f"at_least_{value:g}": share for value, share in zip(relative, row.far_from_zero, strict=True)}
        rows.append(group | {"weights": row.weights, "zeros": row.zeros} | shares)
    return pd.DataFrame(rows)


@checked
def sizes(model: SingleModel, formats: NonEmptyList[str] = ("dense", "packed")) -> pd.DataFrame:
    """Return the bytes of the model's weights in each format, each written, read back and compared."""
    with temporary_folder() as scratch:
        measured = storage.measure(model.folder, model.family, formats, Path(scratch) / "sizes")
    return pd.DataFrame([asdict(size) for size in measured.sizes])


@checked
def score(
    model: SingleModel,
    tasks: NonEmpty | NonEmptyList[str],
    against: SingleModel | None = None,
    *,
    limit: ItemCount | None = None,
    num_fewshot: Annotated[int, Field(ge=0, le=bounded.MOST_PROCESSES)] | None = None,
    divergence: bool = False,
    device: Device = "auto",
) -> pd.DataFrame:
    """Return a row for each task: the score with its 95% interval; with ``against``, a paired difference and verdict.

    With ``divergence``, the row of a perplexity also says how far the model's distributions are from those of ``against``.
    Raises UserError for a task that does not exist, BenchmarkError for one that fails.
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if unknown := next((name for name in names if not benchmarks.is_task(name)), None):
        raise UserError(f"{unknown}: no such task", did_you_mean(unknown, benchmarks.task_names()) or None)
    if divergence and against is None:
        raise UserError("divergence: there is no model to compare with", "give `against`, such as the dense model")
    specs = [TaskSpec(name, limit, num_fewshot, divergence=divergence) for name in names]
    resolved_device = devices.resolve(device)

    def on_failure(task: str, error: SparsebenchError) -> None:
        raise BenchmarkError(f"{task}: {error.message}", error.hint) from error

    baseline = score_tasks(against, specs, resolved_device, on_failure) if against else None
    dense = against.folder if against else None
    return pd.DataFrame(scored.rows(score_tasks(model, specs, resolved_device, on_failure, dense=dense), baseline))


def score_tasks(
    model: SingleModel,
    specs: Sequence[TaskSpec],
    device: str,
    on_failure: Callable[[str, SparsebenchError], None],
    dtype: Dtype = "auto",
    cache: Cache | None = None,
    dense: Path | None = None,
) -> dict[str, ScoreResult]:
    """Return the model's results by task name; ``on_failure`` is called with each task that has none, and its error.

    ``dense`` is the folder of the model that tasks with ``divergence`` compare with; without it they measure none.
    Raises UserError for a task that is named twice: only one of its results could be returned.
    """
    counts = Counter(spec.task for spec in specs)
    if repeated := [task for task, count in counts.items() if count > 1]:
        raise UserError(f"{', '.join(repeated)}: named twice", "name each task once, there or in the manifest")
    results: dict[str, ScoreResult] = {}

    def emit(spec: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            on_failure(spec.task, result)
        else:
            results[spec.task] = result

    compute_dtype = processor.compute_dtype(model.dtype, dtype, device)
    with progress(f"score {model.name}") as advance:
        scored_model = ScoredModel(model.folder, model.family, compute_dtype, device, dense)
        benchmarks.score(scored_model, list(specs), cache or Cache(), emit, advance)
    return results


@checked
def measure(
    model: SingleModel,
    against: SingleModel | None = None,
    *,
    engine: str = "hf",
    ranks: ProcessCount = 1,
    batch: ItemCount = 1,
    prompt: ItemCount = 128,
    generate: ItemCount = 16,
    samples: Annotated[int, Field(ge=4, le=bounded.MOST_ITEMS)] = 24,
    processes: ProcessCount = 5,
    device: Device = "auto",
) -> pd.DataFrame:
    """Return a row for each phase: median ms with a 95% interval, speed-up over ``against``, peak memory in bytes.

    Both models are timed in turns; without ``against`` the model is timed against itself, which shows the noise floor.
    """
    engine_info(engine)
    workload, resolved_device = Workload(batch, prompt, generate), devices.resolve(device)
    for timed in (model, against or model):
        runtime.check_model(bounded.read_object(timed.folder / "config.json"), Setting(engine, ranks, workload))
    compute_dtype = processor.compute_dtype(model.dtype, device=resolved_device)
    setting = Setting(engine, ranks, workload, compute_dtype, samples, processes=processes, device=resolved_device)
    measured = measure_pair(model, against or model, setting)
    if measured.failure:
        warnings.warn(f"peak_bytes: {measured.failure}", stacklevel=2)
    return pd.DataFrame(measured.rows())


@dataclass(frozen=True)
class Measurement:
    """The times of a model beside another's, and its memory; where that could not be measured, the ``failure``."""

    latency: LatencyResult
    memory: MemoryResult | None
    failure: SparsebenchError | None

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each phase, under the names of the view ``latency``."""
        peaks = {phase.phase: phase.peak_bytes for phase in self.memory.phases} if self.memory else {}
        speedups = {row["phase"]: row for row in self.speedups()}
        return [
            {
                "phase": phase.phase,
                "ms": phase.median_s * 1e3,
                "ms_low": phase.low_s * 1e3,
                "ms_high": phase.high_s * 1e3,
                "steady": phase.steady,
                "peak_bytes": peaks.get(phase.phase),
                **speedups.get(phase.phase, {}),
            }
            for phase in self.latency.phases
            if phase.side == "variant"
        ]

    def speedups(self) -> list[dict[str, Any]]:
        """Return the baseline's time over the variant's by phase."""
        return [
            {
                "phase": phase.phase,
                "speedup": 1 / phase.ratio,
                "speedup_low": 1 / phase.high,
                "speedup_high": 1 / phase.low,
                "pairs": phase.pairs,
            }
            for phase in self.latency.differences
        ]


def measure_pair(model: SingleModel, baseline: SingleModel, setting: Setting) -> Measurement:
    """Time ``model`` and ``baseline`` in turns, then measure the memory of ``model``.

    Raises UserError for models of two families, whose passes are not the same work.
    """
    if model.family != baseline.family:
        problem = f"{model.name} is of the family {model.family}, and {baseline.name} of {baseline.family}"
        raise UserError(f"{problem}: their times do not compare", "measure against a model of the same family")
    latency = runtime.measure_pair(baseline.folder, model.folder, model.family, setting)
    try:
        return Measurement(latency, runtime.measure_memory(model.folder, model.family, setting), None)
    except SparsebenchError as error:
        return Measurement(latency, None, error)


@checked
def sql(
    query: NonEmpty | None = None, ledger: NonEmpty | Path | None = None, *, arrow: bool = False
) -> pd.DataFrame | pa.Table:
    """Return the rows of a read-only ``query`` over a ledger; without a query, its views and what each column means.

    ``ledger`` is a file, or None for $SPARSEBENCH_LEDGER or ledger/sparsebench.duckdb; ``arrow`` gives a pyarrow.Table.
    Raises QueryError for SQL that fails, UserError for SQL without a query, NoLedgerError where there is no file.
    """
    statement = sqlfiles.read("describe") if query is None else query
    with reader(ledger_path(Path(ledger) if ledger else None)) as connection, warnings.catch_warnings():
        refuse_several(connection, statement)
        schema.create_temp_views(connection, statement, set())
        result = connection.execute(statement)
        if result is None or result.description is None:
            raise UserError("there is no query in it", "give one SELECT")
        if not arrow:
            return result.df()
        # DuckDB 2 has `to_arrow_table`, and warns that it copies the rows; earlier releases have `fetch_arrow_table`.
        warnings.simplefilter("ignore", UserWarning)
        return getattr(result, "to_arrow_table" if hasattr(result, "to_arrow_table") else "fetch_arrow_table")()
