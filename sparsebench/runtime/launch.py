"""The ranks of a job on one machine: a process for each, started and ended together, and what becomes of each.

This process sleeps while ranks work: it waits on one socket per rank, over which the rank sends JSON lines. A closed
socket means that the rank has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from sparsebench import children, devices
from sparsebench.paths import sweep_temporary, temporary_folder
from sparsebench.runtime import all_reduce
from sparsebench.runtime.channel import complete_lines
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.results import Setting
from sparsebench.runtime.watch import IDLE_POLL_SECONDS, RankWatchdog, innermost_calls, oom_kills
from sparsebench.sources import Cache

LOOPBACK = "127.0.0.1"
ENTRY = ("-m", "sparsebench.runtime.rank")
CHANNEL = "SPARSEBENCH_CHANNEL"
PARENT = "SPARSEBENCH_PARENT"
EXTENSIONS = "TORCH_EXTENSIONS_DIR"
"""The environment variable that names the folder of compiled operations; torch keeps its lock files there too."""
END_SECONDS = 3.0
"""The seconds that a rank gets to end once its socket is closed."""
TAIL_LINES = 8

Event = dict[str, Any]
"""What a rank sends, or what becomes of it (``NodeRanks.events``); its ``kind`` says which."""


class NodeRanks:
    """The ``ranks`` of a setting that run on this machine, a node of its; a context manager around ``events``.

    ``spec`` holds the job, the setting and a port for each of the job's processes, as JSON; ``entry`` are the
    interpreter's arguments.
    """

    def __init__(
        self, spec: Mapping[str, Any], setting: Setting, node_index: int = 0, entry: Sequence[str] = ENTRY
    ) -> None:
        self.spec, self.setting, self.node_index, self.entry = spec, setting, node_index, entry
        self.ranks = setting.ranks_on(node_index)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.channels: dict[int, socket.socket] = {}

    def __enter__(self) -> NodeRanks:
        sweep_temporary()
        self.folder = temporary_folder()
        (Path(self.folder.name) / "spec.json").write_text(json.dumps(self.spec))
        self.variables = rank_variables(self.setting, self.node_index)
        self.oom_kills_before = oom_kills()
        self._remove_buffers()  # a stale buffer would be mapped before the new one is made
        try:
            for rank in self.ranks:
                self._start(rank)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        for process in self.processes.values():
            process.wait()
        for channel in self.channels.values():
            channel.close()
        self._remove_buffers()
        self.folder.cleanup()

    def kill(self) -> None:
        """Kill every rank and all that it started. ``events`` then ends."""
        for process in self.processes.values():
            if process.returncode is None:  # once a process is reaped, another may have its number
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)

    def events(self) -> Iterator[Event]:
        """Yield what the ranks send, with their number as ``rank``, and what becomes of them, until all have ended.

        A rank whose message has a true ``wait`` goes on when the iteration does. Besides what ranks send there are:

        - ``ended``: the ``rank``, its exit ``code`` (negative: a signal; None: its socket is closed and it runs on), its
          last ``lines``, and whether the kernel has killed a process for lack of memory meanwhile (``out_of_memory``);
        - ``idle``, after every IDLE_POLL_SECONDS of silence: the ``ranks`` that do nothing, as ``watch.IdleRank``;
        - ``silent``, after the setting's ``timeout_seconds``: the ``ranks`` that still run, and ``where`` they are.
        """
        timeout = self.setting.timeout_seconds
        watchdog = RankWatchdog(
            {rank: process.pid for rank, process in self.processes.items()},
            {rank: self._log_file(rank) for rank in self.ranks},
        )
        with selectors.DefaultSelector() as selector:
            for rank, channel in self.channels.items():
                selector.register(channel, selectors.EVENT_READ, (rank, bytearray()))
            last_heard = time.monotonic()
            while selector.get_map():
                ready = selector.select(min(IDLE_POLL_SECONDS, max(0.0, last_heard + timeout - time.monotonic())))
                for key, _ in ready:
                    rank, pending = key.data
                    received = self._receive(rank)
                    lines, pending[:] = complete_lines(bytes(pending), received)
                    for line in lines:
                        yield from self._deliver(rank, json.loads(line))
                    if not received:
                        selector.unregister(key.fileobj)
                        yield self._ended_event(rank)
                if ready:
                    watchdog.restart()
                    last_heard = time.monotonic()
                else:
                    running = sorted(key.data[0] for key in selector.get_map().values())
                    yield self._silence_event(watchdog, running, time.monotonic() - last_heard >= timeout)

    def _remove_buffers(self) -> None:
        for port in self.spec["ports"]:
            all_reduce.remove_buffers(LOOPBACK, port, self.ranks)

    def _start(self, rank: int) -> None:
        """Start a rank in a session of its own, with stdout and stderr into its log."""
        ours, theirs = socket.socketpair()
        self.channels[rank] = ours
        environment = {
            **os.environ,
            **children.import_variables(),
            **self.variables,
            "LOCAL_SIZE": str(len(self.ranks)),  # DeepSpeed's shared-memory operation crashes where it differs
            "RANK": str(rank),
            "LOCAL_RANK": str(rank - self.ranks.start),
            "MASTER_PORT": self.spec["ports"][0],
            "TMPDIR": self.folder.name,
            CHANNEL: str(theirs.fileno()),
            PARENT: str(os.getpid()),
        }
        command = [sys.executable, *self.entry, str(Path(self.folder.name) / "spec.json"), str(rank)]
        with theirs, self._log_file(rank).open("wb") as log:
            self.processes[rank] = subprocess.Popen(
                command,
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _receive(self, rank: int) -> bytes:
        try:
            return self.channels[rank].recv(65536)
        except OSError:  # the rank died with our answer unread
            return b""

    def _deliver(self, rank: int, message: Event) -> Iterator[Event]:
        yield {**message, "rank": rank}
        if message.get("wait"):
            with contextlib.suppress(OSError):  # that the rank has ended is found at the next reading
                self.channels[rank].sendall(b"\n")

    def _silence_event(self, watchdog: RankWatchdog, running: Sequence[int], timed_out: bool) -> Event:
        """Return what to say after a silence: who does nothing, or, where it has ``timed_out``, where all are."""
        lock_owners = all_reduce.remove_stale_locks(Path(self.variables[EXTENSIONS]))
        locks = [f"process {owner} holds {lock}" for lock, owner in lock_owners.items()]
        if not timed_out:
            return {"kind": "idle", "ranks": watchdog.idle(running)}
        where = [f"rank {rank} {innermost_calls(stack)}" for rank, stack in watchdog.stacks(running).items()]
        return {"kind": "silent", "ranks": running, "where": "; ".join(where + locks)}

    def _ended_event(self, rank: int) -> Event:
        code, out_of_memory = self._exit_code(rank), oom_kills() > self.oom_kills_before
        lines = self._log_file(rank).read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return {"kind": "ended", "rank": rank, "code": code, "lines": lines, "out_of_memory": out_of_memory}

    def _exit_code(self, rank: int) -> int | None:
        """Return a rank's exit code, negative for a signal; None when it still runs after END_SECONDS.

        The rank is not reaped: nobody else can then get its number, by which ``kill`` ends what it started.
        """
        process = self.processes[rank]
        deadline = time.monotonic() + END_SECONDS
        while process.returncode is None and time.monotonic() < deadline:
            status = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if status:
                return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
            time.sleep(0.01)
        return process.returncode

    def _log_file(self, rank: int) -> Path:
        return Path(self.folder.name) / f"rank-{rank}.log"


def rank_variables(setting: Setting, node_index: int) -> dict[str, str]:
    """Return the extra environment variables of the ranks on this machine, a node of the setting's.

    Where DeepSpeed's shared-memory operation is used, it is compiled.
    """
    threads, cache = str(threads_per_rank(setting)), Cache()
    variables = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,  # torch prefers this one, so a user's own setting must not leak in
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": all_reduce.path_with_tools(),
        "WORLD_SIZE": str(setting.ranks),
        "MASTER_ADDR": setting.nodes[0] if setting.nodes else LOOPBACK,
        EXTENSIONS: str(all_reduce.extensions_dir(cache)),
    }
    if setting.device != "auto":
        variables |= devices.visible_to_child(setting.device)
    if setting.nodes:
        variables |= interface_variable(setting.nodes[node_index])
        return variables | {all_reduce.REASON_DISABLED: "the ranks are on several nodes"}
    if all_reduce.is_used(setting.engine, setting.ranks, setting.device):
        variables[all_reduce.REASON_DISABLED] = all_reduce.compile_once(cache) or ""
    return variables | {"GLOO_SOCKET_IFNAME": "lo"}  # the host's name need not resolve


def interface_variable(address: str) -> dict[str, str]:
    """Return the environment variable that has gloo use the interface with ``address``, unless the user set another.

    By itself gloo takes the address that this machine's name resolves to, which other machines may not reach. The
    result is empty where no interface has the address.
    """
    names = [
        name for name, addresses in psutil.net_if_addrs().items() if any(each.address == address for each in addresses)
    ]
    return {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", names[0])} if names else {}
