"""Processes for jobs, forked from one that has already imported the libraries that such jobs need.

Importing torch, transformers and lm-eval takes a processor five to ten seconds, and a variant is often scored in less
than half a minute. Every job still has a process of its own, with its session, its log and its share of the cores. Jobs
are forked only where that is safe: without a GPU, whose driver does not survive it. Elsewhere a process starts from
nothing.

The standard library's fork server (``multiprocessing``) will not do. Its ``Process.start`` returns only when the server
has imported everything, while a run goes on to start and watch other jobs. A process has only one such server, in its
own environment, while each of ours has its own number of threads. And when it dies, its jobs live on and their exit
codes are lost.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from sparsebench import children
from sparsebench.errors import redact_stderr
from sparsebench.paths import create
from sparsebench.run import worker
from sparsebench.runtime import watch

MESSAGE_BYTES = 1 << 16
POLL_SECONDS = 0.02
"""How often the fork server looks which of its jobs have ended."""


class ForkServer:
    """The fork server, as its parent sees it.

    It imports ``modules`` once, in the background; one that cannot be imported is left to the jobs. ``variables`` are
    the environment of all its jobs, their number of threads included: libraries read it when they are imported.
    """

    def __init__(self, modules: Iterable[str], variables: Mapping[str, str]) -> None:
        self.orders, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with server_end:
            self.process = subprocess.Popen(
                children.module_command(__name__, server_end.fileno(), *modules),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(variables),
                pass_fds=[server_end.fileno()],
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it can start another job."""
        return self.process.poll() is None

    def start(self, spec: Path, log: Path, events: int) -> Forked:
        """Return a job's process at once, before it exists."""
        reading, writing = os.pipe()
        order = json.dumps({"spec": str(spec), "log": str(log)}).encode()
        with suppress(BrokenPipeError, ConnectionResetError):  # the job ends as the server did
            socket.send_fds(self.orders, [order], [events, writing])
        os.close(writing)
        return Forked(self.process, reading)

    def close(self) -> None:
        """End the fork server, after its jobs have ended."""
        self.orders.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A job's process. Its parent is the fork server, which writes its id and later its exit code into a pipe."""

    def __init__(self, server: subprocess.Popen[bytes], outcome: int) -> None:
        self.server = server
        self.outcome = os.fdopen(outcome, "rb", 0)
        self.reported: list[int] = []
        """What the fork server has reported: the process's id, then its exit code."""
        self.code: int | None = None

    @property
    def pid(self) -> int:
        """The id of its process and process group; that of the fork server until it has forked."""
        self._read(0.0)
        return self.reported[0] if self.reported else self.server.pid

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs.

        A job ends with the fork server, by the signal that the fork server died of.
        """
        return self._read(0.0)

    def wait(self) -> int:
        while (code := self._read(1.0)) is None:
            if watch.stopped_or_ended(self.server.pid):
                self.server.kill()  # nobody else would tell how the job ended
        return code

    def _read(self, seconds: float) -> int | None:
        """Read what the fork server has written, waiting for it for some ``seconds``; return the exit code, if known."""
        while self.code is None and select.select([self.outcome], [], [], seconds)[0]:
            data = self.outcome.read(MESSAGE_BYTES)
            self.reported += map(int, data.split())
            if len(self.reported) == 2:
                self.code = self.reported[1]
            elif not data:
                self.code = self.server.wait() or 1
            if self.code is not None:
                self.outcome.close()
            seconds = 0.0
        return self.code


Process = Forked | subprocess.Popen[bytes]
"""A job's process. A negative exit code is a signal's number."""


def main() -> None:
    """Run the fork server: import, then fork on every order, until the parent closes the socket of orders.

    The arguments are that socket's descriptor, then the modules to import.
    """
    redact_stderr()
    orders = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        with suppress(Exception):  # the job that needs it fails with the reason
            importlib.import_module(name)
    gc.freeze()  # so that the children's garbage collectors do not copy what is never collected
    outcomes: dict[int, int] = {}
    while True:
        if select.select([orders], [], [], POLL_SECONDS if outcomes else None)[0]:
            data, descriptors, *_ = socket.recv_fds(orders, MESSAGE_BYTES, 2)
            if not data:
                return
            events, outcome = descriptors
            parent = os.getpid()
            try:
                pid = os.fork()
            except OSError as error:  # this job fails; those that run go on
                with suppress(OSError), create(Path(json.loads(data)["log"]), "wb") as log:
                    log.write(f"no process could be started for it: {error}\n".encode())
                _tell(outcome, parent)
                _tell(outcome, 1)
                os.close(events)
                os.close(outcome)
                continue
            if not pid:
                _do_job(parent, json.loads(data), events, [orders.detach(), outcome, *outcomes.values()])
            os.close(events)
            outcomes[pid] = outcome
            _tell(outcome, pid)
        for pid in list(outcomes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                outcome = outcomes.pop(pid)
                _tell(outcome, os.waitstatus_to_exitcode(status))
                os.close(outcome)


def _tell(outcome: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for this job any more
        os.write(outcome, f"{number}\n".encode())


def _do_job(parent: int, order: Mapping[str, str], events: int, foreign: Iterable[int]) -> NoReturn:
    """Do the job in the new process, and end it: nothing that the fork server still had to do may happen here too.

    ``foreign`` are descriptors that only the fork server may hold.
    """
    code = 1
    try:
        children.die_with_parent(parent)
        os.setsid()
        for descriptor in foreign:
            os.close(descriptor)
        with create(Path(order["log"]), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(Path(order["spec"]).stem)  # what ps and top call it
        code = worker.main(Path(order["spec"]), events)
    except BaseException:  # nothing may leave the fork: the fork server's code would run twice
        traceback.print_exc()
    finally:
        children.leave(code)


if __name__ == "__main__":
    main()
