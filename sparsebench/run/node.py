"""What a node of a Ray cluster does with a job that it is given: a process of its own does it, as on one machine."""

from __future__ import annotations

import atexit
import json
import math
import os
import select
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench import __version__, devices, environment, records
from sparsebench.errors import MeasureError, UserError
from sparsebench.paths import sweep_temporary
from sparsebench.plan.stages import JOB_KINDS
from sparsebench.run.executor import RunningJob, RunSettings
from sparsebench.run.local import Local
from sparsebench.run.placement import NODE_START_TIMEOUT
from sparsebench.run.recorder import JobSpec
from sparsebench.runtime.channel import complete_lines
from sparsebench.runtime.nodes import addresses, on_bundle

HEARTBEAT_SECONDS = 60.0
"""How often a node reports what its job has used. This disturbs a timed job for milliseconds, and the job may be silent
for an hour."""


@dataclass(frozen=True)
class NodeIdentity:
    """What all nodes of one run must have in common, since ids are made from it. ``machine_id`` is in timed cells' keys."""

    versions: tuple[tuple[str, str], ...]
    machine_id: str
    machine: str

    @classmethod
    def here(cls, device: str) -> NodeIdentity:
        """Return the identity of this process, for a resolved device."""
        versions = {"sparsebench": __version__, **environment.versions()}
        machine_class = environment.place(device)
        return cls(tuple(versions.items()), machine_class["id"], machine_class["machine"])

    def differs(self, other: NodeIdentity, timed: bool) -> str:
        """Say how another node differs, if at all; for ``timed`` work its machine must be of the same class."""
        other_versions = dict(other.versions)
        reasons = [
            f"{name} {other_versions.get(name, 'absent')} instead of {version}"
            for name, version in self.versions
            if other_versions.get(name) != version
        ]
        if timed and self.machine_id != other.machine_id:
            machines = f"{other.machine} instead of {self.machine}"
            reasons.append(f"it is another kind of machine ({machines}), and times are asked for")
        return ", ".join(reasons)

    def check(self, node: str, other: NodeIdentity, timed: bool) -> None:
        """Raise UserError, with the ``node``'s name, where it ``differs``."""
        if reason := self.differs(other, timed):
            raise UserError(f"node {node}: {reason}", "start the same environment on every node")


_kept: dict[str, Local] = {}
"""On a node: this process's executor, which keeps a fork server between jobs. Ray uses a process again for its next task."""


def probe(path: Path) -> dict[str, Any]:
    """Return this node's identity, without its GPUs, which only jobs see, and whether ``path`` is there."""
    return {"identity": NodeIdentity.here("cpu"), "shared": path.exists()}


def do_job(
    spec: JobSpec,
    settings: RunSettings,
    cpus: int,
    expected: NodeIdentity,
    group: str = "",
    working_folder: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Do a job in a process of this node, in a Ray task of ``cpus`` CPUs.

    Yields the job's events (those of cells with their records), regularly what it has used, and last its exit code and
    what it printed. Where the job's ranks lie on several nodes, this is the first of the placement ``group``. Relative
    ``path:`` sources are resolved from ``working_folder``, which nodes share.

    Raises UserError where this node is not as ``expected``: it may have joined after the run had asked all nodes.
    """
    job = spec.job
    if working_folder is not None and working_folder.is_dir():
        os.chdir(working_folder)
    expected.check(socket.gethostname(), NodeIdentity.here(settings.device), JOB_KINDS[job.kind].timed)
    if group:
        spec = _with_nodes(spec, settings.device, expected, group)
    local = _executor(replace(settings, slots=max(1, environment.cores() // cpus)))
    with tempfile.TemporaryDirectory(dir=local.temporary) as name:
        home = Path(name)
        workspace = replace(spec.workspace, records=home / "records", logs=home)
        task = local.start(job, replace(spec, workspace=workspace), home / "log")
        try:
            yield {"event": "used", "used": (0.0, 0.0)}
            for event in _events(task, min(HEARTBEAT_SECONDS, (settings.silence or math.inf) / 20)):
                if event["event"] == "cell":
                    cell = next(cell for cell in job.cells if cell.id == event["cell"])
                    key = records.record_key(cell, spec.device)
                    event["record"] = records.read_cell(workspace.records, key, event["status"])
                yield event
            yield {"event": "ended", "code": task.wait(), "log": (home / "log").read_text(errors="replace")}
        finally:
            local.end([task])
            os.close(task.events)


def _identity(device: str) -> NodeIdentity:
    return NodeIdentity.here(device)


def _with_nodes(spec: JobSpec, device: str, expected: NodeIdentity, group_name: str) -> JobSpec:
    """Return a job's specification with the nodes of its placement group; this node is the first.

    Raises UserError for a node that is not as ``expected``, MeasureError for one that is gone or does not answer.
    """
    import ray

    group = ray.util.get_placement_group(group_name)
    nodes = addresses(ray, group)
    task = ray.remote(_identity)
    pending = [task.options(**on_bundle(ray, group, index)).remote(device) for index in range(1, len(nodes))]
    try:
        others = ray.get(pending, timeout=NODE_START_TIMEOUT)
    except ray.exceptions.GetTimeoutError as error:
        silence = f"no answer from one of {', '.join(nodes[1:])} in {NODE_START_TIMEOUT} seconds"
        raise MeasureError(silence, "see `ray status`") from error
    for address, other in zip(nodes[1:], others, strict=True):
        expected.check(address, other, JOB_KINDS[spec.job.kind].timed)
    return replace(spec, nodes=nodes, group=f"{ray.get_runtime_context().gcs_address}/{group_name}")


def _events(task: RunningJob, beat: float) -> Iterator[dict[str, Any]]:
    """Yield a job's events until it has ended and, after every ``beat`` seconds without one, what it has used."""
    buffer = b""
    while True:
        if not select.select([task.events], [], [], beat)[0]:
            yield {"event": "used", "used": task.usage()}
            continue
        data = os.read(task.events, 1 << 16)
        if not data:
            return
        lines, buffer = complete_lines(buffer, data)
        yield from map(json.loads, lines)


def _executor(settings: RunSettings) -> Local:
    """Return the kept executor if it is for these settings and this task's GPUs; else close it and make another.

    A fork server made for other settings or GPUs is of no use.
    """
    key = repr((settings, os.environ.get(devices.VISIBLE_DEVICES)))
    if key not in _kept:
        for other in _kept.values():
            other.__exit__()
        _kept.clear()
        sweep_temporary()
        _kept[key] = local = Local(settings).__enter__()
        atexit.register(shutil.rmtree, local.temporary, ignore_errors=True)
    return _kept[key]
