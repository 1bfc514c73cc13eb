"""Processes for jobs, forked from one that has already imported the libraries that such jobs need.

Importing torch, transformers and lm-eval takes a processor five to ten seconds, and a variant is often scored in less
than half a minute. Every job still has a process of its own, with its session, its log and its share of the cores. Jobs
are forked only where that is safe: on Linux, and without a GPU, whose driver does not survive it. Elsewhere a process
starts from nothing.

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
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from sparsebench import children
from sparsebench.errors import redact_stderr
from sparsebench.paths import create
from sparsebench.run import worker

MESSAGE_BYTES = 1 << 16
ANSWER_SECONDS = 60.0
"""How long the fork server may take to answer once it has imported: it has nothing else to do."""


class Process(Protocol):
    """What a run needs of a job's process; ``subprocess.Popen`` fits too. A negative exit code is a signal's number."""

    @property
    def pid(self) -> int:
        """Its id, which is also that of its process group."""

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""

    def wait(self) -> int:
        """Wait for its end and return the exit code."""


def at_work(process: Process) -> int:
    """Return the id of the process that works on a job now, without waiting: the fork server's until it has forked."""
    if isinstance(process, Forked):
        with suppress(ProcessLookupError):
            return process.pid if process.forked else process.server.process.pid
        return process.server.process.pid
    return process.pid


class ForkServer:
    """The fork server, as its parent sees it.

    It imports ``modules`` once, in the background; one that cannot be imported is left to the jobs. ``variables`` are
    the environment of all its jobs, their number of threads included: libraries read it when they are imported.
    """

    def __init__(self, modules: Iterable[str], variables: Mapping[str, str]) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.answers: dict[int, int | None] = {}
        self.asked = 0
        self.heard = False
        with theirs:
            self.process = subprocess.Popen(
                children.command(__name__, theirs.fileno(), *modules),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(variables),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def alive(self) -> bool:
        """Whether it can start another job."""
        return self.process.poll() is None

    @property
    def importing(self) -> bool:
        """Whether it has answered nothing yet: no job has begun, and it can be killed without harm."""
        return not self.heard and not self.spoken

    @property
    def spoken(self) -> bool:
        """Whether an answer, or the end of the line, can be read."""
        return bool(select.select([self.line], [], [], 0)[0])

    def start(self, spec: Path, log: Path, events: int) -> Forked:
        """Return a job's process at once, before it exists."""
        return Forked(self, self.ask({"spec": str(spec), "log": str(log)}, [events]))

    def ask(self, order: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Send an order; return the number under which it is answered."""
        self.asked += 1
        with suppress(BrokenPipeError, ConnectionResetError):  # its death is found where an answer is waited for
            socket.send_fds(self.line, [json.dumps({"number": self.asked, **order}).encode()], descriptors)
        return self.asked

    def answer(self, number: int) -> int | None:
        """Wait for the answer to an order and return it. Raises ChildProcessError where none can come."""
        while number not in self.answers:
            if self.heard and not select.select([self.line], [], [], ANSWER_SECONDS)[0]:
                self.process.kill()  # it was stopped: its jobs end with it
            try:
                data = self.line.recv(MESSAGE_BYTES)
            except ConnectionResetError:
                data = b""
            if not data:
                raise ChildProcessError("the process that jobs are forked from has died")
            # Kept by number: Ctrl-C may have come between an order and its answer.
            found = json.loads(data)
            self.heard = True
            self.answers[found["number"]] = found["value"]
        return self.answers.pop(number)

    def close(self) -> None:
        """End the fork server, after its jobs have ended."""
        self.line.close()
        self.process.kill()
        self.process.wait()


class Forked:
    """A job's process; only the fork server, its parent, learns when it ends."""

    def __init__(self, server: ForkServer, order: int) -> None:
        self.server, self.order = server, order
        self.number: int | None = None
        self.code: int | None = None

    @property
    def forked(self) -> bool:
        """Whether ``pid`` need not wait: there is a process, or there will never be one."""
        return self.number is not None or self.order in self.server.answers or self.server.spoken

    @property
    def pid(self) -> int:
        """Its id; waits until the fork server has imported and forked. Raises ProcessLookupError if the server died."""
        if self.number is None:
            try:
                self.number = self.server.answer(self.order)
            except ChildProcessError as error:
                raise ProcessLookupError(str(error)) from error
        assert self.number is not None
        return self.number

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs.

        A job ends with the fork server, by the signal that the fork server died of.
        """
        if self.code is None:
            try:
                self.code = self.server.answer(self.server.ask({"ended": self.pid}))
            except (ChildProcessError, ProcessLookupError):
                self.code = self.server.process.wait() or 1
        return self.code

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        while (code := self.poll()) is None:
            time.sleep(0.01)
        return code


def main() -> None:
    """Run the fork server: import, then fork on every order, until the parent closes the line."""
    redact_stderr()
    line = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        with suppress(Exception):  # the job that needs it fails with the reason
            importlib.import_module(name)
    codes: dict[int, int | None] = {}  # an answer may have been lost, and a process can be waited for only once
    gc.freeze()  # so that the children's garbage collectors do not copy what is never collected
    while True:
        data, descriptors, *_ = socket.recv_fds(line, MESSAGE_BYTES, 1)
        if not data:
            return
        order = json.loads(data)
        if "ended" in order:
            pid = order["ended"]
            codes[pid] = value = _ended(pid) if codes[pid] is None else codes[pid]
        else:
            pid = value = _forked(order, descriptors, line)
            codes[pid] = None
        line.send(json.dumps({"number": order["number"], "value": value}).encode())


def _ended(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _forked(order: Mapping[str, Any], descriptors: Sequence[int], line: socket.socket) -> int:
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _live(parent, order, descriptors[0], line)
    for descriptor in descriptors:
        os.close(descriptor)
    return pid


def _live(parent: int, order: Mapping[str, Any], events: int, line: socket.socket) -> NoReturn:
    """Do the job in the new process, and end it: nothing that the fork server still had to do may happen here too."""
    code = 1
    try:
        children.die_with_parent(parent)
        os.setsid()
        line.close()
        with create(Path(order["log"]), "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(Path(order["spec"]).stem)  # what ps and top call it
        code = worker.main(Path(order["spec"]), events)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
