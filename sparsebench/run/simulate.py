"""A run by a clock that jumps from one end of a job to the next: what would run where and when, if estimates were right."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

from sparsebench.plan.cells import Job
from sparsebench.plan.jobs import calculates, ranks_of
from sparsebench.run.executor import RunningJob
from sparsebench.run.local import Local, LocalJob
from sparsebench.run.queue import Queue


class Moment(NamedTuple):
    """A job ``begins`` or ends, so many ``seconds`` after the run's start."""

    seconds: float
    task: Any
    begins: bool


def play(
    jobs: Iterable[Job],
    takes: Callable[[Job], float],
    room: Callable[[Job, Sequence[Any]], bool],
    start: Callable[[Job, Sequence[Any]], RunningJob],
) -> Iterator[Moment]:
    """Every job's start and end, in order, where it ``takes`` so many seconds and an executor's rules say when it has ``room``.

    Jobs for which there never is room are left out, and so is what waits for them.
    """
    queue, numbers, now = Queue(jobs), count(), 0.0
    running: list[RunningJob] = []
    ends: list[tuple[float, int, RunningJob]] = []
    while queue or running:
        while job := queue.take(lambda job: room(job, running)):
            task = start(job, running)
            running.append(task)
            heapq.heappush(ends, (now + takes(job), next(numbers), task))
            yield Moment(now, task, True)
        if not ends:
            return
        now, _, task = heapq.heappop(ends)
        running.remove(task)
        queue.end(task.job)
        yield Moment(now, task, False)


def by_gpu(local: Local, jobs: Iterable[Job], takes: Callable[[Job], float]) -> tuple[list[dict[str, float]], float]:
    """For each GPU of this machine the seconds that it would be busy with each kind of job, and the seconds of the whole run."""
    busy: dict[str, dict[str, float]] = {gpu: defaultdict(float) for gpu in local.gpus}
    last = 0.0

    def start(job: Job, running: Sequence[Any]) -> RunningJob:
        return LocalJob(job, None, -1, local.gpus_of(job, running))  # type: ignore[arg-type]

    for moment in play(jobs, takes, local.room, start):
        job, last = moment.task.job, moment.seconds
        if moment.begins and calculates(job):
            # One that has the machine to itself sees all, and has a rank on each of the first.
            for gpu in moment.task.gpu.split(",") if moment.task.gpu else local.gpus[: ranks_of(job)]:
                busy[gpu][job.kind] += takes(job)
    return [dict(busy[gpu]) for gpu in local.gpus], last
