"""``sparsebench plan``: every cell of a manifest, whether it will run and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sparsebench import devices, environment, processor
from sparsebench.benchmarks import all_tasks, benchmark_of
from sparsebench.cli import options
from sparsebench.cli.output import emit_json, emit_table, note, notes
from sparsebench.errors import LedgerError
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.query import run as query
from sparsebench.ledger.statistics import ASSUMED, detectable, documents_needed
from sparsebench.manifest.names import FAMILIES
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import Estimate, wall_seconds
from sparsebench.plan.jobs import jobs
from sparsebench.plan.preflight import PlanRequest, Prepared, prepare
from sparsebench.plan.resources import memory_shortages, needs, slots
from sparsebench.plan.stages import MAKE, document_count
from sparsebench.run.select import DecisionKind, decisions, parse_only, unmatched
from sparsebench.run.workspace import Workspace
from sparsebench.runtime.engines import engines
from sparsebench.units import counted, duration, size

WORTH_SEEING = 0.02
"""A drop, as a share of documents, that most readers would want to know of."""
TOO_LARGE = (
    "use a smaller dtype or a machine with more memory, pack a pruned model for `measure --engine sparse`, "
    "or, on a GPU, use the deepspeed-zero3 engine"
)
TOO_LARGE_FOR_TWO = "is too much for a pair: dense and variant are timed apart"


def plan(
    manifest: options.MANIFEST,
    only: options.ONLY = None,
    rehearse: options.REHEARSE = False,
    full: options.FULL = False,
    device: options.MANIFEST_DEVICE = None,
    executor: options.EXECUTOR = "local",
    ledger: options.LEDGER = None,
    offline: options.OFFLINE = False,
    as_json: options.JSON = False,
) -> None:
    """Show every cell of a manifest, whether it will run and why, and what the run needs.

    \b
    sparsebench plan quickstart.yaml
    sparsebench plan experiments.yaml --rehearse --json
    """
    ready = prepare_plan(
        manifest, only, executor, ledger=ledger, offline=offline, rehearse=rehearse, full=full, device=device
    )
    show(ready, as_json)


def prepare_plan(manifest: Path, only: list[str] | None, executor: str, **request: Any) -> Prepared:
    """Prepare what ``plan`` or ``run`` is asked for; ``request`` has more fields of a PlanRequest.

    Raises what ``prepare`` does, and UserError for an executor that does not exist, a key that no cell has, or an
    ``only`` that no cell matches.
    """
    options.check_name("executor", executor, options.EXECUTORS)
    ready = prepare(PlanRequest(manifest, only=parse_only(only or []), executor=executor, **request))
    notes("--only: no cell has", unmatched(ready))
    return ready


def show(ready: Prepared, as_json: bool) -> None:
    """Print the plan."""
    workspace = Workspace.of(ready.ledger, ready.work)
    decided = decisions(ready, workspace.records, ready.request.retry_failed)
    rows = [
        {
            "cell": decision.cell.id,
            "model": decision.cell.variant.model,
            "variant": decision.cell.variant.recipe,
            "what": decision.cell.label,
            "runs": decision.runs,
            "why": decision.reason,
            # The smallest drop that shows; None where outcomes are not 0/1 or the number of documents is unknown.
            "detectable": detectable(count) if (count := _scored_documents(decision.cell)) else None,
        }
        for decision in decided
    ]
    if as_json:
        emit_json(rows)
    else:
        columns = ["model", "variant", "what", "runs", "why"]
        visible_rows = (
            row | {"runs": "yes" if row["runs"] else "no"} for row in rows if row["why"] != DecisionKind.LEFT_OUT
        )
        emit_table(columns, ([row[column] for column in columns] for row in visible_rows))
        if hidden := sum(decision.kind == DecisionKind.LEFT_OUT for decision in decided):
            note(f"not listed: {counted(hidden, 'cell')} {DecisionKind.LEFT_OUT}")
    announce(ready, [decision.cell for decision in decided if decision.runs])


def announce(ready: Prepared, cells: list[Cell]) -> Estimate:
    """Print the estimate (cells, time, disk, memory, download) to stderr, and return it with what it has learned."""
    workspace = Workspace.of(ready.ledger, ready.work)
    jobs_to_do = jobs(ready.plan, cells, workspace.present, workspace.has_packed)
    work = f"{len(cells)} of {counted(len(ready.plan.cells), 'cell')} to do in {counted(len(jobs_to_do), 'job')}"
    note(f"{ready.plan.manifest}: {work}")
    refused_here = Counter((f"{refused.path}:{refused.line}", refused.message) for refused in ready.refused.values())
    for (line, reason), count in refused_here.items():
        note(f"  {line}: {reason}: {counted(count, 'cell')} cannot run here", "yellow")
    if not cells:
        return Estimate(ready.sizes, ready.device)
    estimate, learning_note = _learned_estimate(ready)
    stages = Counter(cell.stage for cell in cells)
    note(f"  cells: {', '.join(f'{count} {stage}' for stage, count in stages.items())}")
    times = wall_seconds(jobs_to_do, estimate, slots(ready), len(devices.selected_gpus(ready.device)))
    by_stage = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in times.items())
    note(f"  about {duration(sum(times.values()))}: {by_stage}")
    for text in [learning_note, *_conditions(ready, cells)]:
        if text:
            note(f"  {text}")
    _announce_needs(ready, jobs_to_do)
    return estimate


def _conditions(ready: Prepared, cells: list[Cell]) -> Iterator[str]:
    """Yield what the results depend on: what is prunable, the device, emulated precisions, and limits on documents.

    Tasks that no model has the family for come first.
    """
    families = {model.family for model in ready.manifest.models}
    for family in FAMILIES:
        if family not in families and (tasks := ready.manifest.benchmarks.of(family)):
            task_names = ", ".join(task.name or task.task for task in tasks)
            yield f"`benchmarks: {family}` is not scored, for no model is of this family: {task_names}"
    shares = [f"{model.prunable:.0%} of {name}" for name, model in ready.sizes.items() if model.prunable is not None]
    if shares and any(cell.stage == MAKE.name for cell in cells):
        yield f"sparsities are shares of what is prunable: {', '.join(shares)}"
    if gpus := len(devices.selected_gpus(ready.device)):
        device_name = environment.place(ready.device)["device"]
        yield f"on {counted(gpus, 'GPU')} ({device_name}), assumed as fast as an H100"
    if not devices.is_gpu(ready.device):
        yield from _emulated_models(ready, cells)
        yield from _slow_kernels(cells)
    yield from dict.fromkeys(map(_unseen_drop, cells))


def _announce_needs(ready: Prepared, jobs_to_do: Sequence[Job]) -> None:
    """Print the disk, memory and downloads that the jobs need, and warn of what this machine lacks."""
    requirement = needs(ready, jobs_to_do)
    free = environment.free_disk(ready.work)
    if requirement.disk > free:
        way_out = "set work_dir to a larger disk, or keep: none"
        note(f"  the disk of {ready.work} has only {size(free)} free: {way_out}", "yellow")
    for shortage in memory_shortages(ready, jobs_to_do):
        memory = "a GPU's memory" if shortage.gpu else "memory"
        effect = f"will not fit: {TOO_LARGE}" if shortage.alone else TOO_LARGE_FOR_TWO
        note(f"  {shortage.model} needs about {size(shortage.needed)} of {memory}, which {effect}", "yellow")
    packages = counted(requirement.packages, "package") if requirement.packages else ""
    sources = size(requirement.fetch) if requirement.fetch else ""
    downloads = " and ".join(filter(None, [sources, packages])) or "nothing"
    note(f"  up to {size(requirement.disk)} of disk, {size(requirement.memory)} of memory; to fetch: {downloads}")


def _learned_estimate(ready: Prepared) -> tuple[Estimate, str]:
    """Return estimates that know what this machine took for those of the plan's cells that it has done, and a note."""
    estimate = Estimate(ready.sizes, ready.device)
    if not ready.ledger.is_file():
        return estimate, ""
    try:
        rows = query(ready.ledger, sqlfiles.read("spent"), {"place": environment.place(ready.device)["id"]}).rows
    except LedgerError as error:
        return estimate, f"the pace of this machine is unknown: {error}"
    seconds = dict(rows)
    cells = [cell for cell in ready.plan.cells if cell.id in seconds]
    for job in jobs(ready.plan, cells, lambda _: True):
        if job.cells:
            estimate.learn(job, sum(seconds[cell.id] for cell in job.cells))
    return estimate, f"times are learned from {counted(len(cells), 'cell')} of this machine" if cells else ""


def _emulated_models(ready: Prepared, cells: list[Cell]) -> Iterator[str]:
    """Yield which 16-bit models this CPU would emulate, in which precision they run, and which setting decides it."""
    for subject, timed, setting in (
        ("scores and calibration", False, "the model's `compute_dtype`"),
        ("latency and memory", True, "`dtype` under `runtime`"),
    ):
        models_by_dtype: dict[str, list[str]] = {}
        for cell in cells:
            model = ready.sizes[cell.variant.model]
            is_16_bit = model.bytes < 4 * model.parameters
            is_meant = "engine" in cell.settings if timed else _runs_in_compute_dtype(cell)
            if is_meant and is_16_bit and processor.is_emulated(cell.variant.dtype):
                models_by_dtype.setdefault(cell.compute_dtype(ready.device), []).append(cell.variant.model)
        for dtype, models in models_by_dtype.items():
            slow_suffix = " and slow" if processor.is_emulated(dtype) else ""
            model_names = ", ".join(dict.fromkeys(models))
            precision = f"{dtype}{slow_suffix}"
            yield f"{subject} of {model_names} are in {precision}: this CPU emulates 16 bits ({setting} decides)"


def _runs_in_compute_dtype(cell: Cell) -> bool:
    """Whether a cell runs a model in the precision of scores and calibration, which is no setting where it is ``auto``."""
    if cell.stage == MAKE.name:
        return cell.variant.steps[-1].settings.runs_model()
    return cell.stage in ("benchmarks", "outputs") and not cell.variant.heuristic


def _slow_kernels(cells: list[Cell]) -> Iterator[str]:
    """Yield which engines have no fast kernels for this CPU, and what that costs."""
    for engine_name in dict.fromkeys(cell.settings["engine"] for cell in cells if cell.stage == "latency"):
        engine = engines()[engine_name]
        missing = [name for name in engine.fast_with if name not in processor.instruction_sets()]
        if missing:
            yield f"engine {engine_name} is slow on this CPU, which lacks {' and '.join(missing)}: {engine.slower}"


def _unseen_drop(cell: Cell) -> str:
    """Say in a sentence which drop a `limit` hides and how many documents would show it; empty for other cells."""
    documents = _scored_documents(cell)
    if not documents or not cell.settings.get("limit"):
        return ""
    task = cell.settings["task"]
    drop = detectable(documents)
    sentence = f"a drop below {100 * drop:.2g} points goes unseen" if drop else "no drop can be seen"
    all_documents = all_tasks()[task].n if task in all_tasks() else 0
    if all_documents > documents and (smallest := detectable(all_documents)):
        sentence += f"; all {all_documents:,} show one of {100 * smallest:.2g}"
    if not drop or drop > WORTH_SEEING:
        sentence += f"; {100 * WORTH_SEEING:g} points take {documents_needed(WORTH_SEEING):,}"
    return f"{task}, {documents:,} documents: {sentence} (if {ASSUMED:.0%} of the answers change)"


def _scored_documents(cell: Cell) -> int | None:
    """Return how many documents a benchmark cell scores as right or wrong; None where unknown or not so scored."""
    if cell.stage != "benchmarks":
        return None
    benchmark = benchmark_of(cell.settings)
    return None if benchmark and benchmark.scale != "0/1" else document_count(cell)
