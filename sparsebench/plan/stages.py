"""The stages, each one kind of measurement of a variant, and the kinds of jobs that do them.

A new stage is a row here, a handler for its jobs (``run/handlers``) and a table for its results (``ledger/ingest``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparsebench import benchmarks, environment, runtime, storage, structure
from sparsebench.benchmarks.contract import DRAW_SEED
from sparsebench.manifest.schema import Manifest, ManifestModel, ManifestRuntime, ManifestTask
from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.selection import selects
from sparsebench.runtime.engines import engines
from sparsebench.sources.reference import Reference
from sparsebench.steps.calibration import Calibration
from sparsebench.structure import outputs

USUAL_DOCUMENTS, USUAL_DOCUMENT_TOKENS = 2000, 40
"""Documents of a benchmark, and tokens of a document, where these are not known."""
READINGS = 2
"""How often models other than decoders read a document: in parts, once for each answer, or with masks."""
TOKENS_PER_NEW_TOKEN = 10
"""A generated token takes as long as this many of a prompt: each of them reads all weights."""
WARM_STEPS = 4
"""The steps in which a process warms up a phase of a pair."""
CellSettings = Mapping[str, Any]
"""Everything that is asked of a stage and can change its result."""


@dataclass(frozen=True)
class JobKind:
    """What jobs of one kind have in common.

    ``start_seconds`` is how long a job takes to start and import what it needs, ``speed`` how many parameters × tokens
    it does per second (``plan/estimate``). ``models_held`` is how many models it holds at once, working space included.
    ``timed`` jobs have the machine to themselves (except as ``jobs.runs_alone`` says), and their results are that
    machine's alone. ``paired`` jobs also need the dense model. Jobs with ``uses_device`` use a GPU, where the run has
    one; jobs that only read and write files stay on the CPU.
    """

    name: str
    start_seconds: float
    speed: float
    models_held: float = 0.2
    timed: bool = False
    paired: bool = False
    uses_device: bool = False


PREPARE = JobKind("prepare", 4.0, 25e6)
MAKE = JobKind("make", 3.0, 70e9, uses_device=True)
ASSESS = JobKind("assess", 2.0, 75e6)
SCORE = JobKind("benchmarks", 5.0, 60e9, models_held=1.3, uses_device=True)
COMPARE = JobKind("outputs", 5.0, 25e9, models_held=2.2, paired=True, uses_device=True)
TIME = JobKind("latency", 9.0, 50e9, models_held=2.2, timed=True, paired=True, uses_device=True)
MEMORY = JobKind("memory", 5.0, 80e6, models_held=1.2, timed=True, uses_device=True)
JOB_KINDS = {kind.name: kind for kind in (PREPARE, MAKE, ASSESS, COMPARE, SCORE, TIME, MEMORY)}
"""The kinds of jobs by name, in the order in which a model's jobs follow one another."""


@dataclass(frozen=True)
class Stage:
    """One kind of measurement, done by ``module``, whose VERSION is part of its cells' ids.

    ``settings`` gives what a manifest asks of a variant, one mapping per cell. ``libraries`` and ``versions`` (of a
    task or an engine) say what else can change a result. Cells of equal ``job_key`` are done by one job. ``tokens`` is how
    many tokens go through the model for a cell; 1 stands for reading its weights. A stage that ``reads_text`` reads
    another draw of the calibration text, which is then part of its cells' settings.
    """

    name: str
    job_kind: JobKind
    module: Any
    settings: Callable[[Manifest, ManifestModel, Variant], Iterator[dict[str, Any]]]
    libraries: Callable[[CellSettings], tuple[str, ...]] = lambda _: ()
    versions: Callable[[CellSettings], list[Any]] = lambda _: []
    job_key: Callable[[Cell], object] = lambda _: ""
    tokens: Callable[[Cell], float] = lambda _: 1.0
    reads_text: bool = False


def stage_names() -> tuple[str, ...]:
    """Return the names that a cell's stage may have: ``make``, or a measurement."""
    return (MAKE.name, *STAGES)


def is_timed(stage: str) -> bool:
    """Whether the results of a stage belong to the machine that gave them."""
    return stage in STAGES and STAGES[stage].job_kind.timed


def needs_dense(cell: Cell) -> bool:
    """Whether the dense model is needed to measure a cell."""
    stage = STAGES.get(cell.stage)
    return bool(cell.settings.get("divergence")) or (stage is not None and stage.job_kind.paired)


def _selected(selections: Sequence[CellSettings] | None, variant: Variant) -> bool:
    """Return whether the variant matches any of the selections. The dense model always does."""
    if selections is None or variant.is_dense:
        return True
    return any(selects(selection, variant.steps) for selection in selections)


def _structure(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    if manifest.structure:
        yield {key: sorted(set(thresholds)) for key, thresholds in manifest.structure.model_dump().items()}


def _outputs(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    if manifest.outputs and not variant.is_dense and variant.weights != "random":
        yield manifest.outputs.model_dump() | precision_settings(model)


def _storage(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    if manifest.storage:
        yield {"formats": sorted(set(manifest.storage.formats))}


def _scores(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    if variant.weights == "random":
        return
    for task in manifest.benchmarks.of(model.family):
        if (task.models is None or model.name in task.models) and _selected(task.select, variant):
            settings = _task(task, model)
            if not variant.heuristic or benchmarks.heuristics.has_heuristic(benchmarks.benchmark_of(settings)):
                yield settings


def _task(task: ManifestTask, model: ManifestModel) -> dict[str, Any]:
    labels = {"labels": list(model.labels)} if model.labels else {}
    batch = {} if task.batch == "auto" else {"batch": task.batch}
    # Records from before there was a draw are of the first documents.
    draw = {"draw": DRAW_SEED} if task.limit else {}
    shared = {"task": task.name or task.task, "limit": task.limit, "num_fewshot": task.num_fewshot}
    divergence = {"divergence": True} if task.divergence else {}
    data = own_data_of(task)
    own = {"own": data.settings()} if data else {}
    return shared | draw | labels | batch | divergence | precision_settings(model) | own


def own_data_of(task: ManifestTask) -> benchmarks.OwnData | None:
    """Return what a task asks of the user's own data, once the plan has located these; None for other tasks."""
    if task.source is None:
        return None
    reference = Reference.parse(str(task.source))
    columns = tuple(sorted((role, name) for role, name in (task.columns or {}).items() if role != name))
    return benchmarks.OwnData(
        kind=benchmarks.kind_of(task.task),
        content=reference.identity,
        field=task.field,
        columns=columns,
        length=task.length,
        stride=task.stride,
        metric=task.metric,
        source=reference.source,
    )


def precision_settings(model: ManifestModel) -> dict[str, str]:
    """Return the precision of scores and calibration as a setting; none for ``auto``, which depends on the machine."""
    return {} if model.compute_dtype == "auto" else {"compute_dtype": model.compute_dtype}


def making_settings(model: ManifestModel, calibration: Calibration, variant: Variant) -> dict[str, Any]:
    """Return the settings of the cell that makes a variant: how much text is read, and in which precision, if any is."""
    settings = variant.steps[-1].settings
    read = {"samples": calibration.samples, "length": calibration.length} if settings.reads_text() else {}
    return read | (precision_settings(model) if settings.runs_model() else {})


def _latencies(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    for block, settings in _inference(manifest, model, variant):
        yield from _timings(block, settings, variant)


def _timings(block: ManifestRuntime, settings: dict[str, Any], variant: Variant) -> Iterator[dict[str, Any]]:
    timing = settings | {"samples": block.samples, "processes": block.processes}
    yield timing
    # How fast its kernels are without any zeros, so that a speedup is not wholly attributed to zeros.
    if variant.is_dense and engines()[settings["engine"]].skips_zeros:
        yield timing | {"forced": True}


def _memories(manifest: Manifest, model: ManifestModel, variant: Variant) -> Iterator[dict[str, Any]]:
    for _, settings in _inference(manifest, model, variant):
        yield settings


def block_of(manifest: Manifest, cell: Cell) -> ManifestRuntime:
    """Return the runtime block that asks for a cell: the first, where several ask for the same."""
    model = next(model for model in manifest.models if model.name == cell.variant.model)
    return next(
        block
        for block, settings in _inference(manifest, model, cell.variant)
        if cell.settings in (settings, *_timings(block, settings, cell.variant))
    )


def _inference(
    manifest: Manifest, model: ManifestModel, variant: Variant
) -> Iterator[tuple[ManifestRuntime, dict[str, Any]]]:
    for block in manifest.runtime or []:
        if (block.models is not None and model.name not in block.models) or not _selected(block.select, variant):
            continue
        for engine in block.engines:
            for ranks in _ranks(engine, block.ranks):
                for workload in block.workloads:
                    shared = {"engine": engine, "ranks": ranks, "workload": workload.model_dump()}
                    alone = {"alone": block.alone} if block.alone != "machine" else {}
                    nodes = {"nodes": block.nodes} if ranks > 1 and block.nodes > 1 else {}
                    yield block, shared | nodes | alone | {"dtype": block.dtype}


def _ranks(engine: str, requested: list[int]) -> list[int]:
    """Return the numbers of ranks to measure: if one rank is asked for, only engines that shard get more as well.

    Where only more are asked for, they stay: the cell then says why it is unsupported.
    """
    return [1] if 1 in requested and not engines()[engine].shards else requested


def _task_version(settings: CellSettings) -> list[Any]:
    task = benchmarks.benchmark_of(settings)
    return [task.version] if task and task.version > 1 else []


def _engine_version(settings: CellSettings, measuring: int = 0) -> list[Any]:
    engine = engines().get(settings["engine"])
    if engine is None:
        return []
    return [engine.version, measuring, *([environment.major_minor(engine.package)] if engine.package else [])]


def _format_libraries(settings: CellSettings) -> tuple[str, ...]:
    return tuple(name for form in settings["formats"] for name in storage.formats()[form].libraries)


def compared_tokens(cell: Cell) -> float:
    """Return the tokens of comparing a variant's outputs with the dense model's."""
    # The dense model, the variant, and the variant's blocks on the dense model's inputs.
    return float(3 * cell.settings["samples"] * cell.settings["length"])


def scored_tokens(cell: Cell) -> float:
    """Return the tokens of scoring a variant on a benchmark."""
    return 0.0 if cell.variant.heuristic else (document_count(cell) or USUAL_DOCUMENTS) * _document_tokens(cell)


def timed_tokens(cell: Cell) -> float:
    """Return the tokens of timing a variant beside the dense model."""
    workload = cell.settings["workload"]
    # A prompt is read for prefill and again for generate; decode makes one token, generate all of them.
    request = workload["batch"] * (2 * workload["prompt"] + (workload["generate"] + 1) * TOKENS_PER_NEW_TOKEN)
    return float((WARM_STEPS * cell.settings["processes"] + cell.settings["samples"]) * request)


def document_count(cell: Cell) -> int | None:
    """Return how many documents a benchmark cell scores; None where that is not known before the run."""
    benchmark, limit = benchmarks.benchmark_of(cell.settings), cell.settings.get("limit")
    if benchmark is None:
        return limit
    available = benchmark.n or cell.documents
    limited = limit * benchmark.parts if limit else None
    return min((count for count in (available, limited) if count), default=None)


def _document_tokens(cell: Cell) -> int:
    """Return the tokens that are read of a document, its few-shot examples and its answers."""
    readings = 1 if cell.variant.family == "decoder" else READINGS
    texts = 1 + (cell.settings.get("num_fewshot") or 0)
    benchmark = benchmarks.benchmark_of(cell.settings)
    if benchmark is None:
        return readings * USUAL_DOCUMENT_TOKENS * texts
    window = benchmark.tokens or 0
    if benchmark.adapter == "pseudo_perplexity":
        return window * window  # each token is masked once
    if window and benchmark.adapter != "generation":
        return window
    return readings * (benchmark.prompt or USUAL_DOCUMENT_TOKENS) * texts + TOKENS_PER_NEW_TOKEN * window


_RUNNING = ("torch", "transformers", "tokenizers")
_TIMING = ("torch", "transformers", "deepspeed")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("structure", ASSESS, structure, _structure),
        Stage("storage", ASSESS, storage, _storage, libraries=_format_libraries),
        Stage(
            "outputs", COMPARE, outputs, _outputs, libraries=lambda _: _RUNNING, tokens=compared_tokens, reads_text=True
        ),
        Stage(
            "benchmarks",
            SCORE,
            benchmarks,
            _scores,
            libraries=lambda _: (*_RUNNING, "lm-eval"),
            versions=_task_version,
            job_key=lambda cell: cell.variant.id,
            tokens=scored_tokens,
        ),
        Stage(
            "latency",
            TIME,
            runtime,
            _latencies,
            libraries=lambda _: _TIMING,
            versions=_engine_version,
            job_key=lambda cell: repr(sorted(cell.settings.items())),
            tokens=timed_tokens,
        ),
        Stage(
            "memory",
            MEMORY,
            runtime,
            _memories,
            libraries=lambda _: _TIMING,
            versions=lambda settings: _engine_version(settings, runtime.MEMORY_VERSION),
            job_key=lambda cell: cell.id,
        ),
    )
}
"""Every stage by name, in the order in which a variant goes through them."""
