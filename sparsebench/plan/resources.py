"""Estimates what jobs need: time, and, in bytes and rounded up, downloads and a run's peak of disk and memory."""

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
from sparsebench.plan.stages import COMPARE, MAKE, PREPARE, PROCESSES, TIME, stages, timed
from sparsebench.runtime.engines import engines
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Step
from sparsebench.steps.recover import DENSE
from sparsebench.steps.registry import kinds

PROCESS_BYTES = 700_000_000
"""The memory of a worker process with torch, transformers and DeepSpeed imported."""
PACKED_SHARE = 0.65
"""The typical size of a kept packed copy over its dense size, over a sweep of sparsities."""
MOST_SLOTS = 4
SILENCE_SECONDS = 3600.0
SILENCE_ESTIMATES = 10
"""A job may be silent and idle for SILENCE_SECONDS or SILENCE_ESTIMATES times its estimate, whichever is longer."""


def cell_seconds(cell: Cell, size: ModelSize) -> float:
    """Return a cell's own seconds, without the start of its process."""
    stage = stages().get(cell.stage)
    return stage.seconds(cell, size) if stage else size.bytes / SWEEP_BYTES


def job_seconds(job: Job, sizes: dict[str, ModelSize]) -> float:
    """Return a job's seconds, start included."""
    size = sizes[job.variants[0].model]
    own = sum(cell_seconds(cell, size) for cell in job.cells)
    if job.kind == PREPARE.name:
        own += 2 * size.bytes / SWEEP_BYTES
    if job.kind == MAKE.name:
        own = max(own, size.bytes * len(job.makes) / SWEEP_BYTES) + calibrating(job, size) + training(job, size)
    return PROCESSES[job.kind].start_seconds + own


def silence_seconds(job: Job, sizes: dict[str, ModelSize]) -> float:
    """Return for how many seconds a job may be silent and idle before it is ended."""
    return max(SILENCE_SECONDS, SILENCE_ESTIMATES * job_seconds(job, sizes))


def learned(jobs: Iterable[Job], sizes: dict[str, ModelSize], seconds: Mapping[str, float]) -> dict[str, float]:
    """Return by ``pace`` what finished jobs took over their estimates: the median. ``seconds`` has the cells' by id."""
    ratios: dict[str, list[float]] = {}
    for job in jobs:
        if job.cells:
            took = sum(seconds[cell.id] for cell in job.cells)
            ratios.setdefault(pace(job), []).append(took / job_seconds(job, sizes))
    return {kind: median(found) for kind, found in ratios.items()}


def pace(job: Job) -> str:
    """Return a key for jobs whose estimates err by the same factor: their kind, and for makes the step that they do.

    That a rounding took less time than expected says nothing about a training.
    """
    last = [variant.steps[-1] for variant in job.makes if variant.steps][-1:]
    return " ".join([job.kind, *(f"{step.verb} {step.name}" for step in last)])


def expected_seconds(job: Job, sizes: dict[str, ModelSize], known: Mapping[str, float]) -> float:
    """Return a job's seconds by its estimate, corrected by what was ``learned`` from jobs of its ``pace``."""
    return job_seconds(job, sizes) * known.get(pace(job), 1.0)


def at_once(job: Job, slots: int, gpus: int = 0) -> int:
    """Return how many jobs like this one run at once in ``run/local``.

    A job that must be alone runs alone. Where the run has ``gpus``, jobs that calculate need one for each rank. Others
    run in ``slots``.
    """
    if alone(job, bool(gpus)):
        return 1
    return max(1, min(slots, gpus // ranks_of(job))) if gpus and calculates(job) else slots


@dataclass
class JobGroup:
    """The jobs of one kind: their ``count``, how many run ``at_once`` at most, their ``seconds`` if they run side by
    side, and the seconds of the ``longest``.

    ``calculates`` means on a GPU; ``alone``, with the machine to itself.
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
        """The seconds from the first start to the last end, if no other jobs interfere."""
        return max(self.seconds, self.longest)


def shares(
    jobs: Iterable[Job],
    sizes: dict[str, ModelSize],
    slots: int,
    known: Mapping[str, float] | None = None,
    gpus: int = 0,
) -> list[JobGroup]:
    """Group the jobs by kind, whether they use a GPU and whether they run alone. ``known`` is what was ``learned``."""
    found: dict[tuple[str, bool, bool], JobGroup] = {}
    for job in jobs:
        key = job.kind, bool(gpus) and calculates(job), alone(job, bool(gpus))
        own, many = found.setdefault(key, JobGroup(*key)), at_once(job, slots, gpus)
        expected = expected_seconds(job, sizes, known or {})
        own.count, own.at_once = own.count + 1, max(own.at_once, many)
        own.seconds, own.longest = own.seconds + expected / many, max(own.longest, expected)
    return list(found.values())


def total_seconds(found: Iterable[JobGroup]) -> dict[str, float]:
    """Return the wall seconds by kind of job."""
    totals: dict[str, float] = {}
    for share in found:
        totals[share.kind] = totals.get(share.kind, 0.0) + share.wall
    return totals


@dataclass(frozen=True)
class Needs:
    """Bytes on disk in the work folder, in memory and to ``fetch``. The ``packages`` of unknown size come on top."""

    disk: int
    memory: int
    fetch: int
    packages: int


def needs(ready: Prepared, jobs: Sequence[Job]) -> Needs:
    """Return the needs of ``jobs``.

    On disk: the dense models that are not there yet; the folders of variants that are kept dense, or that wait to be
    timed until nothing else runs; the folders of the widest sweep; the packed copies kept. In memory: two models for a
    timed job, unless only one fits into what is free now; else one for each job that runs at once.
    """
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
            widest = max(widest, made - stay + held(_done(job), size))
            if ready.keep == "packed":
                kept += int(made * PACKED_SHARE)
        memory = max(memory, _held(job, size, free) * at_once(job, beside, gpus))
    fetch, packages = _downloads(ready, jobs)
    prepared = sum(size.bytes for model, size in models.items() if not ready.has(model))
    return Needs(prepared + waiting + widest + kept, memory, fetch, packages)


def _made_bytes(variant: Variant, size: ModelSize) -> int:
    """Return the bytes of a variant's folder, by the share of its parent's bytes that each step leaves."""
    return math.ceil(size.bytes * math.prod(kinds()[step.verb].size(step) for step in variant.steps))


@dataclass(frozen=True)
class MemoryShortage:
    """A model whose jobs lack memory, the machine's or that of one ``gpu``.

    ``needed`` is in bytes. ``alone`` means that even one copy at a time does not fit.
    """

    model: str
    needed: int
    alone: bool
    gpu: bool = False


def crowded(ready: Prepared, jobs: Sequence[Job]) -> list[MemoryShortage]:
    """Return the models that do not fit into the memory free now, or not two at a time where a pair is to be timed."""
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
    """Return whether the cell's engine keeps a model's parameters in main memory."""
    row = engines().get(cell.settings.get("engine", ""))
    return bool(row and row.offloads)


def job_bytes(job: Job, size: ModelSize, apart: bool = False) -> int:
    """Return the bytes of memory that a job takes; ``apart``, with the sides of a timed pair one by one.

    A timed pair is two models beside the mapped files. Ranks that shard hold shares of both.
    """
    process = PROCESSES[job.kind]
    models = process.models_apart if apart else process.models
    own = held(_done(job), size) + _whole(job, size)
    return int(_running_bytes(job.cells, size) * models) + PROCESS_BYTES * ranks_of(job) + own


def _done(job: Job) -> list[Step]:
    """Return the steps that a job does. A variant that is only unpacked needs none."""
    return [cell.variant.steps[-1] for cell in job.making] if job.kind == MAKE.name else []


def _whole(job: Job, size: ModelSize) -> int:
    """Return the model's bytes in the precision that it is read in, if a step has all of it in memory; else 0."""
    if not any(kinds()[step.verb].whole(step) for step in _done(job)):
        return 0
    wide = any(calculated(cell) == "float32" for cell in job.making if "samples" in cell.settings)
    return max(size.bytes, 4 * size.parameters * wide)


def _held(job: Job, size: ModelSize, free: int) -> int:
    """Return the bytes that a job takes if ``free`` are free: a pair that does not fit is timed one side at a time."""
    pair = job_bytes(job, size)
    return pair if pair <= free else job_bytes(job, size, apart=True)


def _running_bytes(cells: Iterable[Cell], size: ModelSize) -> int:
    """Return a model's bytes in the widest precision in which the cells run it, which may be wider than its files'."""
    wide = any(
        calculated(cell, size.device) == "float32" for cell in cells if cell.settings.keys() & {"task", "engine"}
    )
    return max(size.bytes, 4 * size.parameters * wide)


def _downloads(ready: Prepared, jobs: Sequence[Job]) -> tuple[int, int]:
    """Return the bytes of models, texts and data to download, and the number of packages of unknown size."""
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
    done = [step for job in jobs for step in _done(job)]
    if any(kinds()[step.verb].reads_text(step) for step in done) or any(job.kind == COMPARE.name for job in jobs):
        wanted.add(ready.plan.calibration.source)
    for step in done:
        kind = kinds()[step.verb]
        for named in (step.settings.get(key) or [] for key in (*kind.texts, *kind.teachers)):
            wanted |= {Reference.parse(one).source for one in ([named] if isinstance(named, str) else named)}
    known, packages = 0, set()
    for text in sorted(wanted - {"random", DENSE}):
        source = sources.parse(text)
        size = sources.size(source, ready.cache)
        if size is None:
            packages |= {f"{part.project}=={part.version}" for part in source.parts} or {text}
        known += size or 0
    return known, len(packages)


def slots(ready: Prepared) -> int:
    """Return how many jobs run side by side: as many as were asked for, else one per core.

    Without a request there are at most four, or one per GPU if that is more, and fewer where the largest model would
    not fit into memory that often. On GPUs there are that many slots for jobs that calculate on one, and as many for
    others: each kind has half of the memory. On few cores several single-threaded jobs finish more than one job with
    several threads: imports, tokenizing and small matrices do not parallelize.
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
