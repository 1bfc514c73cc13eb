"""Ranks on several nodes, started by Ray, srun or DeepSpeed's launcher (by ssh); each calls its parent back over TCP.

Nodes learn of each other only through TCP connections. A rank that ends says so; one whose connection closes without a
message is dead. A rank ends when its parent closes the connection or is gone. TCP's keepalive notices a machine that
vanishes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsebench import children, leftovers
from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.runtime import heartbeat, hosts, ray_launcher
from sparsebench.runtime.launch import TAIL_LINES, RankGroup, free_port, variables
from sparsebench.runtime.results import Setting
from sparsebench.runtime.watch import RankWatchdog, oom_kills

JOIN_SECONDS = 300.0
"""All ranks must have called back after this many seconds."""
JOIN_LOOK_SECONDS = 0.5
END_SECONDS = 10.0
"""The seconds that the launcher gets to notice that its ranks have ended: it looks once a second."""
KEEP_ALIVE = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 6}
"""A connection counts as closed after nine seconds without a sign of life: three seconds, then six probes, one a
second. The other operating system answers probes, however busy its process is."""
UNCONFIRMED_MS = 9000
"""In the parent a connection also counts as closed if what was sent over it stays unconfirmed for this long. A rank
does not check this: its parent may be stopped for a while, and then confirms no more than its buffer takes."""
NEEDED = {"pdsh": ("pdsh", "ssh"), "srun": ("srun",), "ray": ()}
CARRIED = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "LD_LIBRARY_PATH")
"""Prefixes of the variables that say how ranks reach each other: they are passed to the nodes. srun passes all."""
SIGNALLED = re.compile(r"exits with return code = (-\d+)")
"""What DeepSpeed's launcher prints for a rank that a signal ended; it looks once a second."""
COMMAND = "] cmd = "
"""A part of the line in which DeepSpeed's launcher prints its command."""
RAY_SIGNALLED = re.compile(ray_launcher.SIGNALLED.format(r"(\d+)"), re.MULTILINE)
STEP_SIGNALLED = re.compile(r"^srun: error: \S+: tasks? ([\d,-]+): (.+?)(?: \(core dumped\))?$", re.MULTILINE)
"""What srun prints: which ranks, and the signal in the system's words."""
SIGNALS = {signal.strsignal(one): one for one in signal.valid_signals() - {signal.SIGTERM}} | {
    "Out Of Memory": signal.SIGKILL
}
"""Signals by srun's words. SIGTERM is what srun ends the other ranks with when one has failed: it is nobody's fault."""


def group(spec: Mapping[str, Any], setting: Setting) -> RankGroup:
    """Return the group of the setting's ranks, on this machine or on its hosts."""
    if setting.hosts:
        return NodeGroup(spec, setting.hosts, variables(setting), setting.timeout_seconds, setting.group)
    return RankGroup(spec, setting.ranks, variables(setting), setting.timeout_seconds)


class NodeGroup(RankGroup):
    """The ranks of one job on the nodes ``where``, of Ray's placement ``group`` or of a hostfile. Used as RankGroup is.

    Entering it raises UnsupportedError without the programs that the launcher starts ranks with.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        where: hosts.Hosts,
        settings: Mapping[str, str],
        timeout: float,
        group: str = "",
    ) -> None:
        super().__init__(spec, sum(slots for _, slots in where), settings, timeout)
        self.where, self.group = where, group
        self.launcher = "ray" if group else hosts.launcher()
        self.codes: dict[int, int] = {}
        self.places: dict[int, str] = {}
        self.heartbeats: dict[int, heartbeat.Heartbeat] = {}
        self.begun: set[int] = set()
        self.gone: int | None = None

    def __enter__(self) -> NodeGroup:
        needed = NEEDED[self.launcher]
        missing = [name for name in needed if not shutil.which(name)]
        if missing:
            raise UnsupportedError(
                f"starting ranks on other nodes needs {' and '.join(needed)}; not found: {', '.join(missing)}",
                "within an allocation of SLURM's (SLURM_JOB_ID) it is srun; "
                "else install pdsh and ssh, and let this account reach the hosts without a password",
            )
        self.folder = leftovers.temporary()
        self.port, self.kills, self.token = free_port(), oom_kills(), secrets.token_hex(16)
        try:
            with socket.create_server(("", 0)) as server:
                self._launch(server.getsockname()[1])
                self._gather(server)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Close the connections, which ends the ranks, and with them the launcher.

        The launcher is waited for: asked to end, it would kill every DeepSpeed job of this account on those nodes.
        """
        for channel in self.channels:
            channel.close()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_SECONDS)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.folder.cleanup()

    def _launch(self, callback: int) -> None:
        call = [_address(name for name, _ in self.where), str(callback), self.token]
        environment = os.environ | children.imports()
        if self.group:
            command = ray_launcher.command(self.group, self.where, self.port, call)
        else:
            hostfile = Path(self.folder.name) / "hostfile"
            hostfile.write_text(hosts.text(self.where))
            command = hosts.command(hostfile, self.where, int(self.port), call)
            environment |= self._carried()
        # Ranks can import from the launcher's current folder, so it starts in /.
        self._spawn(command, self._log(0), environment, cwd="/")

    def _carried(self) -> dict[str, str]:
        """Write the variables that DeepSpeed's launcher passes on, the user's own file last; return DS_ENV_FILE."""
        own = Path.home() / os.environ.get("DS_ENV_FILE", ".deepspeed_env")
        ours = [f"{name}={value}\n" for name, value in os.environ.items() if name.startswith(CARRIED)]
        file = Path(self.folder.name) / "variables"
        file.write_text("".join(ours) + (own.read_text() if own.is_file() else ""))
        return {"DS_ENV_FILE": str(file)}

    def _gather(self, server: socket.socket) -> None:
        """Wait until all ranks have called back, then send each the spec. Raises MeasureError where one does not."""
        found: dict[int, socket.socket] = {}
        deadline = time.monotonic() + JOIN_SECONDS
        server.settimeout(JOIN_LOOK_SECONDS)
        while len(found) < self.ranks:
            with contextlib.suppress(TimeoutError):
                channel, _ = server.accept()
                self._greet(channel, found)
                self.channels = [found[rank] for rank in sorted(found)]
            there = f"{len(found)} of {self.ranks} ranks on {hosts.told(self.where)}"
            code = self.processes[0].poll()
            if code is not None:
                raise MeasureError(
                    f"the launcher ({self.launcher}) ended with exit code {code} when only {there} had called back"
                    f"\n{self._tails([])}"
                )
            if time.monotonic() > deadline:
                raise MeasureError(f"{there} called back within {JOIN_SECONDS:g} seconds\n{self._tails([])}")
            for rank, channel in found.items():
                if _closed(channel):
                    raise MeasureError(
                        f"{self._names([rank])} closed its channel while others joined\n{self._tails([])}"
                    )
        order = json.dumps({**self.spec, "environment": dict(self.settings)}).encode() + b"\n"
        for rank, channel in enumerate(self.channels):
            self.heartbeats[rank] = heartbeat.Heartbeat(heard=time.monotonic())
            with contextlib.suppress(OSError):  # a rank that has died since is found at the next reading
                channel.sendall(order)

    def _greet(self, channel: socket.socket, found: dict[int, socket.socket]) -> None:
        """Add the rank that calls to ``found``; hang up on a caller without the token."""
        channel.settimeout(10)
        try:
            hello = json.loads(channel.makefile("rb").readline())
            if secrets.compare_digest(hello["token"], self.token):
                found[int(hello["rank"])], self.places[int(hello["rank"])] = channel, str(hello["host"])
                channel.settimeout(None)
                _keep_alive(channel, {**KEEP_ALIVE, "TCP_USER_TIMEOUT": UNCONFIRMED_MS})
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        channel.close()

    def _deliver(self, rank: int, message: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.begun.add(rank)
        if message["kind"] == "end":
            self.codes[rank] = message["code"]
            return
        yield from super()._deliver(rank, message)

    def _look(self, watch: RankWatchdog, silent: Sequence[int], over: bool) -> None:
        if over:
            raise MeasureError(
                f"{self._names(silent)} said nothing for {self.timeout:g} seconds\n{self._tails(silent)}"
            )
        known = {rank: self.heartbeats[rank] for rank in silent}
        # Importing libraries from a slow disk may hold the GIL for minutes.
        young = {
            rank: replace(one, heard=one.heard + JOIN_SECONDS) for rank, one in known.items() if rank not in self.begun
        }
        self._blame(heartbeat.stuck(known | young, time.monotonic()))

    def _heartbeat(self, rank: int, told: Mapping[str, Any]) -> None:
        said = {name: value for name, value in told.items() if name not in ("kind", "wait")}
        self.heartbeats[rank] = heartbeat.Heartbeat(heard=time.monotonic(), **said)

    def _code(self, rank: int, seconds: float) -> int | None:
        """Return the exit code that the rank announced, or minus the signal that the launcher names; None for neither.

        The launcher's words may still be on their way: they get ``seconds``.
        """
        deadline = time.monotonic() + seconds
        while rank not in self.codes:
            ended = self.processes[0].poll() is not None or time.monotonic() >= deadline
            if signals := self._signals():
                return -signals[rank] if rank in signals else None
            if ended:
                break
            time.sleep(0.05)
        return self.codes.get(rank)

    def _signals(self) -> dict[int, int]:
        """Return the ranks that a signal ended, with their signals, as the launcher's first words about such an end say.

        srun and Ray name the ranks, and the first named is to blame: srun then kills the others, and their channels may
        close before that of the dead rank. DeepSpeed's launcher names none; its words are taken for the rank that is gone.
        """
        said = self._log(0).read_text(errors="replace")
        if found := RAY_SIGNALLED.search(said):
            return {int(found[1]): int(found[2])}
        for tasks, what in STEP_SIGNALLED.findall(said):
            if what in SIGNALS:
                ends = [part.partition("-") for part in tasks.split(",")]
                named = [range(int(first), int(last or first) + 1) for first, _, last in ends]
                return {rank: int(SIGNALS[what]) for one in named for rank in one}
        if self.gone is not None and (found := SIGNALLED.search(self._said_of(self.gone))):
            return {self.gone: -int(found[1])}
        return {}

    def _said_of(self, rank: int) -> str:
        """Return the launcher's log without the lines that pdsh marks as another node's."""
        names = [name for name, slots in self.where for _ in range(slots)]
        # pdsh prints a node's name without its domain.
        short = [name if name.replace(".", "").isdigit() else name.partition(".")[0] for name in names]
        others = tuple(f"{name}: " for name in {*names, *short} - {names[rank], short[rank]})
        lines = self._log(0).read_text(errors="replace").splitlines()
        return "\n".join(line for line in lines if not line.startswith(others))

    def _ended(self, rank: int) -> None:
        self.gone = rank
        super()._ended(rank)

    def _log(self, rank: int) -> Path:
        """Return the launcher's log, which holds what every rank prints."""
        return Path(self.folder.name) / "launcher.log"

    def _names(self, ranks: Sequence[int]) -> str:
        places = dict.fromkeys(self.places.get(rank, "?") for rank in ranks)
        return f"{super()._names(ranks)} on {', '.join(places)}"

    def _tails(self, ranks: Sequence[int]) -> str:
        # DeepSpeed's launcher prints its whole command, with the values of variables such as tokens.
        said = self._log(0).read_text(errors="replace").splitlines()
        lines = [line for line in said if COMMAND not in line]
        return "\n".join(f"    launcher: {line}" for line in lines[-TAIL_LINES * self.ranks :])


def call(address: str, port: int, token: str) -> tuple[int, dict[str, Any], int]:
    """Call the parent back (in a rank); return the connection's descriptor, the spec, and this rank's number.

    Raises OSError where there is no connection, ConnectionError where the parent closes it first.
    """
    if "RANK" not in os.environ:  # srun has its own variables for ranks' numbers
        os.environ.update(RANK=os.environ["SLURM_PROCID"], LOCAL_RANK=os.environ["SLURM_LOCALID"])
    rank = int(os.environ["RANK"])
    line = socket.create_connection((address, port), timeout=60)
    line.settimeout(None)
    # A node's own name often means its loopback address, which gloo would tell the other nodes.
    os.environ.update(ray_launcher.interface(line.getsockname()[0]))
    _keep_alive(line)
    line.sendall(json.dumps({"token": token, "rank": rank, "host": socket.gethostname()}).encode() + b"\n")
    told = bytearray()
    while not told.endswith(b"\n"):
        data = line.recv(1 << 16)
        if not data:
            raise ConnectionError("the parent hung up before it said what to do")
        told += data
    return line.detach(), json.loads(told), rank


def end_with_parent(descriptor: int) -> None:
    """Make this rank end as soon as the parent hangs up, whatever it is doing.

    It works on Linux only, and must be called before threads start. A forked process watches the connection, because a
    stopped rank cannot end itself. The watcher ends with the rank.
    """
    import select

    if not hasattr(select, "POLLRDHUP"):
        return
    rank = os.getpid()
    if os.fork():
        return
    try:
        children.die_with_parent(rank)
        hung_up = select.poll()
        hung_up.register(descriptor, select.POLLRDHUP)
        hung_up.poll()
        os.kill(rank, signal.SIGKILL)
    except SystemExit:  # the rank has died meanwhile; a traceback would only hide what it printed
        pass
    except BaseException:  # nobody else will report it: the rank goes on, unguarded
        traceback.print_exc()
    finally:
        os._exit(0)


def _address(names: Iterable[str]) -> str:
    """Return this machine's address as the named nodes see it; a loopback address only where every name gives one."""
    found = [_reached_at(name) for name in names]
    return next((address for address in found if not address.startswith("127.")), found[0])


def _reached_at(host: str) -> str:
    """Return this machine's address as ``host`` sees it. Raises MeasureError where there is no way to it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # nothing is sent: the system only picks a route
            address: str = probe.getsockname()[0]
            return address
    except OSError as error:
        raise MeasureError(f"no way to the host {host}: {error}", "correct the hostfile") from None


def _closed(channel: socket.socket) -> bool:
    try:
        return not channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _keep_alive(line: socket.socket, settings: Mapping[str, int] = KEEP_ALIVE) -> None:
    """Turn on TCP keepalive, by which the system notices that the other machine has vanished."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in settings.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
