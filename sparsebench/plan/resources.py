"""What a run will need at its fullest moment: disk, memory and downloads, in bytes, rounded up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparsebench import environment
from sparsebench.plan.cells import Job
from sparsebench.plan.preflight import Prepared

PROCESS_BYTES = 700_000_000
"""A worker with torch, transformers and DeepSpeed imported."""
PACKED_SHARE = 0.65
"""What a kept packed copy takes of its dense size, typically, over a sweep of sparsities."""
MOST_SLOTS = 4


@dataclass(frozen=True)
class Needs:
    """Bytes: on disk in the work folder, in memory, and to download."""

    disk: int
    memory: int
    fetch: int


def needs(ready: Prepared, jobs: Iterable[Job]) -> Needs:
    """The needs of ``jobs``: all dense models, the widest sweep's folders, the packed copies kept, two models when timed."""
    dense = widest = kept = memory = fetch = 0
    seen: set[str] = set()
    for job in jobs:
        model = job.variants[0].model
        size = ready.sizes[model]
        if model not in seen:
            seen.add(model)
            dense += size.bytes
            fetch += size.fetch
        if job.kind == "make":
            widest = max(widest, size.bytes * len(job.makes))
            if ready.manifest.storage and ready.manifest.storage.keep != "none":
                kept += int(size.bytes * len(job.makes) * PACKED_SHARE)
        # A timed pair is two models beside the mapped files; sharded ranks hold shares of both.
        held = {"latency": 2.2, "memory": 1.2, "benchmarks": 1.3}.get(job.kind, 0.2)
        ranks = max((cell.settings.get("ranks", 1) for cell in job.cells), default=1)
        memory = max(memory, int(size.bytes * held) + PROCESS_BYTES * ranks)
    return Needs(dense + widest + kept, memory, fetch)


def slots(ready: Prepared) -> int:
    """Jobs to run side by side: one per core, at most four, fewer where the largest model would not fit so often.

    On few cores several single-threaded jobs finish more than one job with several threads: imports, tokenizing and
    small matrices do not parallelize.
    """
    largest = max(size.bytes for size in ready.sizes.values())
    fitting = environment.memory()[1] // int(1.5 * largest + PROCESS_BYTES)
    return max(1, min(environment.cores(), MOST_SLOTS, fitting))
