"""What a large manifest costs before and beside its work: planning, scheduling, ingest and a query, with nothing measured.

    python -m studies.scale [--models 1000] [--variants 100] [--tasks 7] [--nodes 4] [--slots 4] [--records 100000]
                              [--only WORD …]

Each part runs in a process of its own, so that its peak memory is its own. Nothing is loaded or computed: the manifest's models
do not exist, jobs take their estimates on a simulated clock, and records hold invented scores of ten documents.
Seconds are of CPU, of all threads, so that a busy machine tells the same as an idle one.

    plan     expand the manifest, gather all cells into jobs (none done), and none of them (all done)
    none     what `sparsebench plan --json` prints, cell by cell, and its estimate, where nothing is recorded yet
    all      the same where all cells are done: an empty file stands for each record, whose name alone is read
    file     write the plan's record, as a run does first, and read it as the next one does
    schedule start and end every job: the real queue and the real rules for room, for one machine and for a cluster
    ingest   check records and bring them into a ledger, in transactions as `sparsebench ingest` does
    results  count and average the view `results`, once to warm up and once timed
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sparsebench import bounded, records, sources
from sparsebench.benchmarks import Outcome, ScoreResult, all_tasks
from sparsebench.cli.plan import show
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.checks import load
from sparsebench.plan.estimate import Estimate, ModelSize
from sparsebench.plan.expand import Plan, expand
from sparsebench.plan.jobs import jobs, runs_alone
from sparsebench.plan.preflight import PlanRequest, Prepared
from sparsebench.plan.resources import job_bytes
from sparsebench.run.cluster import job_capacity, resources
from sparsebench.run.display import Clock
from sparsebench.run.executor import RunSettings
from sparsebench.run.local import Local
from sparsebench.run.queue import Queue
from sparsebench.run.workspace import Workspace
from sparsebench.sources import Cache

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

DOCUMENTS = 10
"""Documents of each score whose record is ingested."""


@dataclass(frozen=True)
class Asked:
    """How large."""

    models: int
    variants: int
    tasks: int
    nodes: int
    slots: int
    records: int


def written(asked: Asked, folder: Path) -> Manifest:
    """A manifest of ``models`` × ``variants`` × (making, structure, storage and ``tasks``) cells, dense ones beside; as loaded
    from its file."""
    names = [f"m{number}" for number in range(asked.models)]
    shares = [round((number + 1) / (asked.variants // 2 + 1), 4) for number in range(asked.variants // 2)]
    content = {
        "version": 1,
        "models": [{"name": name, "source": f"hf:lab/{name}@{40 * '0'}", "family": "decoder"} for name in names],
        "variants": [{"prune": "magnitude", "granularity": ["layer", "row"], "sparsity": shares}],
        "benchmarks": {"decoder": [{"task": task} for task in TASKS[: asked.tasks]]},
    }
    path = folder / "scale.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    return load(path).manifest


def planned(asked: Asked) -> Plan:
    """The cells of that manifest."""
    with tempfile.TemporaryDirectory() as folder:
        manifest = written(asked, Path(folder))
    return expand(manifest, "scale", {model.name: f"revision of {model.name}" for model in manifest.models})


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


class Counted(io.TextIOBase):
    """Where text goes to be counted."""

    characters = 0

    def write(self, text: str) -> int:
        """Forget the text."""
        self.characters += len(text)
        return len(text)


def shown(asked: Asked, done: bool) -> dict[str, Any]:
    """Seconds of `plan --json` from the manifest's file to the last line, and the characters that it prints.

    Of a real one is left out what looks at sources: they do not exist, so that each has an invented size and revision.
    """
    sources.size = lambda *_: 2_000_000_000  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if done:
            (folder / "records").mkdir()
            for cell in planned(asked).cells:
                (folder / "records" / f"{records.record_key(cell, 'cpu')}.done.json").touch()
        started = time.process_time()
        manifest = written(asked, folder)
        found = expand(manifest, "scale", {model.name: f"revision of {model.name}" for model in manifest.models})
        sizes = {model.name: ModelSize(1_000_000_000, 2_000_000_000) for model in found.models}
        ready = Prepared(
            PlanRequest(folder / "scale.yaml"), manifest, found, folder / "l.duckdb", folder, sources.Cache(), sizes
        )
        out = Counted()
        with redirect_stdout(out), redirect_stderr(Counted()):
            show(ready, as_json=True)
        return {"cells": len(found.cells), "plan_s": time.process_time() - started, "characters": out.characters}


def none_done(asked: Asked) -> dict[str, Any]:
    """The plan of a manifest that is new."""
    return shown(asked, False)


def all_done(asked: Asked) -> dict[str, Any]:
    """The plan of a manifest of which every cell has its record."""
    return shown(asked, True)


def file(asked: Asked) -> dict[str, Any]:
    """Seconds to write the plan's record, its bytes, and seconds to read it; none where it is longer than may be read."""
    found = planned(asked)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        records.write_plan(Path(folder), found.manifest, found.cells, "cpu")
        seconds = time.process_time() - started
        size = (Path(folder) / "plan-scale.json").stat().st_size
        started = time.process_time()
        if readable := size <= bounded.PLAN_BYTES:
            list(records.read([Path(folder)]))
        read = time.process_time() - started if readable else None
        return {"cells": len(found.cells), "write_s": seconds, "bytes": size, "read_s": read}


def schedule(asked: Asked) -> dict[str, Any]:
    """Real seconds that the queue, the rules for room and the estimate of what is left take, and simulated days of the run."""
    found = planned(asked)
    sizes = {model.name: ModelSize(1_000_000_000, 2_000_000_000) for model in found.models}
    space = Workspace.of(Path("nowhere/l.duckdb"), Path("nowhere/work"))
    settings = RunSettings(space, Cache(Path("nowhere")), slots=asked.slots, sizes=sizes)
    every = jobs(found, found.cells, lambda _: False)
    nodes = [{"CPU": 4.0 * asked.slots, "memory": 256e9}] * asked.nodes
    local = Local(settings)

    def on_nodes(job: Job, running: list[Any]) -> bool:
        needed = resources(job, settings, nodes, job_bytes(job, sizes[job.variants[0].model]))
        beside = sum(runs_alone(task.job, on_gpu=False) == runs_alone(job, on_gpu=False) for task in running)
        return beside < job_capacity(nodes, needed, runs_alone(job, on_gpu=False))

    return {
        "jobs": len(every),
        **_simulated("local", every, local.room, Clock(Estimate(sizes), asked.slots)),
        **_simulated(f"{asked.nodes}_nodes", every, on_nodes, Clock(Estimate(sizes), asked.slots)),
    }


def _simulated(name: str, every: list[Job], room: Callable[[Job, list[Any]], bool], clock: Clock) -> dict[str, Any]:
    started = time.process_time()
    clock.begin(every)
    queue = Queue(every)
    running: list[Any] = []
    ends: list[tuple[float, int, Any]] = []
    now, most, done = 0.0, 0, 0
    while queue or running:
        while job := queue.take(lambda job: room(job, running)):
            running.append(SimpleNamespace(job=job, own_gpus=""))
            heapq.heappush(ends, (now + clock.estimate.seconds(job), id(job), running[-1]))
            clock.started(job)
        most = max(most, len(running))
        now, _, task = heapq.heappop(ends)
        running.remove(task)
        queue.end(task.job)
        clock.ended(task.job, clock.estimate.seconds(task.job))
        for _ in task.job.cells:
            clock.seconds_left()  # a line a cell says it
        done += 1
    assert done == len(every)
    return {f"{name}_s": time.process_time() - started, f"{name}_days": now / 86400, f"{name}_at_once": most}


def _records(asked: Asked) -> Iterator[dict[str, Any]]:
    """Records of scores of ``DOCUMENTS`` documents; a real one has hundreds or thousands."""
    wanted = -(-asked.records // ((asked.variants + 1) * asked.tasks))
    found = planned(
        Asked(wanted, *(getattr(asked, name) for name in ("variants", "tasks", "nodes", "slots", "records")))
    )
    cells: Iterator[Cell] = (cell for cell in found.cells if cell.stage == "benchmarks")
    for number, cell in enumerate(islice(cells, asked.records)):
        values = [float(place <= number % DOCUMENTS) for place in range(DOCUMENTS)]
        outcomes = tuple(Outcome(str(place), "", value) for place, value in enumerate(values))
        task = all_tasks()[cell.settings["task"]]
        result = ScoreResult.of(task, outcomes, DOCUMENTS, 0.25, {})
        yield records.make(cell, "scale", records.CellOutcome("done", asdict(result)), "cpu")


def ingest(asked: Asked) -> dict[str, Any]:
    """Seconds to bring records into a new ledger, its bytes, and seconds of a query of ``results``."""
    from sparsebench.ledger.query import run
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
            ledger.verify_and_add([("scale", record) for record in batch], None)
            last = time.process_time() - begun
            first = first or last
            spent += last
            count += len(batch)
        sql = "SELECT count(*), avg(score) FROM results"
        (found,) = run(path, sql).rows
        begun = time.process_time()
        run(path, sql)
        took = time.process_time() - begun
        return {
            "records": count, "making_s": made, "ingest_s": spent, "first_batch_s": first, "last_batch_s": last,
            "ledger_bytes": path.stat().st_size, "results_s": took, "results": list(found),
        }  # fmt: skip


PARTS = {"plan": plan, "none": none_done, "all": all_done, "file": file, "schedule": schedule, "ingest": ingest}


def _part(name: str, asked: Asked) -> dict[str, Any]:
    return PARTS[name](asked) | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}


def main() -> None:
    """Print a line of JSON a part."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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
    for name in words["only"]:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            found = process.submit(_part, name, asked).result()
        rounded = {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}
        print(json.dumps({"part": name, **rounded}), flush=True)


if __name__ == "__main__":
    main()
