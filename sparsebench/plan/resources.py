"""What jobs will take: time, and at a run's fullest moment disk, memory and downloads, in bytes, rounded up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sparsebench import devices, environment, sources
from sparsebench.benchmarks import data_sources
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import SWEEP_BYTES, ModelSize, calculated, calibrating, held, training
from sparsebench.plan.jobs import alone, calculates, ranks_of
from sparsebench.plan.preflight import Prepared
from sparsebench.plan.stages import MAKE, PREPARE, PROCESSES, TIME, stages, timed
from sparsebench.runtime.engines import engines
from sparsebench.steps.registry import kinds

PROCESS_BYTES = 700_000_000
"""A worker with torch, transformers and DeepSpeed imported."""
PACKED_SHARE = 0.65
"""What a kept packed copy takes of its dense size, typically, over a sweep of sparsities."""
MOST_SLOTS = 4
SILENCE_SECONDS = 3600.0
SILENCE_ESTIMATES = 10
"""A job may be silent, and do nothing, for an hour or so many times its estimate, whichever is longer."""


def cell_seconds(cell: Cell, size: ModelSize) -> float:
    """A cell's own time, without its process's start."""
    stage = stages().get(cell.stage)
    return stage.seconds(cell, size) if stage else size.bytes / SWEEP_BYTES


def job_seconds(job: Job, sizes: dict[str, ModelSize]) -> float:
    """A job's time, start included."""
    size = sizes[job.variants[0].model]
    own = sum(cell_seconds(cell, size) for cell in job.cells)
    if job.kind == PREPARE.name:
        own += 2 * size.bytes / SWEEP_BYTES
    if job.kind == MAKE.name:
        own = max(own, size.bytes * len(job.makes) / SWEEP_BYTES) + calibrating(job, size) + training(job, size)
    return PROCESSES[job.kind].start_seconds + own


def silence_seconds(job: Job, sizes: dict[str, ModelSize]) -> float:
    """For how long a job may neither say nor do anything before it is given up."""
    return max(SILENCE_SECONDS, SILENCE_ESTIMATES * job_seconds(job, sizes))


def learned(jobs: Iterable[Job], sizes: dict[str, ModelSize], seconds: Mapping[str, float]) -> dict[str, float]:
    """By ``pace``, what finished jobs took of their estimates: the median. ``seconds`` are those of the cells, by id."""
    ratios: dict[str, list[float]] = {}
    for job in jobs:
        if job.cells:
            took = sum(seconds[cell.id] for cell in job.cells)
            ratios.setdefault(pace(job), []).append(took / job_seconds(job, sizes))
    return {kind: median(found) for kind, found in ratios.items()}


def pace(job: Job) -> str:
    """What jobs have in common whose estimates are wrong by the same factor: their kind, and what is made and how. That weights
    were rounded in less time than expected says nothing of a training."""
    last = [variant.steps[-1] for variant in job.makes if variant.steps][-1:]
    return " ".join([job.kind, *(f"{step.verb} {step.name}" for step in last)])


def expected_seconds(job: Job, sizes: dict[str, ModelSize], known: Mapping[str, float]) -> float:
    """A job's time by its estimate and by what was ``learned`` of its like."""
    return job_seconds(job, sizes) * known.get(pace(job), 1.0)


def at_once(job: Job, slots: int, gpus: int = 0) -> int:
    """How many jobs like this one run at once, as ``run/local`` has room: a timed one alone, those that calculate one a GPU
    (or so many GPUs as they have ranks) where the run has ``gpus``, others in ``slots``."""
    if alone(job, bool(gpus)):
        return 1
    return max(1, min(slots, gpus // ranks_of(job))) if gpus and calculates(job) else slots


@dataclass
class JobGroup:
    """The jobs of one kind: how many, at most how many ``at_once``, the ``seconds`` of their work, side by side, and of
    the longest.

    ``calculates``: on a GPU; ``alone``: with the machine to itself.
    """

    kind: str
    calculates: bool
    alone: bool
    at_once: int = 1
    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    @property
    def wall(self) -> float:
        """Seconds from the first's start to the last's end, if nothing else is in the way."""
        return max(self.seconds, self.longest)


def shares(
    jobs: Iterable[Job],
    sizes: dict[str, ModelSize],
    slots: int,
    known: Mapping[str, float] | None = None,
    gpus: int = 0,
) -> list[JobGroup]:
    """The jobs by kind and place. ``known`` is what was ``learned``."""
    found: dict[tuple[str, bool, bool], JobGroup] = {}
    for job in jobs:
        key = job.kind, bool(gpus) and calculates(job), alone(job, bool(gpus))
        own, many = found.setdefault(key, JobGroup(*key)), at_once(job, slots, gpus)
        expected = expected_seconds(job, sizes, known or {})
        own.count, own.at_once = own.count + 1, max(own.at_once, many)
        own.seconds, own.longest = own.seconds + expected / many, max(own.longest, expected)
    return list(found.values())


def total_seconds(found: Iterable[JobGroup]) -> dict[str, float]:
    """Wall seconds by kind of job."""
    totals: dict[str, float] = {}
    for share in found:
        totals[share.kind] = totals.get(share.kind, 0.0) + share.wall
    return totals


@dataclass(frozen=True)
class Needs:
    """Bytes: on disk in the work folder, in memory, and to download; ``packages`` of unknown size come on top."""

    disk: int
    memory: int
    fetch: int
    packages: int


def needs(ready: Prepared, jobs: Sequence[Job]) -> Needs:
    """The needs of ``jobs``: the dense models that are not there yet, the folders of what is kept, or timed and so waits until
    nothing else runs, the widest sweep's, the packed copies kept; in memory two models when timed, unless only one fits into
    what is free now, else one for each job that runs beside others."""
    models = {job.variants[0].model: ready.sizes[job.variants[0].model] for job in jobs}
    free, beside, gpus = environment.memory()[1], slots(ready), len(devices.chosen(ready.device))
    timed = {variant.id for job in jobs if alone(job, bool(gpus)) for variant in job.variants}
    waiting = widest = kept = memory = 0
    for job in jobs:
        size = models[job.variants[0].model]
        if job.kind == MAKE.name:
            made = sum(_made_bytes(variant, size) for variant in job.makes)
            stay = sum(
                _made_bytes(variant, size) for variant in job.makes if ready.keep == "dense" or variant.id in timed
            )
            waiting += stay
            resumed = held([variant.steps[-1] for variant in job.makes], size)
            widest = max(widest, made - stay + resumed)
            if ready.keep == "packed":
                kept += int(made * PACKED_SHARE)
        memory = max(memory, _held(job, size, free) * at_once(job, beside, gpus))
    fetch, packages = _downloads(ready, jobs)
    prepared = sum(size.bytes for model, size in models.items() if not ready.has(model))
    return Needs(prepared + waiting + widest + kept, memory, fetch, packages)


def _made_bytes(variant: Variant, size: ModelSize) -> int:
    """What a variant's folder takes of the disk, by what each of its steps leaves of its parent's bytes."""
    return math.ceil(size.bytes * math.prod(kinds()[step.verb].size(step) for step in variant.steps))


@dataclass(frozen=True)
class MemoryShortage:
    """A model for whose jobs memory is short, the machine's or one ``gpu``'s; ``alone`` where even one copy at a time is too
    much."""

    model: str
    needed: int
    alone: bool
    gpu: bool = False


def crowded(ready: Prepared, jobs: Sequence[Job]) -> list[MemoryShortage]:
    """The models that will not fit into what is free now, or not two at a time where a pair is to be timed."""
    free, each = environment.memory()[1], devices.free_memory(ready.device)
    found: dict[tuple[str, bool], tuple[bool, int]] = {}
    for job in jobs:
        if any(cell.nodes for cell in job.cells):
            continue  # this machine's memory says nothing about theirs
        model, ranks = job.variants[0].model, ranks_of(job)
        on_gpu = calculates(job) and not any(_offloads(cell) for cell in job.cells)
        for apart in (False, True) if job.kind == TIME.name else (True,):
            whole = job_bytes(job, ready.sizes[model], apart)
            share = (whole - PROCESS_BYTES * ranks) // ranks
            for gpu, needed, room in ((False, whole, free), (True, share, each if on_gpu else None)):
                if room is not None and needed > room:
                    found[model, gpu] = max(found.get((model, gpu), (apart, needed)), (apart, needed))
    return [MemoryShortage(model, needed, apart, gpu) for (model, gpu), (apart, needed) in found.items()]


def _offloads(cell: Cell) -> bool:
    """Whether its engine keeps a model's parameters in main memory."""
    row = engines().get(cell.settings.get("engine", ""))
    return bool(row and row.offloads)


def job_bytes(job: Job, size: ModelSize, apart: bool = False) -> int:
    """What a job takes of memory. A timed pair is two models beside the mapped files; sharded ranks hold shares of both."""
    process = PROCESSES[job.kind]
    models = process.models_apart if apart else process.models
    own = held([variant.steps[-1] for variant in job.makes if variant.steps], size)
    own += _whole(job, size)
    return int(_running_bytes(job.cells, size) * models) + PROCESS_BYTES * ranks_of(job) + own


def _whole(job: Job, size: ModelSize) -> int:
    """The model in the precision that it is read in, where a step has all of it in memory."""
    last = [variant.steps[-1] for variant in job.makes if variant.steps]
    if not any(kinds()[step.verb].whole(step) for step in last):
        return 0
    wide = any(calculated(cell) == "float32" for cell in job.making if "samples" in cell.settings)
    return max(size.bytes, 4 * size.parameters * wide)


def _held(job: Job, size: ModelSize, free: int) -> int:
    """What a job takes where ``free`` bytes are free: the sides of a pair that does not fit are timed one by one."""
    pair = job_bytes(job, size)
    return pair if pair <= free else job_bytes(job, size, apart=True)


def _running_bytes(cells: Iterable[Cell], size: ModelSize) -> int:
    """A model's bytes in the widest precision in which the cells run it: not always that of its files."""
    wide = any(
        calculated(cell, size.device) == "float32" for cell in cells if cell.settings.keys() & {"task", "engine"}
    )
    return max(size.bytes, 4 * size.parameters * wide)


def _downloads(ready: Prepared, jobs: Sequence[Job]) -> tuple[int, int]:
    """Bytes that models and benchmark data will take to download, and how many packages of unknown size."""
    wanted = {cell.variant.source for job in jobs for cell in job.cells if not ready.has(cell.variant.model)}
    tasks = {
        cell.settings["task"]
        for job in jobs
        for cell in job.cells
        if "task" in cell.settings and "own" not in cell.settings
    }
    wanted |= {source for task in tasks for source in data_sources(task)}
    own = {cell.settings["own"]["content"] for job in jobs for cell in job.cells if "own" in cell.settings}
    wanted |= {ready.plan.data[content] for content in own}
    if any(variant.calibration for job in jobs for variant in job.makes):
        wanted.add(ready.plan.calibration.source)
    known, packages = 0, set()
    for text in sorted(wanted - {"random"}):
        source = sources.parse(text)
        size = sources.size(source, ready.cache)
        if size is None:
            packages |= {f"{part.project}=={part.version}" for part in source.parts} or {text}
        known += size or 0
    return known, len(packages)


def slots(ready: Prepared) -> int:
    """Jobs to run side by side: as many as were asked for, else one per core, at most four, or one a GPU; fewer where the largest
    model would not fit so often.

    On GPUs there are so many of either kind, those that calculate on one and those that do not: each has half of the memory.

    On few cores several single-threaded jobs finish more than one job with several threads: imports, tokenizing and
    small matrices do not parallelize.
    """
    if ready.request.jobs:
        return ready.request.jobs
    cells: dict[str, list[Cell]] = defaultdict(list)
    for cell in ready.plan.cells:
        if not timed(cell.stage) or devices.is_gpu(ready.device):
            cells[cell.variant.model].append(cell)
    largest = max(_running_bytes(cells[name], size) for name, size in ready.sizes.items())
    gpus = len(devices.chosen(ready.device))
    fitting = environment.memory()[1] // int(1.5 * largest + PROCESS_BYTES) // (2 if gpus else 1)
    return max(1, min(environment.cores(), max(MOST_SLOTS, gpus), fitting))
