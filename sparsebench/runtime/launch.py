"""One process per rank, ended as a group: sockets instead of polling, and an error that names the rank and the reason.

The parent sleeps while ranks work: it waits on one socket per rank, over which the rank sends JSON lines. A closed
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
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from sparsebench import children, devices, errors, leftovers
from sparsebench.errors import MeasureError, SparsebenchError
from sparsebench.runtime import shm
from sparsebench.runtime.machine import threads_per_rank
from sparsebench.runtime.results import Setting, Workload
from sparsebench.runtime.watch import LOOK_SECONDS, STALL_SECONDS, RankWatchdog, oom_kills, place
from sparsebench.sources import Cache

ADDRESS = "127.0.0.1"
ENTRY = ("-m", "sparsebench.runtime.rank")
CHANNEL = "SPARSEBENCH_CHANNEL"
PARENT = "SPARSEBENCH_PARENT"
EXTENSIONS = "TORCH_EXTENSIONS_DIR"
"""The environment variable that names the folder of compiled operations; torch keeps its lock files there too."""
GRACE_SECONDS = 3.0
TAIL_LINES = 8


class RankGroup:
    """The ranks of one job; use as a context manager, and iterate over ``messages``.

    ``spec`` is the JSON-able description of the job, ``settings`` are extra environment variables, ``entry`` the
    interpreter's arguments. After ``timeout`` seconds without a message the group has failed.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        ranks: int,
        settings: Mapping[str, str],
        timeout: float,
        entry: Sequence[str] = ENTRY,
    ) -> None:
        self.spec, self.ranks, self.settings, self.timeout, self.entry = spec, ranks, settings, timeout, entry
        self.processes: list[subprocess.Popen[bytes]] = []
        self.channels: list[socket.socket] = []
        self.errors: dict[int, SparsebenchError] = {}
        self.echoes: set[int] = set()

    def __enter__(self) -> RankGroup:
        leftovers.sweep()
        self.folder = leftovers.temporary()
        path = Path(self.folder.name)
        # Each fork's group has its own port: its ranks do not end all at once, and the next group would meet them.
        self.ports = [free_port() for _ in self.spec.get("processes", [0])]
        (path / "spec.json").write_text(json.dumps({**self.spec, "ports": self.ports}))
        self.kills = oom_kills()
        self._unlink()  # a stale buffer would be mapped before the new one is made
        try:
            for rank in range(self.ranks):
                self._start(rank, path)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield every message as it comes, until all ranks have ended with exit code 0.

        A message whose ``wait`` is true holds its rank until the iteration goes on. Raises the error that a rank sent,
        else MeasureError for a rank that died, failed, hangs, or was silent for the timeout.
        """
        watch = RankWatchdog(
            [process.pid for process in self.processes], [self._log(rank) for rank in range(self.ranks)]
        )
        with selectors.DefaultSelector() as selector:
            for rank, channel in enumerate(self.channels):
                selector.register(channel, selectors.EVENT_READ, (rank, bytearray()))
            spoken = looked = time.monotonic()
            while selector.get_map():
                end = spoken + self.timeout
                ready = selector.select(max(0.0, min(end, looked + LOOK_SECONDS) - time.monotonic()))
                heard = False
                for key, _ in ready:
                    rank, pending = key.data
                    data = self._receive(rank)
                    if not data:
                        selector.unregister(key.fileobj)
                        self._ended(rank)
                        heard = True
                    pending += data
                    while b"\n" in pending:
                        line, _, pending[:] = pending.partition(b"\n")
                        message = json.loads(line)
                        if message["kind"] == "heartbeat":
                            self._heartbeat(rank, message)
                            continue
                        yield from self._deliver(rank, message)
                        heard = True
                now = time.monotonic()
                if heard:
                    watch.restart()
                    spoken = looked = now
                elif now >= min(end, looked + LOOK_SECONDS):
                    self._look(watch, sorted(key.data[0] for key in selector.get_map().values()), now >= end)
                    looked = time.monotonic()

    def close(self) -> None:
        """Kill every rank and all that it started, and remove the group's buffers and temporary folder."""
        for process in self.processes:
            if process.returncode is None:  # once a process is reaped, another may have its number
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()
        for channel in self.channels:
            channel.close()
        self._unlink()
        self.folder.cleanup()

    def _unlink(self) -> None:
        for port in self.ports:
            shm.unlink(ADDRESS, port, range(self.ranks))

    def _start(self, rank: int, path: Path) -> None:
        ours, theirs = socket.socketpair()
        self.channels.append(ours)
        environment = {
            **os.environ,
            **children.imports(),
            **self.settings,
            "WORLD_SIZE": str(self.ranks),
            "LOCAL_SIZE": str(
                self.ranks
            ),  # DeepSpeed's shared-memory operation crashes where it differs from the ranks
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": ADDRESS,
            "MASTER_PORT": self.ports[0],
            CHANNEL: str(theirs.fileno()),
            PARENT: str(os.getpid()),
        }
        with theirs:
            command = [sys.executable, *self.entry, str(path / "spec.json"), str(rank)]
            self._spawn(command, self._log(rank), environment, pass_fds=[theirs.fileno()])

    def _spawn(self, command: Sequence[str], log: Path, environment: Mapping[str, str], **more: Any) -> None:
        """Start a process in its own session, with stdout and stderr into its log."""
        with log.open("wb") as said:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": subprocess.STDOUT}
            started = subprocess.Popen(command, env=environment, start_new_session=True, **streams, **more)
        self.processes.append(started)

    def _receive(self, rank: int) -> bytes:
        try:
            return self.channels[rank].recv(65536)
        except OSError:  # the rank died with our answer unread, or its machine did
            return b""

    def _deliver(self, rank: int, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if message["kind"] == "error":
            # Not raised yet: it may only be the echo of another rank's death.
            kind: type[SparsebenchError] = getattr(errors, message["type"])
            self.errors[rank] = kind(message["message"], message["hint"])
            if message.get("echo"):
                self.echoes.add(rank)
            return
        yield message
        if message.get("wait"):
            with contextlib.suppress(OSError):  # that the rank has ended is found at the next reading
                self.channels[rank].sendall(b"\n")

    def _heartbeat(self, rank: int, heartbeat: Mapping[str, Any]) -> None:
        """Take in a heartbeat, which only ranks on several nodes send: nothing to do here."""

    def _look(self, watch: RankWatchdog, silent: Sequence[int], over: bool) -> None:
        """After a silence: raise MeasureError where a rank hangs, or where the timeout is ``over``."""
        compiled = self.settings.get(EXTENSIONS)
        held = shm.free(Path(compiled)) if compiled else {}
        if over:
            where = "; ".join(f"rank {rank} {place(stack)}" for rank, stack in watch.stacks(silent).items())
            locks = "".join(f"; process {owner} holds {lock}" for lock, owner in held.items())
            raise MeasureError(f"{self._names(silent)} said nothing for {self.timeout:g} seconds; {where}{locks}")
        self._blame(watch.stuck(silent))

    def _blame(self, stuck: Mapping[int, str]) -> None:
        """Raise MeasureError for the ranks in ``stuck``, with where each hangs; do nothing where there are none."""
        if stuck:
            verb = "hangs" if len(stuck) == 1 else "hang"
            where = "; ".join(f"rank {rank} {at}" for rank, at in stuck.items())
            raise MeasureError(
                f"{self._names(list(stuck))} {verb}: nothing is done for {STALL_SECONDS:g} seconds or more; {where}"
            )

    def _ended(self, rank: int) -> None:
        """Handle a closed channel: return if the rank ended with code 0, else raise for the rank that is to blame."""
        if self._code(rank, GRACE_SECONDS) == 0:
            return
        # When one rank dies its peers fail a moment later: give them that moment. Then blame a signal before an error,
        # an error before an exit code, and last a rank that only reports that another is gone.
        deadline = time.monotonic() + GRACE_SECONDS
        codes = {one: self._code(one, max(0.0, deadline - time.monotonic())) for one in range(self.ranks)}
        self._hear_out()
        own = self.errors.keys() - self.echoes
        # NCCL aborts a rank whose peer has ended with an error.
        spared = -signal.SIGABRT if own else 0
        killed = [one for one, code in codes.items() if code is not None and code < 0 and code != spared]
        if killed:
            raise self._killed(killed, children.signal_name(-(codes[killed[0]] or 0)))
        if own:
            raise self.errors[min(own)]
        crashed = [one for one, code in codes.items() if code and one not in self.errors]
        if not crashed and rank in self.errors:  # the machine of a silent rank may be gone; echoes do not name it
            raise self.errors[min(self.errors)]
        blamed = rank if rank in crashed or not crashed else crashed[0]
        ending = "closed its channel" if codes[blamed] is None else f"ended with exit code {codes[blamed]}"
        raise MeasureError(f"{self._names([blamed])} {ending}\n{self._tails([blamed])}")

    def _hear_out(self) -> None:
        """Take in the errors that ranks have sent and that nobody has read yet."""
        for rank, channel in enumerate(self.channels):
            said = bytearray()
            with contextlib.suppress(OSError):  # nothing more is there, or the connection has broken
                while part := channel.recv(65536, socket.MSG_DONTWAIT):
                    said += part
            for line in said.splitlines():
                with contextlib.suppress(ValueError):  # the rest of a line whose beginning was read before
                    if (message := json.loads(line)).get("kind") == "error":
                        list(self._deliver(rank, message))

    def _killed(self, ranks: Sequence[int], name: str) -> MeasureError:
        hint = None
        if name == "SIGKILL":
            hint = "somebody else ended it, or the machine is out of memory: see the kernel's log"
            if oom_kills() > self.kills:
                hint = (
                    "the kernel ended it for want of main memory: use a smaller dtype, fewer ranks, or a larger machine"
                )
        return MeasureError(f"{self._names(ranks)} died of {name}\n{self._tails(ranks)}", hint)

    def _code(self, rank: int, seconds: float) -> int | None:
        """Return a rank's exit code, negative for a signal; None when it still runs after ``seconds``.

        The rank is not reaped where the system has ``waitid``: nobody else can then get its number, by which ``close``
        ends what it started.
        """
        process = self.processes[rank]
        if not hasattr(os, "waitid"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(seconds)
            return None
        deadline = time.monotonic() + seconds
        while True:
            if process.returncode is not None:
                return process.returncode
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found:
                return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.01)

    def _log(self, rank: int) -> Path:
        return Path(self.folder.name) / f"rank-{rank}.log"

    def _names(self, ranks: Sequence[int]) -> str:
        return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {self.ranks}"

    def _tails(self, ranks: Sequence[int]) -> str:
        """Return the last lines of these ranks' logs, indented."""
        shown = []
        for rank in ranks:
            lines = self._log(rank).read_text(errors="replace").splitlines()
            shown += [f"    rank {rank}: {line}" for line in lines[-TAIL_LINES:]]
        return "\n".join(shown)


def variables(setting: Setting) -> dict[str, str]:
    """Return the ranks' extra environment variables; compile DeepSpeed's shared-memory operation where it is used."""
    threads = str(threads_per_rank(setting))
    found = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,  # torch prefers this one, so a user's own setting must not leak in
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The names of other nodes' GPUs are not known here.
        **(devices.only(setting.device) if setting.device == "cpu" or (setting.on_gpu and not setting.hosts) else {}),
    }
    if setting.hosts:  # this machine does not know what is installed and compiled on the nodes
        return {**found, shm.DISABLED: f"the ranks were started by {'Ray' if setting.group else 'a hostfile'}"}
    cache = Cache()
    found |= {"PATH": shm.path_with_tools(), EXTENSIONS: str(shm.extensions_dir(cache))}
    if sys.platform == "linux":
        found["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name need not resolve
    if shm.used(setting.engine, setting.ranks, device=setting.device):
        found[shm.DISABLED] = shm.ensure(cache)
    return found


def try_ranks(ranks: int) -> str:
    """Let DeepSpeed ranks add up one tensor on this machine; return which transport they used, such as ``NCCL``.

    They run on GPUs where there is one for each rank, else on the CPU. Raises MeasureError when they cannot.
    """
    device = "cuda" if len(devices.visible()) >= ranks else "cpu"
    setting = Setting("deepspeed", ranks, Workload(), threads=1, timeout_seconds=120, device=device)
    spec = {"job": "try", "family": "encoder", "setting": asdict(setting)}
    with RankGroup(spec, ranks, variables(setting), setting.timeout_seconds) as group:
        notes = [message["notes"] for message in group.messages() if message["kind"] == "result"]
    return "; ".join(notes[0]) or ("NCCL" if setting.on_gpu else "shared memory")


def free_port() -> str:
    """Return a free TCP port of this machine."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return str(probe.getsockname()[1])
