"""Jobs that wait for others or for room, and which may start next.

There may be 100,000 jobs: no frequent operation looks at all of them.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count

from sparsebench.plan.cells import Job, Variant
from sparsebench.plan.jobs import nodes_of, ranks_of, runs_alone, uses_device
from sparsebench.plan.stages import JOB_KINDS

JobGroup = tuple[str, bool, bool, int, int]
"""The kind of a job and what it asks for: jobs of one group find room, or none, alike."""


class Queue:
    """Jobs in order, each startable once all of its ``after`` have ended.

    A job that was taken may be added again under its id, with less or more to do. It needs its variants' folders until
    ``end``.
    """

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.waiting: dict[str, Job] = {}
        self.ended: set[str] = set()
        self._positions: dict[str, int] = {}
        self._unfinished: dict[str, set[str]] = {}
        self._successors: dict[str, list[str]] = {}
        self._startable: dict[JobGroup, list[tuple[int, str]]] = {}
        self._variants_of: dict[str, list[str]] = {}
        self._job_counts: Counter[str] = Counter()
        self._last_position = count()
        self._first_position = count(-1, -1)
        self.add(jobs)

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[Job]:
        """Iterate over the waiting jobs in the order in which they would start."""
        return iter([self.waiting[job_id] for job_id in sorted(self.waiting, key=self._positions.__getitem__)])

    def add(self, jobs: Iterable[Job], first: bool = False) -> None:
        """Add jobs behind all others; ``first``: add one job before them."""
        for job in jobs:
            self.waiting[job.id] = job
            self._positions[job.id] = next(self._first_position if first else self._last_position)
            self._drop(job.id)
            self._variants_of[job.id] = [variant.id for variant in variants_opened(job)]
            self._job_counts.update(self._variants_of[job.id])
            self.ended.discard(job.id)
            self._unfinished[job.id] = {predecessor for predecessor in job.after if predecessor not in self.ended}
            for predecessor in self._unfinished[job.id]:
                self._successors.setdefault(predecessor, []).append(job.id)
            if not self._unfinished[job.id]:
                self._push(job)

    def take(self, has_room: Callable[[Job], bool]) -> Job | None:
        """Take the first job that may start and has room out of the queue and return it; None where there is none.

        Timed jobs come after all others that may start: most have the machine to themselves.
        Where a job has no room, others of its kind that ask for the same are taken to have none either.
        """
        refused: set[JobGroup] = set()
        while heads := [(heap[0], group) for group, heap in self._startable.items() if heap and group not in refused]:
            (position, job_id), group = min(heads, key=_start_order)
            job = self.waiting.get(job_id)
            if job is None or self._positions[job_id] != position:  # it was taken away, or has another position now
                heapq.heappop(self._startable[group])
            elif has_room(job):
                heapq.heappop(self._startable[group])
                return self.waiting.pop(job_id)
            else:
                refused.add(group)
        return None

    def predecessors_of(self, job: Job) -> list[str]:
        """Return the labels of the jobs that a waiting job still waits for; the id of one that does not wait itself."""
        return sorted(self.waiting[name].label if name in self.waiting else name for name in self._unfinished[job.id])

    def end(self, job: Job) -> None:
        """Note that a job has ended: jobs that waited for it may start, and it needs no folders any more."""
        self.ended.add(job.id)
        self._drop(job.id)
        for successor in self._successors.pop(job.id, ()):
            if successor in self.waiting:
                self._unfinished[successor].discard(job.id)
                if not self._unfinished[successor]:
                    self._push(self.waiting[successor])

    def clear(self) -> None:
        """Remove all waiting jobs; those that were taken go on."""
        for job_id in self.waiting:
            self._drop(job_id)
        self.waiting.clear()
        self._startable.clear()
        self._successors.clear()

    def needs(self, variant: Variant) -> bool:
        """Return whether a job that waits, or has not ended, needs a variant's folder."""
        return self._job_counts[variant.id] > 0

    def _push(self, job: Job) -> None:
        group = (job.kind, runs_alone(job, True), uses_device(job), ranks_of(job), nodes_of(job))
        heapq.heappush(self._startable.setdefault(group, []), (self._positions[job.id], job.id))

    def _drop(self, job_id: str) -> None:
        self._job_counts.subtract(self._variants_of.pop(job_id, ()))


def _start_order(head: tuple[tuple[int, str], JobGroup]) -> tuple[bool, int]:
    (position, _), group = head
    return JOB_KINDS[group[0]].timed, position


def variants_opened(job: Job) -> list[Variant]:
    """Return the variants whose folders a job reads or makes."""
    return [*job.variants, *([job.parent] if job.parent else [])]
