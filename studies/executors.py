"""What `--executor ray` costs a job: the same jobs, by turns as processes of this one and as tasks of Ray's.

    python studies/executors.py [--times 20] [--address HOST:PORT]

The jobs have nothing to do: the folder that they would read is not there, and they say so. What differs is then the way there
and back. One kind of job starts Python anew; the other is forked from a process that has imported torch and lm-eval, as
scores are. Without an address Ray starts here, on this machine alone. The exit code is 1 where Ray costs more than half a second.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles

from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Job
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs
from sparsebench.run.cluster import Cluster
from sparsebench.run.executor import Executor, RunSettings
from sparsebench.run.local import Local
from sparsebench.run.recorder import JobSpec
from sparsebench.run.workspace import Workspace
from sparsebench.sources import Cache

TARGET = 0.5
"""Seconds a job that Ray may cost."""
KINDS = {"assess": "started anew", "benchmarks": "forked"}
CONTENT = {
    "version": 1,
    "models": [{"name": "none", "source": "path:none", "family": "decoder"}],
    "variants": [{"prune": "magnitude", "sparsity": 0.5}],
    "benchmarks": {"decoder": [{"task": "piqa"}]},
}


def seconds(executor: Executor, settings: RunSettings, plan: Plan, job: Job, number: int) -> float:
    """How long a job takes, from when it is asked for until its end is known. Raises SystemExit where it did not go well."""
    space = settings.workspace
    spec = JobSpec("overhead", job, plan.model("none"), plan.dense["none"], space, settings.cache, True, "none", None)
    log = space.logs / f"{type(executor).__name__}-{job.kind}-{number}.log"
    began = time.monotonic()
    task = executor.start(job, spec, log, [])
    code = task.wait()
    took = time.monotonic() - began
    os.close(task.events)
    if code:
        raise SystemExit(f"{job.kind} ended with {code}: {task.loss_reason} {log.read_text()}")
    return took


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="how often each way (default: 20)")
    parser.add_argument("--address", help="a cluster of Ray's")
    given = parser.parse_args()
    plan = expand(Manifest.model_validate(CONTENT), "overhead", {"none": "r"})
    made = {job.kind: job for job in jobs(plan, plan.cells, lambda _: False)}
    print(
        "| jobs | local, median s | Ray, median s | difference [quartiles] | first job: local | Ray |\n|---|---|---|---|---|---|"
    )
    late = False
    with ExitStack() as held:
        home = Path(held.enter_context(tempfile.TemporaryDirectory()))
        settings = RunSettings(Workspace.of(home / "ledger.duckdb", home / "work"), Cache(home / "cache"), slots=1)
        settings.workspace.logs.mkdir(parents=True)
        began = time.monotonic()
        ray: Executor = held.enter_context(Cluster(settings, given.address))
        ray.begin([])
        once = time.monotonic() - began
        local: Executor = held.enter_context(Local(settings))
        for kind, how in KINDS.items():
            ray.has_room(made[kind], [])  # it asks what nodes there are
            pairs = [
                [seconds(one, settings, plan, made[kind], number) for one in (local, ray)]
                for number in range(given.times + 1)
            ]
            (first_local, first_ray), *others = pairs
            more = [there - here for here, there in others]
            low, middle, high = quantiles(more, n=4)
            here, there = (median(column) for column in zip(*others, strict=True))
            told = [
                f"{here:.2f}",
                f"{there:.2f}",
                f"{middle:.2f} [{low:.2f}, {high:.2f}]",
                f"{first_local:.2f}",
                f"{first_ray:.2f}",
            ]
            print(f"| {how} | {' | '.join(told)} |", flush=True)
            late = late or middle > TARGET
    print(f"Once a run: {once:.1f} s to join the cluster and to ask its nodes. {given.times} jobs each way.")
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
