"""What a run will need at its fullest moment: disk, memory and downloads, in bytes, rounded up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsebench import environment, sources
from sparsebench.benchmarks import data_sources
from sparsebench.plan.cells import TIMED, Cell, Job
from sparsebench.plan.estimate import ModelSize, calculated
from sparsebench.plan.preflight import Prepared

PROCESS_BYTES = 700_000_000
"""A worker with torch, transformers and DeepSpeed imported."""
PACKED_SHARE = 0.65
"""What a kept packed copy takes of its dense size, typically, over a sweep of sparsities."""
MOST_SLOTS = 4


PAIR = {"latency": 2.2, "memory": 1.2, "benchmarks": 1.3}
ONE = {**PAIR, "latency": 1.2}
"""Models held at once, with room to work, by kind of job: as planned, and where a pair's sides are timed one by one."""


@dataclass(frozen=True)
class Needs:
    """Bytes: on disk in the work folder, in memory, and to download; ``packages`` of unknown size come on top."""

    disk: int
    memory: int
    fetch: int
    packages: int


def needs(ready: Prepared, jobs: Sequence[Job]) -> Needs:
    """The needs of ``jobs``: the dense models that are not there yet, the folders of what is timed, which wait until nothing
    else runs, the widest sweep's, the packed copies kept; in memory two models when timed, unless only one fits into what is
    free now, else one for each job that runs beside others."""
    models = {job.variants[0].model: ready.sizes[job.variants[0].model] for job in jobs}
    timed = {variant.id for job in jobs if job.exclusive for variant in job.variants}
    waiting = widest = kept = memory = 0
    free = environment.memory()[1]
    for job in jobs:
        size = models[job.variants[0].model]
        if job.kind == "make":
            held = sum(variant.id in timed for variant in job.makes)
            waiting += size.bytes * held
            widest = max(widest, size.bytes * (len(job.makes) - held))
            if ready.manifest.storage and ready.manifest.storage.keep != "none":
                kept += int(size.bytes * len(job.makes) * PACKED_SHARE)
        memory = max(memory, _held(job, size, free) * (1 if job.exclusive else slots(ready)))
    fetch, packages = _downloads(ready, jobs)
    prepared = sum(size.bytes for model, size in models.items() if not ready.has(model))
    return Needs(prepared + waiting + widest + kept, memory, fetch, packages)


@dataclass(frozen=True)
class Crowded:
    """A model for whose jobs memory is short; ``alone`` where even one copy at a time is too much."""

    model: str
    needed: int
    alone: bool


def crowded(ready: Prepared, jobs: Sequence[Job]) -> list[Crowded]:
    """The models that will not fit into what is free now, or not two at a time where a pair is to be timed."""
    free = environment.memory()[1]
    found: dict[str, tuple[bool, int]] = {}
    for job in jobs:
        if any("hosts" in cell.settings for cell in job.cells):
            continue  # this machine's memory says nothing about theirs
        model = job.variants[0].model
        for needed, alone in ((_memory(job, ready.sizes[model]), False), (_memory(job, ready.sizes[model], ONE), True)):
            if needed > free and (alone or job.kind == "latency"):
                found[model] = max(found.get(model, (alone, needed)), (alone, needed))
    return [Crowded(model, needed, alone) for model, (alone, needed) in found.items()]


def _memory(job: Job, size: ModelSize, models: Mapping[str, float] = PAIR) -> int:
    """A timed pair is two models beside the mapped files; sharded ranks hold shares of both."""
    held = models.get(job.kind, 0.2)
    ranks = max((cell.settings.get("ranks", 1) for cell in job.cells), default=1)
    return int(_running_bytes(job.cells, size) * held) + PROCESS_BYTES * ranks


def _held(job: Job, size: ModelSize, free: int) -> int:
    """What a job takes where ``free`` bytes are free: the sides of a pair that does not fit are timed one by one."""
    pair = _memory(job, size)
    return pair if pair <= free else _memory(job, size, ONE)


def _running_bytes(cells: Iterable[Cell], size: ModelSize) -> int:
    """A model's bytes in the widest precision in which the cells run it: not always that of its files."""
    wide = any(calculated(cell) == "float32" for cell in cells if cell.stage in ("benchmarks", *TIMED))
    return max(size.bytes, 4 * size.parameters * wide)


def _downloads(ready: Prepared, jobs: Sequence[Job]) -> tuple[int, int]:
    """Bytes that models and benchmark data will take to download, and how many packages of unknown size."""
    wanted = {cell.variant.source for job in jobs for cell in job.cells if not ready.has(cell.variant.model)}
    tasks = {cell.settings["task"] for job in jobs for cell in job.cells if cell.stage == "benchmarks"}
    wanted |= {source for task in tasks for source in data_sources(task)}
    if any(variant.calibration for job in jobs for variant in job.makes):
        wanted.add(ready.plan.calibration.source)
    known, packages = 0, set()
    for text in sorted(wanted - {"random"}):
        source = sources.parse(text)
        size = sources.size(source, ready.cache, ready.request.offline)
        if size is None:
            packages |= {f"{part.project}=={part.version}" for part in source.parts} or {text}
        known += size or 0
    return known, len(packages)


def slots(ready: Prepared) -> int:
    """Jobs to run side by side: one per core, at most four, fewer where the largest model would not fit so often.

    On few cores several single-threaded jobs finish more than one job with several threads: imports, tokenizing and
    small matrices do not parallelize.
    """
    beside = [cell for cell in ready.plan.cells if cell.stage not in TIMED]
    cells = {name: [cell for cell in beside if cell.variant.model == name] for name in ready.sizes}
    largest = max(_running_bytes(cells[name], size) for name, size in ready.sizes.items())
    fitting = environment.memory()[1] // int(1.5 * largest + PROCESS_BYTES)
    return max(1, min(environment.cores(), MOST_SLOTS, fitting))
