"""Detects hung ranks from the CPU time and I/O of their process trees.

The parent looks only when a group has been silent for a while, and asks a rank for its stack only when that was idle.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from sparsebench import environment

LOOK_SECONDS = 5.0
"""Seconds of silence after which the parent looks."""
STALL_SECONDS = 20.0
STALL_CPU = 0.05
"""A rank that uses fewer CPU seconds than STALL_CPU in STALL_SECONDS, and reads nothing, is idle."""
STACK_SECONDS = 10.0
"""The seconds that a rank gets to write its stack: where many programs run, it has to wait for a processor."""
WAITING = ("torch/distributed/", "deepspeed/comm/")
"""Parts of paths that in a stack mean that the rank waits for other ranks."""
ELSEWHERE = ("sparsebench/sources/cache.py", "filelock/", "file_baton.py", "/subprocess.py")
"""Parts of paths that in a stack mean that the rank waits for another program: a lock's holder, or one it started."""
FRAME = re.compile(r'\s*File "(.*)", line (\d+) in (.*)')
ENDING = re.compile(r"^Current thread .*\n(  File .*\n)+", re.MULTILINE)
"""The main thread's stack, which comes last: the main thread handles signals."""
CALLS = 3
ASKED = signal.SIGUSR1 if sys.platform != "win32" else None
"""The signal on which a rank writes its stacks into its log."""


def answer() -> None:
    """Have this rank write all threads' stacks into its log when the parent asks, whatever it is doing."""
    import faulthandler

    if ASKED is not None:
        # What `unregister` goes back to. The system's default would end the process; an ignored request is made again.
        signal.signal(ASKED, signal.SIG_IGN)
        faulthandler.register(ASKED, all_threads=True)


def relay(process: int) -> None:
    """Have this rank, which only waits for its fork ``process``, pass the parent's request on to the fork."""
    import faulthandler

    def ask(*_: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(process, ASKED)  # type: ignore[arg-type]

    if ASKED is not None:
        faulthandler.unregister(ASKED)
        signal.signal(ASKED, ask)


class RankWatchdog:
    """Watches a group's processes, by rank; ``logs`` are the files that they write their stacks into."""

    def __init__(self, processes: Sequence[int], logs: Sequence[Path]) -> None:
        self.processes, self.logs = processes, logs
        self.seen: dict[int, tuple[float, float, float]] = {}

    def restart(self) -> None:
        """Start all idle times anew, because a rank sent a message."""
        self.seen.clear()

    def stuck(self, ranks: Sequence[int]) -> dict[int, str]:
        """Return those of ``ranks`` (all that still run) that keep the group from going on, and where each hangs.

        An idle rank that waits for a working one, or for another program, is not stuck. Where all wait for each other,
        all are.
        """
        idle = [rank for rank in ranks if self._idle(rank)]
        if not idle:
            return {}
        told = self.stacks(idle)
        if any(word in main_thread(stack) for stack in told.values() for word in ELSEWHERE):
            return {}
        guilty = [rank for rank in idle if self._blamed(rank, told[rank])]
        return {rank: place(told[rank]) for rank in guilty or (idle if len(idle) == len(ranks) else [])}

    def _blamed(self, rank: int, stack: str) -> bool:
        """Return whether an idle rank is to blame.

        It is if its ``stack`` shows that it does not wait for other ranks, or if it gave none and its process is
        stopped.
        """
        return not any(word in main_thread(stack) for word in WAITING) if stack else _stopped(self.processes[rank])

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """Ask ``ranks`` for their stacks and return them; "" for a rank that does not answer."""
        starts = {rank: self.logs[rank].stat().st_size for rank in ranks}

        def told(rank: int) -> str:
            text = self.logs[rank].read_bytes()[starts[rank] :].decode(errors="replace")
            return text if ENDING.search(text) else ""

        for rank in ranks:
            if ASKED is not None:
                with suppress(ProcessLookupError):
                    os.kill(self.processes[rank], ASKED)
        until = time.monotonic() + STACK_SECONDS
        while time.monotonic() < until and not all(told(rank) or _stopped(self.processes[rank]) for rank in ranks):
            time.sleep(0.05)
        return {rank: told(rank) for rank in ranks}

    def _idle(self, rank: int) -> bool:
        """Return whether ``rank`` has been idle for STALL_SECONDS; the first look only starts the count."""
        now, (cpu, read) = time.monotonic(), used(self.processes[rank])
        since, cpu_then, read_then = self.seen.setdefault(rank, (now, cpu, read))
        if cpu - cpu_then >= STALL_CPU or read != read_then:
            self.seen[rank] = (now, cpu, read)
            return False
        return now - since >= STALL_SECONDS


def main_thread(stack: str) -> str:
    """Return the main thread's part of all threads' stacks, innermost call first."""
    return stack.rpartition("(most recent call first):\n")[2]


def place(stack: str) -> str:
    """Return the main thread's innermost calls in words: ``at lib/module.py:12 in wait, from …``."""
    calls = [FRAME.match(line) for line in main_thread(stack).splitlines()[:CALLS]]
    found = [(call[1], int(call[2]), call[3]) for call in calls if call]
    return at(found) if found else "does not answer"


def at(calls: Sequence[tuple[str, int, str]]) -> str:
    """Return the first CALLS of ``calls`` (file, line, function), innermost first, in words."""
    return "at " + ", from ".join(
        f"{'/'.join(Path(file).parts[-2:])}:{line} in {name}" for file, line, name in calls[:CALLS]
    )


def _stopped(process: int) -> bool:
    import psutil

    with suppress(psutil.Error):
        return bool(psutil.Process(process).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    return True


def used(process: int, written: bool = False) -> tuple[float, float]:
    """Return CPU seconds and bytes read (with ``written``, also written) so far by a process and its descendants.

    Where one of them runs, or waits for a processor or a disk, the bytes grow as well, so that it never seems idle.
    """
    import psutil

    cpu, read = 0.0, 0.0
    with suppress(psutil.Error):
        first = psutil.Process(process)
        for one in (first, *first.children(recursive=True)):
            times = one.cpu_times()
            cpu += times.user + times.system
            if one.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP):
                read += time.monotonic()
            if hasattr(one, "io_counters"):
                counts = one.io_counters()
                read += counts.read_bytes + getattr(counts, "read_chars", 0)
                if written:
                    read += counts.write_bytes + getattr(counts, "write_chars", 0)
    return cpu, read


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it does not say."""
    return int(environment.kernel_value("/proc/vmstat", "oom_kill") or 0)
