"""Estimates in bytes, rounded up, what jobs need: downloads, and a run's peak of disk and memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsebench import devices, environment, sources
from sparsebench.benchmarks import data_sources
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import ModelSize, concurrent_jobs
from sparsebench.plan.jobs import ranks_of, uses_device
from sparsebench.plan.preflight import Prepared
from sparsebench.plan.stages import COMPARE, JOB_KINDS, MAKE, TIME
from sparsebench.runtime.engines import engines
from sparsebench.steps.contract import Step
from sparsebench.steps.recover.settings import DENSE
from sparsebench.steps.registry import references

PROCESS_BYTES = 700_000_000
"""The memory of a worker process with torch, transformers and DeepSpeed imported."""
PACKED_SHARE = 0.65
"""The typical size of a kept packed copy over its dense size, over a sweep of sparsities."""
MOST_SLOTS = 4


@dataclass(frozen=True)
class Needs:
    """Bytes on disk in the work folder, in memory and to ``fetch``. The ``packages`` of unknown size come on top."""

    disk: int
    memory: int
    fetch: int
    packages: int


def needs(ready: Prepared, jobs: Sequence[Job]) -> Needs:
    """Return the needs of ``jobs``.

    On disk: the dense models that are not there yet; the folders of variants that are kept dense, or whose time and memory
    are measured after all else; the folders of the widest sweep; the packed copies kept. In memory: two models for a
    timed job, unless only one fits into what is free now; else one for each job that runs at once.
    """
    models = {job.variants[0].model: ready.sizes[job.variants[0].model] for job in jobs}
    free, gpus = environment.memory()[1], len(devices.selected_gpus(ready.device))
    slot_count = slots(ready)
    timed_ids = {variant.id for job in jobs if JOB_KINDS[job.kind].timed for variant in job.variants}
    waiting_bytes = widest_bytes = packed_bytes = peak = 0
    for job in jobs:
        size = models[job.variants[0].model]
        if job.kind == MAKE.name:
            staying = size.bytes * sum(ready.keep == "dense" or variant.id in timed_ids for variant in job.makes)
            waiting_bytes += staying
            widest_bytes = max(widest_bytes, size.bytes * len(job.makes) - staying + _step_bytes(job, size))
            packed_bytes += int(size.bytes * len(job.makes) * PACKED_SHARE) if ready.keep == "packed" else 0
        pair_bytes = job_bytes(job, size, ready.device)
        job_memory = pair_bytes if pair_bytes <= free else job_bytes(job, size, ready.device, one_by_one=True)
        peak = max(peak, job_memory * concurrent_jobs(job, slot_count, gpus))
    fetch, packages = _downloads(ready, jobs)
    prepared = sum(size.bytes for model, size in models.items() if not ready.has(model))
    return Needs(prepared + waiting_bytes + widest_bytes + packed_bytes, peak, fetch, packages)


@dataclass(frozen=True)
class MemoryShortage:
    """A model whose jobs lack memory, the machine's or that of one ``gpu``.

    ``needed`` is in bytes. ``alone`` means that even one copy at a time does not fit.
    """

    model: str
    needed: int
    alone: bool
    gpu: bool = False


def memory_shortages(ready: Prepared, jobs: Sequence[Job]) -> list[MemoryShortage]:
    """Return the models that do not fit into the memory free now, or not two at a time where a pair is to be timed."""
    free, gpu_memory = environment.memory()[1], devices.free_memory(ready.device)
    shortages: dict[tuple[str, bool], tuple[bool, int]] = {}
    for job in jobs:
        if any(cell.nodes for cell in job.cells):
            continue  # this machine's memory says nothing about theirs
        model, ranks = job.variants[0].model, ranks_of(job)
        engines_used = [cell.settings["engine"] for cell in job.cells if "engine" in cell.settings]
        on_gpu = uses_device(job) and not any(engines()[name].offloads for name in engines_used)
        for one_by_one in (False, True) if job.kind == TIME.name else (True,):
            job_memory = job_bytes(job, ready.sizes[model], ready.device, one_by_one)
            rank_memory = (job_memory - PROCESS_BYTES * ranks) // ranks
            rooms = [(False, job_memory, free), (True, rank_memory, gpu_memory if on_gpu else None)]
            for gpu, needed, room in rooms:
                if room is not None and needed > room:
                    shortages[model, gpu] = max(shortages.get((model, gpu), (one_by_one, needed)), (one_by_one, needed))
    return [MemoryShortage(model, needed, one_by_one, gpu) for (model, gpu), (one_by_one, needed) in shortages.items()]


def job_bytes(job: Job, size: ModelSize, device: str = "cpu", one_by_one: bool = False) -> int:
    """Return the bytes of memory that a job takes on a device, with both models of a timed pair or ``one_by_one``.

    A timed pair is two models beside the mapped files. Ranks that shard hold shares of both.
    """
    kind = JOB_KINDS[job.kind]
    copies = kind.models_held - (1 if one_by_one and kind.timed and kind.paired else 0)
    return (
        int(_running_bytes(job.cells, size, device) * copies) + PROCESS_BYTES * ranks_of(job) + _step_bytes(job, size)
    )


def _steps_done(job: Job) -> list[Step]:
    """Return the steps that a job does. A variant that is only unpacked needs none."""
    return [cell.variant.steps[-1] for cell in job.making_cells] if job.kind == MAKE.name else []


def _step_bytes(job: Job, size: ModelSize) -> int:
    """Return the extra bytes that a job's steps hold in memory and on disk: the most, as they are done in turn."""
    bytes_per_parameter = (step.settings.bytes_per_parameter() for step in _steps_done(job))
    return int(size.parameters * max(bytes_per_parameter, default=0.0))


def _running_bytes(cells: Iterable[Cell], size: ModelSize, device: str) -> int:
    """Return a model's bytes in the widest precision in which the cells run it, which may be wider than its files'."""
    running = [cell for cell in cells if cell.settings.keys() & {"task", "engine"} or cell.stage == "outputs"]
    in_float32 = any(cell.compute_dtype(device) == "float32" for cell in running)
    return max(size.bytes, 4 * size.parameters * in_float32)


def _downloads(ready: Prepared, jobs: Sequence[Job]) -> tuple[int, int]:
    """Return the bytes of models, texts and data to download, and the number of packages of unknown size."""
    source_texts = {cell.variant.source for job in jobs for cell in job.cells if not ready.has(cell.variant.model)}
    scored = [cell.settings for job in jobs for cell in job.cells if "task" in cell.settings]
    tasks = {settings["task"] for settings in scored if "own" not in settings}
    source_texts |= {source for task in tasks for source in data_sources(task)}
    source_texts |= {ready.plan.data[settings["own"]["content"]] for settings in scored if "own" in settings}
    steps = [step for job in jobs for step in _steps_done(job)]
    if any(step.settings.reads_text() for step in steps) or any(job.kind == COMPARE.name for job in jobs):
        source_texts.add(ready.plan.calibration.source)
    for step in steps:
        keys = (*step.settings.text_keys, *step.settings.teacher_keys)
        source_texts |= {named.source for names in references(step, keys).values() for named in names}
    total, packages = 0, set()
    for text in sorted(source_texts - {"random", DENSE}):
        source = sources.parse(text)
        size = sources.size(source, ready.cache)
        if size is None:
            packages |= {f"{part.project}=={part.version}" for part in source.parts} or {text}
        total += size or 0
    return total, len(packages)


def slots(ready: Prepared) -> int:
    """Return how many jobs run side by side: as many as were asked for, else one per core.

    Without a request there are at most four, or one per GPU if that is more, and fewer where the largest model would
    not fit into memory that often. On GPUs there are that many slots for jobs that calculate on one, and as many for
    others: each kind has half of the memory. On few cores several single-threaded jobs finish more than one job with
    several threads: imports, tokenizing and small matrices do not parallelize.
    """
    if ready.request.jobs:
        return ready.request.jobs
    model_cells: dict[str, list[Cell]] = defaultdict(list)
    for cell in ready.plan.cells:
        if cell.stage != TIME.name or devices.is_gpu(ready.device):
            model_cells[cell.variant.model].append(cell)
    largest = max(_running_bytes(model_cells[name], size, ready.device) for name, size in ready.sizes.items())
    gpus = len(devices.selected_gpus(ready.device))
    fitting = environment.memory()[1] // int(1.5 * largest + PROCESS_BYTES) // (2 if gpus else 1)
    return max(1, min(environment.cores(), max(MOST_SLOTS, gpus), fitting))
