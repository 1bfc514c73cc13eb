"""Ray without Ray: what is asked of it is noted, and ``work`` stands for what runs on a node."""

import io
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sparsebench import records
from sparsebench.plan.cells import Cell
from sparsebench.plan.estimate import Estimate
from sparsebench.plan.expand import Plan
from sparsebench.run.cluster import Cluster
from sparsebench.run.display import Clock, Display
from sparsebench.run.executor import RunSettings
from sparsebench.run.node import probe
from sparsebench.run.recorder import JobSpec
from sparsebench.run.runner import Runner

Work = Callable[..., Iterator[dict[str, Any]]]


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class OutOfMemoryError(RayError):
    pass


def told(cell: Cell, spec: JobSpec) -> dict[str, Any]:
    """The event of a cell that is done."""
    record = records.make(cell, spec.manifest, records.CellOutcome("done", {}), "cpu")
    event = {"event": "cell", "cell": cell.id, "status": "done", "seconds": 1.0, "reason": None}
    return json.loads(json.dumps({**event, "record": record}))


def done(spec: JobSpec, *_: object) -> Iterator[dict[str, Any]]:
    """As a node does a job, but for the work."""
    yield {"event": "used", "used": (1.0, 1.0)}
    for variant in spec.job.makes:
        folder = spec.workspace.folder(variant)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
    for cell in spec.job.cells:
        yield told(cell, spec)
    yield {"event": "ended", "code": 0, "log": "what it said"}


def damaged(variant_id: str, reason: str = "it is gone") -> Iterator[dict[str, Any]]:
    """As a node does a job that finds a folder damaged."""
    yield {"event": "damaged", "variants": {variant_id: reason}}
    yield {"event": "ended", "code": 0, "log": ""}


def failed(reason: str) -> Iterator[dict[str, Any]]:
    """As a node does a job that fails as a whole."""
    yield {"event": "job_failed", "reason": reason}
    yield {"event": "ended", "code": 1, "log": ""}


class FakeRay:
    """Takes the place of Ray's module: ``alive`` nodes of four CPUs; a placement group is there after so many ``looks``.

    ``answers`` has by node what its probe answers in place of the truth; an error is raised, None is no answer at all.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, OutOfMemoryError=OutOfMemoryError)

    def __init__(self) -> None:
        self.work: Work = done
        self.alive, self.looks = 2, 0
        self.answers: dict[str, Any] = {}
        self.asked: list[dict[str, Any]] = []
        self.groups: list[tuple[list[dict[str, float]], str]] = []
        self.removed: list[str] = []
        self.looking = threading.Event()
        self.util = SimpleNamespace(
            placement_group=self.group,
            remove_placement_group=lambda group: self.removed.append(group.name),
            placement_group_table=lambda group: {"bundles": dict(enumerate(group.shares))},
            scheduling_strategies=SimpleNamespace(
                PlacementGroupSchedulingStrategy=lambda group, at: (group.name, at),
                NodeAffinitySchedulingStrategy=lambda node, soft: node,
            ),
        )

    def init(self, *_: Any, **__: Any) -> None:
        """Nothing is connected, and nothing has to end."""

    shutdown = cancel = init

    def nodes(self) -> list[dict[str, Any]]:
        return [node(f"node-{number}", CPU=4.0, memory=8e9) for number in range(self.alive)]

    def remote(self, function: Any = None, **_: Any) -> Any:
        return SimpleNamespace(options=self.probing if function is probe else self.options) if function else self.remote

    def options(self, **asked: Any) -> Any:
        self.asked.append(asked)
        return SimpleNamespace(remote=self.work)

    def probing(self, scheduling_strategy: str) -> Any:
        return SimpleNamespace(remote=lambda path: (scheduling_strategy, path))

    def wait(self, tasks: list[tuple[str, Path]], **_: Any) -> tuple[list[Any], list[Any]]:
        return [task for task in tasks if self.answers.get(task[0], "") is not None], []

    def get(self, result: Any) -> Any:
        if not isinstance(result, tuple):
            return result
        node_name, path = result
        answer = self.answers.get(node_name, {})
        if isinstance(answer, Exception):
            raise answer
        return probe(path) | answer

    def group(self, shares: list[dict[str, float]], strategy: str, name: str) -> Any:
        self.groups.append((shares, strategy))

        def wait(seconds: int) -> bool:
            self.looks -= 1
            self.looking.set()
            return self.looks < 0

        return SimpleNamespace(shares=shares, name=name, wait=wait)


def node(name: str, **resources: float) -> dict[str, Any]:
    return {"Alive": True, "NodeID": name, "NodeName": name, "Resources": resources}


@dataclass
class Ran:
    """What a run counted, how often each record reached the ledger, what it showed, and its runner."""

    counts: dict[str, int]
    runner: Runner
    shown: list[str]
    ingested: Counter[str] = field(default_factory=Counter)

    def reasons(self) -> set[str]:
        """Why cells failed."""
        folder = self.runner.workspace.records
        keys = [key for key, status in records.statuses(folder).items() if status == "failed"]
        return {str(records.read_cell(folder, key, "failed")["reason"]) for key in keys}


def run(
    plan: Plan, settings: RunSettings, answer: Callable[[str], str] = lambda model: "", cluster: type[Cluster] = Cluster
) -> Ran:
    """Run all cells of a plan on the fake cluster."""
    ingested: Counter[str] = Counter()
    stream = io.StringIO()
    display = Display(Clock(Estimate(settings.sizes)), stream)
    runner = Runner(
        plan,
        settings,
        cluster(settings),
        lambda batch, _: ingested.update(record["key"] for _, record in batch if "key" in record),
        display,
        answer,
    )
    counts = runner.run(plan.cells, (), plan.variants.values())
    return Ran(counts, runner, stream.getvalue().splitlines(), ingested)
