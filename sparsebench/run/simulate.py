"""A run simulated with a clock that jumps from event to event: what runs where and when if the estimates are right."""

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
    """The beginning or the end of a job, in ``seconds`` after the run's start."""

    seconds: float
    task: Any
    begins: bool


def play(
    jobs: Iterable[Job],
    takes: Callable[[Job], float],
    room: Callable[[Job, Sequence[Any]], bool],
    start: Callable[[Job, Sequence[Any]], RunningJob],
) -> Iterator[Moment]:
    """Yield every job's start and end, in order: a job ``takes`` its seconds, an executor decides if it has ``room``.

    Jobs for which there never is room are left out, and so are those that wait for them.
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
    """Return for each GPU of this machine the busy seconds by kind of job, and the seconds of the whole run."""
    busy: dict[str, dict[str, float]] = {gpu: defaultdict(float) for gpu in local.gpus}
    last = 0.0

    def start(job: Job, running: Sequence[Any]) -> RunningJob:
        return LocalJob(job, None, -1, local.gpus_of(job, running))  # type: ignore[arg-type]

    for moment in play(jobs, takes, local.room, start):
        job, last = moment.task.job, moment.seconds
        if moment.begins and calculates(job):
            # A job that has the machine to itself sees all GPUs, and has its ranks on the first ones.
            for gpu in moment.task.gpu.split(",") if moment.task.gpu else local.gpus[: ranks_of(job)]:
                busy[gpu][job.kind] += takes(job)
    return [dict(busy[gpu]) for gpu in local.gpus], last
