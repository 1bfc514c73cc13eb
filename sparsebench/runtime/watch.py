"""Detects hung ranks from the CPU time and I/O of their process trees.

The parent looks only when a group was silent for a while, and asks a rank for its stack only when it used nothing.
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
"""Silence after which the parent looks."""
STALL_SECONDS = 20.0
STALL_CPU = 0.05
"""A rank that uses less CPU time than this in so many seconds, and reads nothing, does not work."""
STACK_SECONDS = 10.0
"""At most so long a rank may take to tell its stack: where many programs run, it has to wait for a processor."""
WAITING = ("torch/distributed/", "deepspeed/comm/")
"""In a stack: it waits for other ranks."""
ELSEWHERE = ("sparsebench/sources/cache.py", "filelock/", "file_baton.py", "/subprocess.py")
"""In a stack: it waits for another program, which has a lock, or which it has started."""
FRAME = re.compile(r'\s*File "(.*)", line (\d+) in (.*)')
ENDING = re.compile(r"^Current thread .*\n(  File .*\n)+", re.MULTILINE)
"""The main thread's stack, which comes last: it answers to signals."""
CALLS = 3
ASKED = signal.SIGUSR1 if sys.platform != "win32" else None
"""On it a rank writes its stack into its log."""


def answer() -> None:
    """In a rank: write all threads' stacks into the log when the parent asks, whatever the rank is in the middle of."""
    import faulthandler

    if ASKED is not None:
        faulthandler.register(ASKED, all_threads=True)


def relay(process: int) -> None:
    """In a rank that only waits for its fork: let that answer in its place."""
    import faulthandler

    if ASKED is not None:
        faulthandler.unregister(ASKED)
        signal.signal(ASKED, lambda *_: os.kill(process, ASKED))  # type: ignore[arg-type]


class RankWatchdog:
    """Watches a group's processes, by rank; ``logs`` are where their stacks come."""

    def __init__(self, processes: Sequence[int], logs: Sequence[Path]) -> None:
        self.processes, self.logs = processes, logs
        self.seen: dict[int, tuple[float, float, float]] = {}

    def restart(self) -> None:
        """Somebody spoke."""
        self.seen.clear()

    def stuck(self, ranks: Sequence[int]) -> dict[int, str]:
        """Those of ``ranks`` (the ones that still run) that keep the group from going on, and where; usually none.

        A rank that does nothing because it waits for one that works, or for another program, is not stuck. Where all wait
        for each other, all are.
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
        """One that tells where it is must not wait for others; one that tells nothing must be stopped."""
        return not any(word in main_thread(stack) for word in WAITING) if stack else _stopped(self.processes[rank])

    def stacks(self, ranks: Sequence[int]) -> dict[int, str]:
        """What each of ``ranks`` is in the middle of; "" for one that does not answer."""
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
        """Whether ``rank`` has done nothing for long enough; the first look only begins to count."""
        now, (cpu, read) = time.monotonic(), used(self.processes[rank])
        since, cpu_then, read_then = self.seen.setdefault(rank, (now, cpu, read))
        if cpu - cpu_then >= STALL_CPU or read != read_then:
            self.seen[rank] = (now, cpu, read)
            return False
        return now - since >= STALL_SECONDS


def main_thread(stack: str) -> str:
    """Of all threads' stacks that of the main one, innermost call first."""
    return stack.rpartition("(most recent call first):\n")[2]


def place(stack: str) -> str:
    """``at lib/module.py:12 in wait, from …``: the innermost calls of a stack's main thread."""
    calls = [FRAME.match(line) for line in main_thread(stack).splitlines()[:CALLS]]
    found = [(call[1], int(call[2]), call[3]) for call in calls if call]
    return at(found) if found else "does not answer"


def at(calls: Sequence[tuple[str, int, str]]) -> str:
    """The first few calls (file, line, function), innermost first, in words."""
    return "at " + ", from ".join(
        f"{'/'.join(Path(file).parts[-2:])}:{line} in {name}" for file, line, name in calls[:CALLS]
    )


def _stopped(process: int) -> bool:
    import psutil

    with suppress(psutil.Error):
        return bool(psutil.Process(process).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP))
    return True


def used(process: int, written: bool = False) -> tuple[float, float]:
    """CPU seconds and bytes read so far, and ``written`` where asked, by a process and its children.

    To wait for a processor or a disk is as good.
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
    """Processes that the kernel has ended for want of memory since it started; 0 where it does not say."""
    return int(environment.kernel_value("/proc/vmstat", "oom_kill") or 0)
