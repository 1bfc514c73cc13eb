"""The ranks of one job as a group, on this machine or on several nodes: they end together, and who is to blame is named.

Each node's ranks are started and watched there (``launch.NodeRanks``); here what becomes of all of them comes together.
"""

from __future__ import annotations

import contextlib
import math
import queue
import signal
import socket
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sparsebench import children, devices, errors
from sparsebench.errors import MeasureError, SparsebenchError
from sparsebench.runtime.launch import ENTRY, LOOPBACK, Event, NodeRanks
from sparsebench.runtime.nodes import RemoteRanks
from sparsebench.runtime.results import RankJob, Setting, Workload
from sparsebench.runtime.watch import IDLE_POLL_SECONDS, STALL_SECONDS, IdleRank, hung_ranks

GRACE_SECONDS = 3.0
"""When one rank has failed, the others get this long to say why they fail."""
ECHO_SECONDS = 20.0
"""The same where it only says that another rank is gone: Ray may need some seconds to notice that a node is lost."""
START_SECONDS = 300.0
"""The seconds that Ray gets to start the ranks of another node."""
GONE_SECONDS = 60.0
"""Seconds without an event from a node after which its ranks count as gone. In silence a node sends one every few
seconds."""
CLOSE_SECONDS = 10.0


class RankGroup:
    """The ranks of one job; use as a context manager, and iterate over ``messages``.

    ``job`` is the ``asdict`` of a ``RankJob``, or what else the interpreter's arguments ``entry`` run.
    """

    def __init__(self, job: Mapping[str, Any], setting: Setting, entry: Sequence[str] = ENTRY) -> None:
        self.setting = setting
        # Each fork's group has its own port: its ranks do not end all at once, and the next group would meet them.
        ports = free_ports(len(job.get("processes", [0])))
        spec = {"job": job, "setting": asdict(setting), "ports": ports}
        other_nodes = range(1, len(setting.nodes))
        self.local_ranks = NodeRanks(spec, setting, entry=entry)
        remote_ranks = (RemoteRanks(spec, setting, index, entry) for index in other_nodes)
        self.nodes: list[NodeRanks] = [self.local_ranks, *remote_ranks]
        self.events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        self.errors: dict[int, SparsebenchError] = {}
        self.echoes: set[int] = set()
        self.ends: dict[int, Event] = {}

    def __enter__(self) -> RankGroup:
        with contextlib.ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self.entered_nodes = stack.pop_all()
        self.last_event = [time.monotonic() + START_SECONDS] * len(self.nodes)
        self.threads = [
            threading.Thread(target=self._pass_on, args=(index,), daemon=True) for index in range(len(self.nodes))
        ]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every rank and all that it started, and remove the group's buffers and temporary folders."""
        for node in self.nodes:
            node.kill()
        for thread in self.threads:
            thread.join(CLOSE_SECONDS)
        self.entered_nodes.close()

    def messages(self) -> Iterator[Event]:
        """Yield every message of a rank as it comes, until all have ended with exit code 0.

        Raises the error that a rank sent, else MeasureError for a rank that died, failed, hangs, or was silent for the
        timeout.
        """
        idle_by_node: dict[int, dict[int, IdleRank]] = {}
        deadline = math.inf
        while len(self.ends) < self.setting.ranks and (now := time.monotonic()) < deadline:
            self._check_nodes(now)
            try:
                node_index, event = self.events.get(timeout=min(IDLE_POLL_SECONDS, deadline - now))
            except queue.Empty:
                continue
            idle_by_node[node_index] = event["ranks"] if event["kind"] == "idle" else {}
            match event["kind"]:
                case "idle":
                    idle_ranks = {rank: state for ranks in idle_by_node.values() for rank, state in ranks.items()}
                    if deadline == math.inf:
                        self._blame_hung(hung_ranks(idle_ranks, self.setting.ranks - len(self.ends)))
                case "silent":
                    silence = f"said nothing for {self.setting.timeout_seconds:g} seconds"
                    raise MeasureError(f"{self._rank_names(event['ranks'])} {silence}; {event['where']}")
                case "error":
                    self._keep_error(event)
                case "ended":
                    self.ends.setdefault(event["rank"], event)
                    grace_seconds = ECHO_SECONDS if event["rank"] in self.echoes else GRACE_SECONDS
                    deadline = min(deadline, time.monotonic() + grace_seconds) if event["code"] != 0 else deadline
                case _:
                    yield event
        if failed_codes := {rank: end["code"] for rank, end in self.ends.items() if end["code"] != 0}:
            raise self._error_to_blame(failed_codes)

    def _pass_on(self, node_index: int) -> None:
        """Pass a node's events on, and last how its ranks ended where they cannot be followed any more."""
        node = self.nodes[node_index]
        try:
            for event in node.events():
                self.last_event[node_index] = time.monotonic()
                self.events.put((node_index, event))
        except Exception:  # of any kind: nobody else would report these ranks
            lines = traceback.format_exc().splitlines()
            for rank in node.ranks:
                ended = {"kind": "ended", "rank": rank, "code": 1, "lines": lines, "out_of_memory": False}
                self.events.put((node_index, ended))

    def _keep_error(self, event: Event) -> None:
        """Keep the error that a rank sent; it is not raised yet, as it may only be the echo of another rank's death."""
        kind: type[SparsebenchError] = getattr(errors, event["type"])
        self.errors[event["rank"]] = kind(event["message"], event["hint"])
        if event.get("echo"):
            self.echoes.add(event["rank"])

    def _check_nodes(self, now: float) -> None:
        """Raise MeasureError for the ranks of nodes from which no event came for long."""
        nodes_heard = zip(self.nodes, self.last_event, strict=True)
        silent_nodes = [node for node, heard in nodes_heard if now - heard >= GONE_SECONDS]
        ranks = [rank for node in silent_nodes for rank in node.ranks if rank not in self.ends]
        self._blame_hung(dict.fromkeys(ranks, "does not answer"))

    def _blame_hung(self, states: Mapping[int, str]) -> None:
        """Raise MeasureError for the ranks in ``states``, with where each hangs; do nothing where there are none."""
        if states:
            verb = "hangs" if len(states) == 1 else "hang"
            where = "; ".join(f"rank {rank} {state}" for rank, state in states.items())
            raise MeasureError(
                f"{self._rank_names(list(states))} {verb}: nothing is done for {STALL_SECONDS:g} seconds or more; {where}"
            )

    def _error_to_blame(self, failed: Mapping[int, int | None]) -> SparsebenchError:
        """Return the error of the rank that is to blame, of those that ``failed`` with an exit code other than 0.

        A signal is to blame before an error, an error before an exit code, and last a rank that only reports that
        another is gone.
        """
        causes = self.errors.keys() - self.echoes
        # NCCL aborts a rank whose peer has ended with an error.
        spared = -signal.SIGABRT if causes else 0
        killed = [rank for rank, code in failed.items() if code is not None and code < 0 and code != spared]
        if killed:
            return self._killed_error([rank for rank in killed if failed[rank] == failed[killed[0]]])
        if causes:
            return self.errors[min(causes)]
        for rank in failed:
            if rank not in self.errors:
                ending = "closed its channel" if failed[rank] is None else f"ended with exit code {failed[rank]}"
                return MeasureError(f"{self._rank_names([rank])} {ending}\n{self._last_lines([rank])}")
        return self.errors[min(self.errors)]

    def _killed_error(self, ranks: Sequence[int]) -> MeasureError:
        name, hint = children.signal_name(-self.ends[ranks[0]]["code"]), None
        if name == "SIGKILL" and any(self.ends[rank]["out_of_memory"] for rank in ranks):
            hint = "the kernel ended it for want of main memory: use a smaller dtype, fewer ranks, or a larger machine"
        elif name == "SIGKILL":
            hint = "somebody else ended it, or the machine is out of memory: see the kernel's log"
        return MeasureError(f"{self._rank_names(ranks)} died of {name}\n{self._last_lines(ranks)}", hint)

    def _rank_names(self, ranks: Sequence[int]) -> str:
        words = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self.setting.ranks}"
        if not self.setting.nodes:
            return words
        nodes = dict.fromkeys(self.setting.nodes[rank // self.setting.ranks_per_node] for rank in ranks)
        return f"{words} on {', '.join(nodes)}"

    def _last_lines(self, ranks: Sequence[int]) -> str:
        return "\n".join(f"    rank {rank}: {line}" for rank in ranks for line in self.ends[rank]["lines"])


def try_two_ranks() -> str:
    """Let DeepSpeed ranks add up one tensor on this machine; return which transport they used, such as ``NCCL``.

    They run on GPUs where there is one for each rank, else on the CPU. Raises MeasureError when they cannot.
    """
    device = "cuda" if len(devices.visible_gpus()) >= 2 else "cpu"
    setting = Setting("deepspeed", 2, Workload(), threads=1, timeout_seconds=120, device=device)
    notes = check_all_reduce(setting)[0]["notes"]
    return "; ".join(notes) or ("NCCL" if setting.on_gpu else "shared memory")


def check_all_reduce(setting: Setting) -> list[Event]:
    """Have the setting's ranks add up one tensor; return each one's ``notes``, and ``gpu``, the UUID of its GPU.

    Raises MeasureError when they cannot.
    """
    with RankGroup(asdict(RankJob("add up", "encoder")), setting) as group:
        return [message for message in group.messages() if message["kind"] == "result"]


def free_ports(count: int) -> list[str]:
    """Return ``count`` free TCP ports of this machine, all different: none is given back before the last is taken."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [str(probe.getsockname()[1]) for probe in probes]
