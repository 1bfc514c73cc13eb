"""What each kind of job does, one function a kind: call the package that measures, hand each result to the recorder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from sparsebench import benchmarks, devices, environment, runtime, sources, storage, structure
from sparsebench.errors import ModelError, SparsebenchError, StorageError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.jobs import ranks_of, reads_dense, runs_alone, unpacks
from sparsebench.plan.stages import needs_dense
from sparsebench.run.recorder import JobSpec, Recorder
from sparsebench.sources.text import read_texts
from sparsebench.steps.calibration import Calibration, sample_texts, tokens
from sparsebench.steps.contract import Context, Step, StepReport
from sparsebench.steps.registry import fitted_to, kinds
from sparsebench.storage import sums, unpack
from sparsebench.storage.measure import Size
from sparsebench.structure.outputs import WAY_OUT, compare_outputs

BUSY_CORES = 0.3
"""From this many cores on that other work keeps busy, a timed job says so."""


def prepare(spec: JobSpec, recorder: Recorder) -> None:
    """Fetch the model and leave it as a Hugging Face folder in the manifest's precision."""
    from sparsebench.models.prepare import obtain

    out = spec.workspace.folder(spec.dense)
    obtain(spec.model, out, spec.cache, spec.dense.seed)
    sums.seal(out)
    if spec.dense_checksum and spec.workspace.content(spec.dense) != spec.dense_checksum:
        spec.workspace.discard(out)
        raise ModelError(
            f"{spec.model.name}: its folder was damaged; after it was made again, its weights differ from the original ones",
            f"what was fetched is damaged too: remove it from {spec.cache.root}, and run again",
        )


def make(spec: JobSpec, recorder: Recorder) -> None:
    """Make the folders of the job's variants in one pass over their parent.

    A variant that has a packed copy, and whose making is no cell of the job, is unpacked instead.
    """
    cells = {cell.variant.id: cell for cell in spec.job.cells}
    with_packed_copy = [variant for variant in spec.job.makes if unpacks(spec.job, variant, spec.workspace.has_packed)]
    damaged_copies = [variant for variant in with_packed_copy if not _unpacked(spec, recorder, variant)]
    to_make = [variant for variant in spec.job.makes if variant not in with_packed_copy or variant in damaged_copies]
    if not to_make or spec.job.parent is None:
        return
    # A variant whose packed copy is damaged needs folders that may not be there: unpacking did not need them. The job
    # is then done again, and finds the others unpacked.
    if damaged_copies and (damaged_folders := damaged(spec)):
        recorder.damaged(damaged_folders)
        return
    # Each recipe ends in a step of its own: they share all steps before it.
    variant_of = {variant.steps[-1]: variant for variant in to_make}

    def emit(step: Step, outcome: StepReport | SparsebenchError) -> None:
        variant = variant_of[step]
        if isinstance(outcome, SparsebenchError):
            recorder.variant_failed(variant, outcome)
        else:
            sums.seal(spec.workspace.folder(variant), spec.device)
            _note_changed_weights(spec, recorder, variant)
        if variant.id in cells:
            recorder.record(cells[variant.id], outcome)

    make_variants = kinds()[to_make[0].steps[-1].verb].load()
    parent = spec.workspace.folder(spec.job.parent)
    targets = {step: spec.workspace.folder(variant) for step, variant in variant_of.items()}
    make_variants(parent, targets, _context(spec, recorder, parent, variant_of), emit)


def _context(spec: JobSpec, recorder: Recorder, parent: Path, variant_of: Mapping[Step, Variant]) -> Context:
    """Return what the steps that make variants out of the folder ``parent`` may ask for."""
    family, cache = spec.model.family, spec.cache
    return Context(
        family=family,
        seed=next(iter(variant_of.values())).seed,
        dtype=spec.compute_dtype,
        calibration_tokens=lambda: tokens(parent, family, spec.calibration, cache),
        fetch_file=lambda text: sources.fetch(sources.parse(text), cache),
        progress=recorder.progress,
        dense=spec.workspace.folder(spec.dense),
        training_tokens=lambda asked: tokens(parent, family, asked, cache, training=True),
        resume=lambda step: spec.workspace.training(variant_of[step]),
        note=recorder.note,
        device=spec.device,
    )


def _note_changed_weights(spec: JobSpec, recorder: Recorder, variant: Variant) -> None:
    """Note that a variant that was made again has other weights than those that were recorded."""
    checksum = spec.workspace.content(variant)
    if spec.recorded_checksums.get(variant.id, checksum) != checksum:
        recorder.note(
            f"{variant.label}: made again, its weights differ from those recorded: another processor or number of "
            "threads rounds differently. Results of the first weights count alone; another --ledger has room for these"
        )


def _unpacked(spec: JobSpec, recorder: Recorder, variant: Variant) -> bool:
    """Unpack a kept copy, unless that was done before, and return True; remove a damaged one and return False."""
    if spec.workspace.present(variant):
        return True
    packed, folder = spec.workspace.packed(variant), spec.workspace.folder(variant)
    damage = sums.damage(packed)
    try:
        if damage is None:
            unpack(packed, folder)
            sums.seal(folder)
            return True
    except (StorageError, ModelError) as error:
        damage = error.message
    recorder.note(f"{variant.label}: its packed copy is damaged ({damage}): made again")
    spec.workspace.discard(packed)
    return False


def assess(spec: JobSpec, recorder: Recorder) -> None:
    """Assess the structure and storage of each variant."""
    from sparsebench.models.modules.operations import operations_per_token

    def measure(cell: Cell) -> Any:
        folder = spec.workspace.folder(cell.variant)
        if cell.stage == "structure":
            absolute, relative = cell.settings["absolute"], cell.settings["relative"]
            result = structure.assess(folder, spec.model.family, absolute, relative)
            return replace(result, operations_token=operations_per_token(Checkpoint(folder).config, spec.model.family))
        packed_copy = (
            spec.workspace.packed(cell.variant) if spec.kept_format == "packed" and not cell.variant.is_dense else None
        )
        scratch = spec.workspace.scratch()
        try:
            stored = storage.measure(
                folder, spec.model.family, cell.settings["formats"], scratch, keep_packed=packed_copy
            )
            if packed_copy and packed_copy.is_dir():  # a GGUF variant has no packed copy
                sums.write_checksums(packed_copy)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return replace(stored, sizes=(*stored.sizes, *_as_fetched(spec))) if cell.variant.is_dense else stored

    for cell in spec.job.cells:
        recorder.attempt(cell, measure)


def _as_fetched(spec: JobSpec) -> Iterator[Any]:
    """Yield the size of the model's own file. It may be smaller than anything made of it: a GGUF file is quantized."""
    from sparsebench.models.prepare import weight_bytes

    source, cache = sources.parse(spec.model.source), spec.cache
    # Only if it is still in the cache: nothing is downloaded for a size.
    if source.kind == "random" or sources.size(source, cache) != 0:
        return
    if nbytes := weight_bytes(sources.fetch(source, cache)):
        yield Size("source", nbytes, None, 0.0, None)


def outputs(spec: JobSpec, recorder: Recorder) -> None:
    """Compare the outputs of each variant's blocks with those of the dense model's."""
    dense, family, dtype = spec.workspace.folder(spec.dense), spec.model.family, spec.compute_dtype
    # A manifest asks the same of all its variants.
    settings = {key: value for key, value in spec.job.cells[0].settings.items() if key != "compute_dtype"}
    text = Calibration(**{**settings, "source": spec.calibration.source})
    try:
        calibrated = tokens(dense, family, text, spec.cache)
    except UnsupportedError as error:  # its way out is that of pruning
        raise UnsupportedError(error.message, WAY_OUT) from error

    def measure(cell: Cell) -> Any:
        folder = spec.workspace.folder(cell.variant)
        return compare_outputs(dense, folder, family, calibrated.batch, dtype, spec.device, recorder.progress)

    for cell in spec.job.cells:
        recorder.attempt(cell, measure)


def score(spec: JobSpec, recorder: Recorder) -> None:
    """Score one variant on all tasks in one model load."""
    variant = spec.job.variants[0]
    tasks = {
        benchmarks.TaskSpec(**_task_settings(cell.settings), own=_own_data(cell, spec)): cell for cell in spec.job.cells
    }

    def record(task: Any, outcome: Any) -> None:
        recorder.record(tasks[task], outcome)

    folder, cache = spec.workspace.folder(variant), spec.cache
    if variant.heuristic:
        benchmarks.heuristics.score(list(tasks), cache, record)
        return
    training_texts = [sample_texts(folder, spec.model.family, spec.calibration, cache)] if variant.calibration else []
    training_texts += [_trained_on(step, cache) for step in variant.steps if fitted_to(step)]
    fitted = benchmarks.FittedTexts(chain.from_iterable(training_texts), spec.allow_overlap) if training_texts else None
    dense = None if variant.is_dense else spec.workspace.folder(spec.dense)
    model = benchmarks.ScoredModel(folder, spec.model.family, spec.compute_dtype, spec.device, dense)
    benchmarks.score(model, list(tasks), cache, record, recorder.progress, fitted)


def _trained_on(step: Step, cache: Any) -> Iterator[str]:
    """Yield all texts that a step may have trained a model on."""
    for text, columns in fitted_to(step):
        path = sources.fetch(sources.parse(text.source), cache)
        yield from chain.from_iterable(read_texts(path, *columns).rows)


def latency(spec: JobSpec, recorder: Recorder) -> None:
    """Time each variant in turn against the dense model, in one rank group that holds both."""
    cells = {cell.variant.id: cell for cell in spec.job.cells}
    folders = [(key, spec.workspace.folder(cell.variant)) for key, cell in cells.items()]

    def record(key: str, outcome: Any) -> None:
        recorder.record(cells[key], outcome)

    setting = _runtime_setting(spec.job.cells[0], spec)
    if environment.busy_cores() >= BUSY_CORES:
        recorder.note("the machine is busy with other work: timing takes longer, and intervals are wider")
    dense = spec.workspace.folder(spec.dense)
    runtime.measure_latency(dense, folders, spec.model.family, setting, record, recorder.progress)


def memory(spec: JobSpec, recorder: Recorder) -> None:
    """Measure the memory of each variant by itself."""
    for cell in spec.job.cells:
        folder = spec.workspace.folder(cell.variant)
        recorder.record(cell, runtime.measure_memory(folder, spec.model.family, _runtime_setting(cell, spec)))


def _runtime_setting(cell: Cell, spec: JobSpec) -> Any:
    settings = cell.settings
    return runtime.Setting(
        engine=settings["engine"],
        ranks=settings["ranks"],
        workload=runtime.Workload(**settings["workload"]),
        dtype=cell.compute_dtype(spec.device),
        samples=settings.get("samples", 1),
        processes=settings.get("processes", 1),
        forced=settings.get("forced", False),
        threads=_rank_threads(spec.job, spec.device),
        nodes=spec.nodes if "nodes" in settings else (),
        group=spec.group if "nodes" in settings else "",
        device=spec.device,
    )


def _rank_threads(job: Job, device: str) -> int | None:
    """Return a rank's threads, its part of the cores that the executor gave the job; None on a CPU or when alone."""
    if not devices.is_gpu(device) or runs_alone(job, True):
        return None
    return max(1, int(os.environ["OMP_NUM_THREADS"]) // ranks_of(job))


def _task_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that ``TaskSpec`` takes as they are, with hashable values."""
    return {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in settings.items()
        if key not in ("compute_dtype", "draw", "own")
    }


def _own_data(cell: Cell, spec: JobSpec) -> Any:
    """Return what a cell asks of the user's own data, with the data's source; None where it asks nothing."""
    own_settings = cell.settings.get("own")
    return benchmarks.OwnData.read(own_settings, spec.data[own_settings["content"]]) if own_settings else None


def variants_read(spec: JobSpec) -> list[Variant]:
    """Return the variants whose folders a job reads."""
    if spec.job.makes:
        to_make = [variant for variant in spec.job.makes if not unpacks(spec.job, variant, spec.workspace.has_packed)]
        dense_read = [spec.dense] if any(map(reads_dense, to_make)) else []
        return [*dict.fromkeys([*([spec.job.parent] if to_make and spec.job.parent else []), *dense_read])]
    folders = [variant for variant in spec.job.variants if not variant.heuristic]
    return [*([spec.dense] if any(map(needs_dense, spec.job.cells)) else []), *folders]


def damaged(spec: JobSpec) -> dict[str, str]:
    """Return what is wrong with the damaged folders among those that the job reads, by id of their variants."""
    damage = {variant.id: spec.workspace.damage(variant) for variant in variants_read(spec)}
    return {variant_id: reason for variant_id, reason in damage.items() if reason}


HANDLERS: dict[str, Callable[[JobSpec, Recorder], None]] = {
    "prepare": prepare,
    "make": make,
    "assess": assess,
    "outputs": outputs,
    "benchmarks": score,
    "latency": latency,
    "memory": memory,
}

_MODELS: tuple[str, ...] = ("torch", "transformers.modeling_utils")
LIBRARIES = {
    **dict.fromkeys(("prepare", "make", "assess"), _MODELS),
    **dict.fromkeys(("outputs", "benchmarks"), (*_MODELS, "lm_eval.evaluator")),
}
"""By kind of job, libraries that take seconds to import: a run has many such jobs, so they are forked after that."""
