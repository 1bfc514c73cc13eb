"""Content fingerprints: same id, same result. An id covers everything that can change what a cell measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from sparsebench import environment
from sparsebench.benchmarks import TASKS
from sparsebench.plan.cells import TIMED, Stage
from sparsebench.runtime import memory
from sparsebench.runtime.engines import engines
from sparsebench.storage import formats

STAGE_LIBRARIES: dict[Stage, tuple[str, ...]] = {
    "sparsify": ("torch",),
    "structure": (),
    "storage": (),
    "benchmarks": ("torch", "transformers", "lm-eval"),
    "latency": ("torch", "transformers", "deepspeed"),
    "memory": ("torch", "transformers", "deepspeed"),
}
"""The libraries whose major.minor is part of a stage's ids."""


def digest(value: Any) -> str:
    """A short hash of any JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def stage_version(stage: Stage) -> int:
    """The stage's VERSION, from its room."""
    from sparsebench import benchmarks, runtime, storage, structure
    from sparsebench.steps import prune

    rooms = {
        "sparsify": prune,
        "structure": structure,
        "storage": storage,
        "benchmarks": benchmarks,
        "latency": runtime,
        "memory": runtime,
    }
    version: int = rooms[stage].VERSION
    return version


def variant_id(identity: Mapping[str, Any]) -> str:
    """The id of a variant: source revision, dtype, and for a sparsified one its method's settings, VERSION and torch."""
    made = {} if identity["method"] == "dense" else _stage("sparsify")
    return digest([dict(identity), made])


def cell_id(stage: Stage, variant: str, settings: Mapping[str, Any]) -> str:
    """The id of a cell. Runtime cells also depend on the class of machine and the engine's own version, scores on the task's."""
    where = _where(stage, settings["engine"]) if stage in TIMED else _changed(settings.get("task", ""))
    libraries = [name for form in settings.get("formats", ()) for name in formats()[form].libraries]
    return digest([stage, variant, dict(settings), _stage(stage, libraries), where])


def _where(stage: Stage, engine: str) -> str:
    """The class of machine, the version of an engine whose own code has changed, and that of memory's measuring."""
    row = engines().get(engine)
    own = f", {engine} {row.version}" if row and row.version else ""
    return environment.machine() + own + (f", memory {memory.VERSION}" if stage == "memory" else "")


def _changed(name: str) -> str:
    """The version of a task whose own code has changed."""
    task = TASKS.get(name)
    return f"{name} {task.version}" if task and task.version > 1 else ""


def _stage(stage: Stage, more: Iterable[str] = ()) -> dict[str, Any]:
    libraries = {name: environment.major_minor(name) for name in (*STAGE_LIBRARIES[stage], *more)}
    return {"version": stage_version(stage), "libraries": libraries}
