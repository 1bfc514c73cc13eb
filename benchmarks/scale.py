"""What a large manifest costs before and beside its work: planning, scheduling, ingest and a query, with nothing measured.

    python -m benchmarks.scale [--models 1000] [--variants 100] [--tasks 7] [--nodes 4] [--slots 4] [--records 100000]
                              [--only WORD …]

Each part runs in a process of its own, so that its peak memory is its own. Nothing is loaded or computed: the manifest's models
do not exist, jobs take their estimates on a simulated clock, and records hold invented scores without outcomes of documents.
Seconds are of CPU, of all threads, so that a busy machine tells the same as an idle one.

    plan     expand the manifest, gather all cells into jobs (none done), and none of them (all done)
    file     write the plan's record, as a run does first
    schedule start and end every job: the real queue and the real rules for room, for one machine and for a cluster
    ingest   bring records into a ledger, in transactions as `sparsebench ingest` does
    results  count and average the view `results`, once to warm up and once timed
"""

from __future__ import annotations

import argparse
import heapq
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sparsebench import records
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs
from sparsebench.plan.resources import job_bytes, job_seconds
from sparsebench.run.cluster import places, resources
from sparsebench.run.display import Clock
from sparsebench.run.executor import Settings
from sparsebench.run.local import Local
from sparsebench.run.queue import Queue
from sparsebench.run.workspace import Workspace

TASKS = (
    "piqa",
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "winogrande",
    "boolq",
    "openbookqa",
    "lambada_openai",
    "sciq",
)


@dataclass(frozen=True)
class Asked:
    """How large."""

    models: int
    variants: int
    tasks: int
    nodes: int
    slots: int
    records: int


def planned(asked: Asked) -> Plan:
    """A plan of ``models`` × ``variants`` × (making, structure, storage and ``tasks``) cells, dense ones beside."""
    names = [f"m{number}" for number in range(asked.models)]
    shares = [round((number + 1) / (asked.variants // 2 + 1), 4) for number in range(asked.variants // 2)]
    content = {
        "version": 1,
        "models": [{"name": name, "source": f"path:{name}", "family": "decoder"} for name in names],
        "variants": [{"prune": "magnitude", "granularity": ["layer", "row"], "sparsity": shares}],
        "benchmarks": {"decoder": [{"task": task} for task in TASKS[: asked.tasks]]},
    }
    return expand(Manifest.model_validate(content), "scale", {name: f"revision of {name}" for name in names})


def plan(asked: Asked) -> dict[str, Any]:
    """Seconds to expand, and to gather jobs with no cell done and with all done."""
    started = time.process_time()
    found = planned(asked)
    expanded = time.process_time()
    none_done = jobs(found, found.cells, lambda _: False)
    gathered = time.process_time()
    jobs(found, [], lambda _: True)
    return {
        "cells": len(found.cells),
        "jobs": len(none_done),
        "expand_s": expanded - started,
        "jobs_s": gathered - expanded,
        "all_done_s": time.process_time() - gathered,
    }


def file(asked: Asked) -> dict[str, Any]:
    """Seconds to write the plan's record, and its bytes."""
    found = planned(asked)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        records.write_plan(Path(folder), found.manifest, found.cells)
        seconds = time.process_time() - started
        return {
            "cells": len(found.cells),
            "write_s": seconds,
            "bytes": (Path(folder) / "plan-scale.json").stat().st_size,
        }


def schedule(asked: Asked) -> dict[str, Any]:
    """Real seconds that the queue, the rules for room and the estimate of what is left take, and simulated days of the run."""
    found = planned(asked)
    sizes = {model.name: ModelSize(1_000_000_000, 2_000_000_000) for model in found.models}
    space = Workspace.of(Path("nowhere/l.duckdb"), Path("nowhere/work"))
    settings = Settings(space, Path("nowhere"), slots=asked.slots, sizes=sizes)
    every = jobs(found, found.cells, lambda _: False)
    nodes = [{"CPU": 4.0 * asked.slots, "memory": 256e9}] * asked.nodes
    local = Local(settings)

    def on_nodes(job: Job, running: list[Any]) -> bool:
        needed = resources(job, settings, nodes, job_bytes(job, sizes[job.variants[0].model]))
        beside = sum(task.job.exclusive == job.exclusive for task in running)
        return beside < places(nodes, needed, job.exclusive)

    return {
        "jobs": len(every),
        **_simulated("local", every, local.room, Clock(sizes, asked.slots)),
        **_simulated(f"{asked.nodes}_nodes", every, on_nodes, Clock(sizes, asked.slots)),
    }


def _simulated(name: str, every: list[Job], room: Callable[[Job, list[Any]], bool], clock: Clock) -> dict[str, Any]:
    started = time.process_time()
    queue = Queue(every)
    clock.begin(every)
    now, most, done = 0.0, 0, 0
    running: list[Any] = []
    ends: list[tuple[float, int, Any]] = []
    while queue or running:
        while job := queue.take(lambda job: room(job, running)):
            clock.started(job)
            task = SimpleNamespace(job=job, gpu="")
            running.append(task)
            heapq.heappush(ends, (now + job_seconds(job, clock.sizes), done + len(running), task))
        most = max(most, len(running))
        now, _, task = heapq.heappop(ends)
        running.remove(task)
        queue.end(task.job)
        clock.ended(task.job, job_seconds(task.job, clock.sizes))
        for _ in task.job.cells:
            clock.left()  # a line a cell says it
        done += 1
    assert done == len(every)
    return {f"{name}_s": time.process_time() - started, f"{name}_days": now / 86400, f"{name}_at_once": most}


def _records(asked: Asked) -> Iterator[dict[str, Any]]:
    """Records of scores; without documents' outcomes, which a real one has by the thousand."""
    wanted = -(-asked.records // ((asked.variants + 1) * asked.tasks))
    found = planned(
        Asked(wanted, *(getattr(asked, name) for name in ("variants", "tasks", "nodes", "slots", "records")))
    )
    cells: Iterator[Cell] = (cell for cell in found.cells if cell.stage == "benchmarks")
    for number, cell in enumerate(islice(cells, asked.records)):
        score = 0.5 + (number % 97) / 400
        result = {"task": cell.settings["task"], "metric": "acc", "score": score, "stderr": 0.01, "n": 1000}
        result |= {"limited": False, "chance": 0.25, "protocol": {}, "outcomes": []}
        yield records.make(cell, "scale", records.Outcome("done", result))


def ingest(asked: Asked) -> dict[str, Any]:
    """Seconds to bring records into a new ledger, its bytes, and seconds of a query of ``results``."""
    from sparsebench.ledger.query import session
    from sparsebench.ledger.store import BATCH, Ledger

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "l.duckdb"
        ledger, stream, count = Ledger(path), _records(asked), 0
        made = spent = 0.0
        last = first = 0.0
        while True:
            begun = time.process_time()
            batch = list(islice(stream, BATCH))
            made += time.process_time() - begun
            if not batch:
                break
            begun = time.process_time()
            ledger.ingest(batch)
            last = time.process_time() - begun
            first = first or last
            spent += last
            count += len(batch)
        with session(path) as ask:
            sql = "SELECT count(*), avg(score) FROM results"
            (found,) = ask(sql).rows
            begun = time.process_time()
            ask(sql)
            took = time.process_time() - begun
        return {
            "records": count, "making_s": made, "ingest_s": spent, "first_batch_s": first, "last_batch_s": last,
            "ledger_bytes": path.stat().st_size, "results_s": took, "results": list(found),
        }  # fmt: skip


PARTS = {"plan": plan, "file": file, "schedule": schedule, "ingest": ingest}


def _part(name: str, asked: Asked, out: Any) -> None:
    found = PARTS[name](asked)
    out.put(found | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6})


def main() -> None:
    """Print a line of JSON a part."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("models", 1000),
        ("variants", 100),
        ("tasks", 7),
        ("nodes", 4),
        ("slots", 4),
        ("records", 100_000),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    words = vars(parser.parse_args())
    asked = Asked(**{name: value for name, value in words.items() if name != "only"})
    context = multiprocessing.get_context("spawn")
    for name in words["only"]:
        out = context.Queue()
        process = context.Process(target=_part, args=(name, asked, out))
        process.start()
        found = out.get()
        process.join()
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
        print(json.dumps({"part": name, **rounded}), flush=True)


if __name__ == "__main__":
    main()
