"""Jobs as tasks of Ray (the extra ``ray``), on whatever nodes its cluster has.

Ray finds a node with the CPUs, GPUs and memory that a job declares. A timed job declares all CPUs of a node, and so has
it to itself; where its ranks lie on several nodes, it declares those of all (``placement``). On the node the job is
done as ``local`` does it, in a process of its own. A Ray generator returns its events, each cell's with its record. The
run files the records, and is the ledger's only writer. Weights do not travel: the work folder lies on a file system
that all nodes share.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsebench import records
from sparsebench.errors import UserError, first_line, redacted, system_error
from sparsebench.paths import create
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.jobs import nodes_of, ranks_of, takes_all_cores, uses_device
from sparsebench.plan.resources import job_bytes
from sparsebench.plan.stages import is_timed
from sparsebench.run.executor import RunningJob, RunSettings
from sparsebench.run.node import NodeIdentity, do_job, probe
from sparsebench.run.placement import NODE_START_TIMEOUT, PlacementGroup, bundles
from sparsebench.run.recorder import JobSpec, reason_of
from sparsebench.runtime.nodes import join
from sparsebench.sources import Cache

CONNECT_SECONDS = 10.0
REFRESH_SECONDS = 1.0


class Cluster:
    """The executor on a Ray cluster: the one at ``address``, else that which runs here, else this machine."""

    def __init__(self, settings: RunSettings, address: str | None = None) -> None:
        self.settings = settings
        self.address = address
        self.ray = _ray()
        self.identity = NodeIdentity.here(settings.device)
        self.node_resources: list[dict[str, float]] = []
        self.nodes_seen_at = 0.0

    def __enter__(self) -> Cluster:
        connect(self.ray, self.address)
        self.task = self.ray.remote(do_job)
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.shutdown()

    def begin(self, cells: Iterable[Cell]) -> None:
        """Check that every node can do ``cells``.

        Raises UserError, naming the nodes that cannot, and for settings that no cluster can serve.
        """
        planned = list(cells)
        if ":" in self.settings.device:
            raise UserError(
                f"device: {self.settings.device}: on a cluster Ray chooses the GPU",
                "say `device: cuda`, or --executor local",
            )
        if self.settings.on_gpu and not any("GPU" in node["Resources"] for node in self._live_nodes()):
            raise UserError("device: cuda: no node of this cluster says that it has a GPU", "ray start --num-gpus=N")
        node_counts = {(cell.nodes, int(cell.settings["ranks"])) for cell in planned if "nodes" in cell.settings}
        for nodes, ranks in sorted(node_counts):
            bundles(self._live_nodes(), nodes, ranks, self.settings.on_gpu)
        timed = any(is_timed(cell.stage) for cell in planned)
        problems = self._node_problems(timed)
        unable = "; ".join(f"{node}: {reason}" for node, reason in problems.items() if reason)
        if unable:
            raise UserError(
                f"not every node can do this: {unable}",
                "nodes need the same environment (`pip install 'ray>=2.9'`), and the work folder under the same path",
            )

    def _node_problems(self, timed: bool) -> dict[str, str]:
        """Return by node why it cannot do the run's work, if so. Each is asked whether it sees a file just written."""
        remote_probe = self.ray.remote(num_cpus=0, max_retries=0)(probe)
        work = self.settings.workspace.work.absolute()
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=work, prefix=".shared-") as file:
            node_names = {}
            for node in self._live_nodes():
                on_it = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task = remote_probe.options(scheduling_strategy=on_it).remote(Path(file.name))
                node_names[task] = f"{node['NodeName']} ({node['NodeID'][:6]})"
            ready, _ = self.ray.wait(list(node_names), num_returns=len(node_names), timeout=NODE_START_TIMEOUT)
            return {node: self._problem(task, task in ready, timed) for task, node in node_names.items()}

    def _problem(self, task: Any, ready: bool, timed: bool) -> str:
        if not ready:
            return f"it gave no answer in {NODE_START_TIMEOUT} seconds"
        try:
            answer = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            return f"sparsebench cannot be imported there ({first_line(error)})"
        if not answer["shared"]:
            return f"it does not see {self.settings.workspace.work}"
        return NodeIdentity.here("cpu").differs(answer["identity"], timed)

    def _live_nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def has_room(self, job: Job, running: Sequence[RunningJob]) -> bool:
        """Whether the nodes hold one more job of its kind: alone on a node, or not.

        Running jobs of the other kind are not counted: Ray itself waits until they end.
        """
        if time.monotonic() - self.nodes_seen_at > REFRESH_SECONDS:
            self.node_resources = [node["Resources"] for node in self._live_nodes()] or self.node_resources
            self.nodes_seen_at = time.monotonic()
        gpu = self.settings.on_gpu
        taken = sum(
            nodes_of(task.job) for task in running if takes_all_cores(task.job, gpu) == takes_all_cores(job, gpu)
        )
        needed = nodes_of(job)
        capacity = max(needed, job_capacity(self.node_resources, self._resources(job), takes_all_cores(job, gpu)))
        return taken + needed <= capacity

    def _resources(self, job: Job) -> dict[str, float]:
        size = self.settings.sizes.get(job.variants[0].model)
        return resources(
            job, self.settings, self.node_resources, job_bytes(job, size, self.settings.device) if size else 0
        )

    def start(self, job: Job, spec: JobSpec, log: Path, running: Sequence[RunningJob]) -> RayTask:
        """Return a task that Ray starts when a node has room.

        Ray must not retry it: that would do and record all cells again. The run itself asks again for those left.
        """
        needs = self._resources(job)
        create(log, "wb").close()
        spec = replace(spec, workspace=replace(spec.workspace, work=spec.workspace.work.absolute()))
        one_node_options: dict[str, Any] = {
            "num_cpus": needs["CPU"], "num_gpus": needs["GPU"], "memory": int(needs["memory"]) or None, "max_retries": 0,
        }  # fmt: skip

        def start_stream(group: PlacementGroup | None) -> Any:
            options = group.first_node_options() if group else one_node_options
            task = self.task.options(name=f"{job.kind}-{job.id}", num_returns="streaming", **options)
            settings, cpus = replace(self.settings, sizes={}), int(options["num_cpus"])
            return task.remote(spec, settings, cpus, self.identity, group.name if group else "", Path.cwd())

        group = PlacementGroup(self.ray, job, self.settings.on_gpu, self._live_nodes) if nodes_of(job) > 1 else None
        return RayTask(job, self.ray, start_stream, group, self.settings.workspace.records, log)

    def share_cores(self, running: Sequence[RunningJob]) -> None:
        """Do nothing: a job's CPUs are those that Ray gave it."""

    def end(self, running: Sequence[RunningJob]) -> None:
        """Have Ray kill the processes that work on the tasks; those that they started end with them."""
        for task in running:
            task.kill()


class RayTask:
    """A Ray task, and a thread that starts it once its ``group`` has its nodes, and passes on what it yields."""

    def __init__(
        self,
        job: Job,
        ray: Any,
        start_stream: Callable[[PlacementGroup | None], Any],
        group: PlacementGroup | None,
        folder: Path,
        log: Path,
    ) -> None:
        self.job, self.ray, self.start_stream, self.group = job, ray, start_stream, group
        self.folder, self.log = folder, log
        self.stream: Any = None
        self.loss_reason = ""
        self.code = 1
        self.reported_usage: tuple[float, float] | None = None
        self.killed = False
        self.events, writing = os.pipe()
        os.set_blocking(self.events, False)
        self.thread = threading.Thread(target=self._follow, args=(writing,), daemon=True)
        self.thread.start()

    def usage(self) -> tuple[float, float]:
        """Return what the node reported last; before its first report, say that something was done just now.

        A job that waits for a node must not count as silent.
        """
        return self.reported_usage or (time.monotonic(), 0.0)

    def kill(self) -> None:
        """Have Ray kill the process that works on the task, and with it the job; stop waiting for nodes."""
        self.killed = True
        if self.group:
            self.group.given_up = True
        if self.stream is not None:
            self.ray.cancel(self.stream, force=True)

    def wait(self) -> int:
        self.thread.join()
        return self.code

    def _follow(self, writing: int) -> None:
        # The run closes its end when it has given up on the job.
        with contextlib.suppress(BrokenPipeError), os.fdopen(writing, "wb", 0) as pipe:
            try:
                with self.group or contextlib.nullcontext() as group:
                    self.stream = self.start_stream(group)
                    if self.killed:
                        self.kill()
                    for reference in self.stream:
                        if event := self._file_event(self.ray.get(reference)):
                            pipe.write(_event_line(event))
            except BrokenPipeError:
                raise
            except Exception as error:  # whatever it is, the job's cells have failed of it
                if reason := self._failure_reason(error):
                    pipe.write(_event_line({"event": "job_failed", "reason": reason}))

    def _failure_reason(self, error: Exception) -> str:
        """Return why the job failed; empty where its node is lost, which is noted, or where it was killed."""
        exceptions = self.ray.exceptions
        # What a node raises because this package is missing there or differs, or another attempt would need as much.
        if isinstance(error, exceptions.RayTaskError | exceptions.OutOfMemoryError):
            return redacted(first_line(getattr(error, "cause", None) or error))
        if isinstance(error, exceptions.RayError):
            self.code = -signal.SIGKILL
            if not self.killed:
                self.loss_reason = f"its node or Ray's process there is gone ({type(error).__name__})"
            return ""
        if isinstance(error, OSError):  # such as a full disk, where its records and its log are written
            return str(system_error(error, Cache().root))
        return reason_of(error)

    def _file_event(self, event: dict[str, Any]) -> dict[str, Any] | None:
        """File the record or log that came with an event; return what to pass on to the run, if anything."""
        match event["event"]:
            case "used":
                self.reported_usage = event["used"]
                return None
            case "ended":
                self.code = event["code"]
                with create(self.log, "w") as file:
                    file.write(event["log"])
                return None
            case "cell":
                records.write(self.folder, event.pop("record"))
        return event


def resources(
    job: Job, settings: RunSettings, node_resources: Sequence[dict[str, float]], memory_bytes: int
) -> dict[str, float]:
    """Return what a job asks of Ray: CPUs, GPUs and bytes of memory, no more than the largest node has.

    A job that is alone asks for all CPUs of that node, and for all its GPUs where it calculates on them. Another asks
    for a slot's share of the CPUs, and as many GPUs as it needs.
    """
    gpu = settings.on_gpu and uses_device(job)
    exclusive = takes_all_cores(job, settings.on_gpu)
    kinds = ("GPU", "CPU", "memory") if gpu else ("CPU", "memory")
    largest = max(node_resources, key=lambda node: [node.get(kind, 0.0) for kind in kinds], default={})
    cpus = largest.get("CPU", 0.0)
    return {
        "CPU": max(1.0, cpus if exclusive else cpus // settings.slots),
        "GPU": float(gpu and (largest.get("GPU", 0.0) if exclusive else min(ranks_of(job), largest.get("GPU", 1.0)))),
        "memory": min(float(memory_bytes), largest.get("memory", 0.0)),
    }


def job_capacity(node_resources: Sequence[dict[str, float]], needs: dict[str, float], exclusive: bool) -> int:
    """Return how many jobs that ask for ``needs`` the nodes hold at once; ``exclusive``: at most one a node.

    It is at least 1: a job that fits nowhere would wait for nothing, so one starts.
    """
    needed = {name: amount for name, amount in needs.items() if amount}
    jobs = [int(min(node.get(name, 0.0) // amount for name, amount in needed.items())) for node in node_resources]
    return max(1, sum(min(1, count) if exclusive else count for count in jobs))


def connect(ray: Any, address: str | None) -> None:
    """Join a cluster.

    Raises UserError where there is none, where it runs another version of Ray or Python, and for the address of Ray's
    client, which does not pass generators on.
    """
    cluster_address = address or os.environ.get("RAY_ADDRESS") or ""
    if "://" in cluster_address:
        raise UserError(
            f"--address {cluster_address}: not the address of a node", "run on a node of the cluster: --address auto"
        )
    try:
        if ":" in cluster_address:  # Ray itself would wait long for an address at which nothing answers
            host, _, port = cluster_address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        join(ray, address, include_dashboard=None if cluster_address else False)
    except (RuntimeError, ValueError, OverflowError, OSError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--executor ray: no cluster of Ray's at {cluster_address or 'this machine'} ({first_line(error)})",
            "start Ray with `ray start --head`, see `ray status`; the driver needs the cluster's versions of Ray and "
            "Python, and its RAY_AUTH_MODE and token",
        ) from error


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--executor ray: Ray cannot be imported ({error})", "pip install 'ray>=2.9'") from error
    return ray


def _event_line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
