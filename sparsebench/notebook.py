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

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import pandas as pd
import pyarrow as pa
from pydantic import Field

from sparsebench import bounded
from sparsebench.arguments import checked
from sparsebench.errors import BenchmarkError, ModelError, SparsebenchError, UserError
from sparsebench.manifest.schema import Device, Dtype, Family, NonEmpty
from sparsebench.paths import writable
from sparsebench.plan.single import SingleModel, single, worded

if TYPE_CHECKING:
    from sparsebench.benchmarks import ScoreResult, TaskSpec
    from sparsebench.runtime import LatencyResult
    from sparsebench.sources import Cache
    from sparsebench.steps.calibration import Calibration
    from sparsebench.steps.contract import Context, Evidence, Step

__all__ = ["apply", "inspect", "load", "measure", "score", "sizes", "sql"]

T = TypeVar("T")
Count = Annotated[int, Field(ge=1, le=bounded.MANY)]
Threshold = Annotated[float, Field(gt=0, le=bounded.MANY)]
FewCount = Annotated[int, Field(ge=1, le=bounded.FEW)]
Listed = Annotated[Sequence[T], Field(min_length=1)]
Recipe = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@checked
def load(
    source: NonEmpty | Path, dtype: Dtype = "auto", family: Family | None = None, offline: bool = False
) -> SingleModel:
    """Fetch and prepare in the cache the model that ``source`` names: an alias, a folder or any notation of a source.

    ``dtype`` is the precision of its weights, ``auto`` the checkpoint's. Never edit the ``folder`` of what this returns.
    Raises SourceError for a model that cannot be found, or whose family can neither be read nor was given.
    """
    from sparsebench import sources

    return single(str(source), family, dtype, sources.Cache(offline=offline))


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
) -> SingleModel:
    """Make one variant of ``model`` in the folder ``out``: ``recipe`` is a step as in a manifest, or a list of steps.

    ``calibration`` has the keys of the manifest's section; ``device`` is ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
    Raises UserError for a recipe that asks for several variants or cannot be read, and where ``out`` exists or cannot be
    written. An error of a step is raised as it is.
    """
    from sparsebench import devices, sources
    from sparsebench.manifest.schema import ManifestCalibration
    from sparsebench.plan.expand import resolved
    from sparsebench.steps.calibration import tokens
    from sparsebench.steps.contract import Context

    out = writable(Path(out), folder=True)
    if out.exists():
        raise UserError(f"{out} exists", "name another folder, or remove it")
    with worded():
        text = resolved(ManifestCalibration.model_validate(dict(calibration or {})), seed)
        steps = _recipe(recipe, text)
    on_device = any(step.settings.on_device() for step in steps)
    there, cache = devices.resolve(device) if on_device else "cpu", sources.Cache(offline=offline)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=out.parent) as scratch:
        parent = model.folder
        for number, step in enumerate(steps, 1):
            made = out if number == len(steps) else Path(scratch) / str(number)
            context = Context(
                model.family, seed, model.calculated("auto", there),
                read=partial(tokens, parent, model.family, text, cache),
                fetch=lambda source: sources.fetch(sources.parse(source), cache),
                dense=model.folder,
                draw=partial(tokens, parent, model.family, cache=cache, training=True),
                device=there,
            )  # fmt: skip
            make(step.verb, parent, {step: made}, context)
            parent = made
    return SingleModel(out.name, out, model.family, model.dtype)


def _recipe(recipe: Recipe, text: Calibration) -> list[Step]:
    """Return the steps of the one variant that a recipe asks for; a step that names no text gets the calibration's."""
    from sparsebench.manifest.recipes import verb_and_name
    from sparsebench.steps.registry import closed_by, combinations, kinds, with_text

    found: list[Step] = []
    for written in [recipe] if isinstance(recipe, Mapping) else recipe:
        verb, name = verb_and_name(written, kinds())
        known = kinds()[verb].classes()
        if not isinstance(name, str) or name not in known:
            raise UserError(f"there is no {verb}: {name}", f"one of {', '.join(known)}")
        given = with_text(written, text.source, (text.field, text.target))
        steps = [*combinations(verb, name, {key: value for key, value in given.items() if key != verb})]
        if len(steps) != 1:
            raise UserError(f"{verb}: {name} asks for {len(steps)} variants", "give each setting one value")
        found += steps
    if not found:
        raise UserError("a recipe without a step", "such as {'prune': 'magnitude', 'sparsity': 0.5}")
    for place, step in enumerate(found[:-1]):
        own = f"{step.verb}: {step.name}"
        for later in found[place + 1 :]:
            if closed_by(step, [(later.verb, later.name)]):
                raise UserError(f"{later.verb}: {later.name} cannot follow {own}", f"make {own} the last step")
    return found


def make(verb: str, parent: Path, folders: Mapping[Step, Path], context: Context) -> dict[Step, Evidence]:
    """Make the variants of one pass, each in its folder, and return what was achieved.

    Raises the first error that a step reports; what the others have made stays.
    """
    from sparsebench.steps.registry import kinds

    results: dict[Step, Evidence | SparsebenchError] = {}
    # Nothing is raised while the pass works: it would take the error for one of its own.
    kinds()[verb].load()(parent, folders, context, results.__setitem__)
    found: dict[Step, Evidence] = {}
    for step, folder in folders.items():
        result = results.get(step)
        if isinstance(result, SparsebenchError):
            raise result
        if result is None or not folder.is_dir():
            raise ModelError(f"{verb}: {step.name}: it ended without a result", "report this as a bug of the step")
        found[step] = result
    return found


@checked
def inspect(model: SingleModel, relative: Sequence[Threshold] = (0.01, 0.1, 0.5, 1.0)) -> pd.DataFrame:
    """Return the shares of zero weights, and of weights at or above each multiple of their tensor's rms.

    There are rows for the whole model, each layer and each kind of module.
    """
    from sparsebench.structure import assess, summary

    rows = summary(assess(model.folder, model.family, (), tuple(relative)))
    found = [
        {"scope": row.scope, "stack": row.side, "layer": row.layer, "kind": row.kind, "weights": row.weights,
         "zeros": row.zeros, **{f"at_least_{t:g}": share for t, share in zip(relative, row.far_from_zero, strict=True)}}
        for row in rows
    ]  # fmt: skip
    return pd.DataFrame(found)


@checked
def sizes(model: SingleModel, formats: Listed[str] = ("dense", "packed")) -> pd.DataFrame:
    """Return the bytes of the model's weights in each format, each written, read back and compared."""
    from sparsebench import storage

    with tempfile.TemporaryDirectory() as scratch:
        found = storage.measure(model.folder, model.family, formats, Path(scratch) / "sizes")
    return pd.DataFrame([asdict(size) for size in found.sizes])


@checked
def score(
    model: SingleModel,
    tasks: NonEmpty | Listed[str],
    against: SingleModel | None = None,
    *,
    limit: Count | None = None,
    num_fewshot: Annotated[int, Field(ge=0, le=bounded.FEW)] | None = None,
    device: Device = "auto",
) -> pd.DataFrame:
    """Return a row for each task: the score with its 95% interval; with ``against``, a paired difference and verdict.

    Raises UserError for a task that does not exist, BenchmarkError for one that fails.
    """
    from sparsebench import benchmarks, devices, sources
    from sparsebench.ledger import scored
    from sparsebench.manifest.problems import did_you_mean

    names = [tasks] if isinstance(tasks, str) else list(tasks)
    if unknown := next((name for name in names if not benchmarks.known(name)), None):
        raise UserError(f"{unknown}: no such task", did_you_mean(unknown, benchmarks.names()) or None)
    specs = [benchmarks.TaskSpec(name, limit, num_fewshot) for name in names]
    there, cache = devices.resolve(device), sources.Cache()

    def failing(task: str, error: SparsebenchError) -> None:
        raise BenchmarkError(f"{task}: {error.message}", error.hint) from error

    dense = results(against, specs, against.calculated("auto", there), there, failing, cache) if against else None
    found = results(model, specs, model.calculated("auto", there), there, failing, cache)
    return pd.DataFrame(scored.rows(found, dense))


def results(
    model: SingleModel,
    specs: Sequence[TaskSpec],
    dtype: Dtype,
    device: str,
    failing: Callable[[str, SparsebenchError], None],
    cache: Cache,
) -> dict[str, ScoreResult]:
    """Return the model's results by task name; ``failing`` is called with each task that has none, and its error."""
    from sparsebench import benchmarks

    found: dict[str, ScoreResult] = {}

    def emit(spec: TaskSpec, result: ScoreResult | SparsebenchError) -> None:
        if isinstance(result, SparsebenchError):
            failing(spec.task, result)
        else:
            found[spec.task] = result

    benchmarks.score(model.folder, model.family, list(specs), cache, emit, dtype=dtype, device=device)
    return found


@checked
def measure(
    model: SingleModel,
    against: SingleModel | None = None,
    *,
    engine: str = "hf",
    ranks: FewCount = 1,
    batch: Count = 1,
    prompt: Count = 128,
    generate: Count = 16,
    samples: Annotated[int, Field(ge=4, le=bounded.MANY)] = 24,
    processes: FewCount = 5,
    device: Device = "auto",
) -> pd.DataFrame:
    """Return a row for each phase: median ms with a 95% interval, speed-up over ``against``, peak memory in bytes.

    Both models are timed in turns; without ``against`` the model is timed against itself, which shows the noise floor.
    """
    from sparsebench import bounded, devices, runtime

    work, there = runtime.Workload(batch, prompt, generate), devices.resolve(device)
    for one in (model, against or model):
        runtime.check_model(bounded.read_object(one.folder / "config.json"), runtime.Setting(engine, ranks, work))
    run_in = model.calculated("auto", there)
    setting = runtime.Setting(engine, ranks, work, run_in, samples, processes=processes, device=there)
    timed = runtime.measure_pair((against or model).folder, model.folder, model.family, setting)
    peaks: dict[str, int] = {}
    try:
        peaks = {
            one.phase: one.peak_bytes for one in runtime.measure_memory(model.folder, model.family, setting).phases
        }
    except SparsebenchError as error:
        warnings.warn(f"peak_bytes: {error}", stacklevel=2)
    faster = {one["phase"]: one for one in speedups(timed)}
    rows = [
        {"phase": one.phase, "ms": one.median_s * 1e3, "ms_low": one.low_s * 1e3, "ms_high": one.high_s * 1e3,
         "steady": one.steady, "peak_bytes": peaks.get(one.phase), **faster.get(one.phase, {})}
        for one in timed.phases
        if one.side == "variant"
    ]  # fmt: skip
    return pd.DataFrame(rows)


def speedups(timed: LatencyResult) -> list[dict[str, Any]]:
    """Return the baseline's time over the variant's by phase, under the names of the view ``latency``."""
    return [
        {"phase": one.phase, "speedup": 1 / one.ratio, "speedup_low": 1 / one.high, "speedup_high": 1 / one.low,
         "pairs": one.pairs}
        for one in timed.differences
    ]  # fmt: skip


@checked
def sql(
    query: NonEmpty | None = None, ledger: NonEmpty | Path | None = None, *, arrow: bool = False
) -> pd.DataFrame | pa.Table:
    """Return the rows of a read-only ``query`` over a ledger; without a query, its views and what each column means.

    ``ledger`` is a file, or None for $SPARSEBENCH_LEDGER or ledger/sparsebench.duckdb; ``arrow`` gives a pyarrow.Table.
    Raises QueryError for SQL that fails, UserError for SQL without a query, NoLedgerError where there is no file.
    """
    from sparsebench.ledger import schema, sqlfiles
    from sparsebench.ledger.query import reader
    from sparsebench.plan.preflight import ledger_path

    asked = sqlfiles.read("describe") if query is None else query
    with reader(ledger_path(Path(ledger) if ledger else None)) as connection, warnings.catch_warnings():
        schema.stand_in(connection, asked)
        found = connection.execute(asked)
        if found is None or found.description is None:
            raise UserError("there is no query in it", "give one SELECT")
        if not arrow:
            return found.df()
        # DuckDB 2 has `to_arrow_table`, and warns that it copies the rows; earlier releases have `fetch_arrow_table`.
        warnings.simplefilter("ignore", UserWarning)
        return getattr(found, "to_arrow_table" if hasattr(found, "to_arrow_table") else "fetch_arrow_table")()
