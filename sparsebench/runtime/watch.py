"""Finds ranks that hang, by the CPU time and I/O of their process trees.

The process that started the ranks looks only after some seconds without a message, and asks a rank for its stack only
if the rank has been idle.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from sparsebench import processor

IDLE_POLL_SECONDS = 5.0
"""Seconds of silence after which the process that started the ranks looks."""
STALL_SECONDS = 20.0
STALL_CPU = 0.05
"""A rank that uses fewer CPU seconds than STALL_CPU in STALL_SECONDS, and reads nothing, is idle."""
STACK_SECONDS = 10.0
"""The seconds that a rank gets to write its stack: where many programs run, it has to wait for a processor."""
COLLECTIVE_PATHS = ("torch/distributed/", "deepspeed/comm/")
"""Parts of paths that in a stack mean that the rank waits for other ranks."""
EXTERNAL_PATHS = ("sparsebench/sources/cache.py", "filelock/", "file_baton.py", "/subprocess.py")
"""Parts of paths that in a stack mean that the rank waits for another program: a lock's holder, or one it started."""
FRAME = re.compile(r'\s*File "(.*)", line (\d+) in (.*)')
ENDING = re.compile(r"^Current thread .*\n(  File .*\n)+", re.MULTILINE)
"""The main thread's stack, which comes last: the main thread handles signals."""
CALLS = 3
STACK_SIGNAL = signal.SIGUSR1
"""The signal on which a rank writes its stacks into its log."""


def answer_requests() -> None:
    """Have this rank write all threads' stacks into its log when it is asked, whatever it is doing."""
    # What `unregister` goes back to. The system's default would end the process; an ignored request is made again.
    signal.signal(STACK_SIGNAL, signal.SIG_IGN)
    faulthandler.register(STACK_SIGNAL, all_threads=True)


def relay_requests(process: int) -> None:
    """Have this rank, which only waits for its fork ``process``, pass a request for its stacks on to the fork."""

    def ask(*_: object) -> None:
        with suppress(ProcessLookupError):  # it has just ended
            os.kill(process, STACK_SIGNAL)

    faulthandler.unregister(STACK_SIGNAL)
    signal.signal(STACK_SIGNAL, ask)


class IdleRank(NamedTuple):
    """A rank that does nothing: its innermost calls, and whether it waits for other ranks, or for another program."""

    calls: str
    waits_for_ranks: bool
    waits_for_process: bool


def hung_ranks(idle: Mapping[int, IdleRank], running: int) -> dict[int, str]:
    """Return those of the ``running`` ranks that keep a group from going on, and where each hangs; ``idle`` by rank.

    An idle rank that waits for a working one, or for another program, does not hang. Where all wait for each other,
    all do.
    """
    if any(rank.waits_for_process for rank in idle.values()):
        return {}
    hung = {number: rank for number, rank in idle.items() if not rank.waits_for_ranks}
    if not hung and len(idle) == running:
        hung = dict(idle)
    return {number: rank.calls for number, rank in hung.items()}


class RankWatchdog:
    """Watches a machine's ranks: their ``processes``, and the ``logs`` that they write their stacks into, by rank."""

    def __init__(self, processes: Mapping[int, int], logs: Mapping[int, Path]) -> None:
        self.processes, self.logs = processes, logs
        self.last_usage: dict[int, tuple[float, float, float]] = {}
        self.suspects: set[int] = set()

    def restart(self) -> None:
        """Start all idle times anew, because a rank sent a message."""
        self.last_usage.clear()
        self.suspects.clear()

    def idle(self, ranks: Iterable[int]) -> dict[int, IdleRank]:
        """Return those of ``ranks`` that have been idle for STALL_SECONDS.

        One that does not wait is left out at the first look: it may just have gone on, and not yet have worked.
        """
        stacks = self.stacks([rank for rank in ranks if self._is_idle(rank)])
        earlier_suspects = self.suspects
        self.suspects = {rank for rank, stack in stacks.items() if not self._waits(rank, stack)}
        return {
            rank: IdleRank(innermost_calls(stack), rank not in self.suspects, _shows(stack, EXTERNAL_PATHS))
            for rank, stack in stacks.items()
            if rank not in self.suspects - earlier_suspects
        }

    def _waits(self, rank: int, stack: str) -> bool:
        """Return whether an idle rank waits for others; one without a ``stack`` does, unless it is stopped or has ended."""
        return _shows(stack, COLLECTIVE_PATHS) if stack else not stopped_or_ended(self.processes[rank])

    def stacks(self, ranks: Iterable[int]) -> dict[int, str]:
        """Ask ``ranks`` for their stacks and return them; "" for a rank that does not answer."""
        offsets = {rank: self.logs[rank].stat().st_size for rank in ranks}

        def stack(rank: int) -> str:
            with self.logs[rank].open("rb") as log:
                log.seek(offsets[rank])
                text = log.read().decode(errors="replace")
            return text if ENDING.search(text) else ""

        for rank in offsets:
            with suppress(ProcessLookupError):
                os.kill(self.processes[rank], STACK_SIGNAL)
        deadline = time.monotonic() + STACK_SECONDS
        while time.monotonic() < deadline:
            if all(stack(rank) or stopped_or_ended(self.processes[rank]) for rank in offsets):
                break
            time.sleep(0.05)
        return {rank: stack(rank) for rank in offsets}

    def _is_idle(self, rank: int) -> bool:
        """Return whether ``rank`` has been idle for STALL_SECONDS; the first look only starts the count."""
        now, (cpu, read) = time.monotonic(), process_tree_usage(self.processes[rank])
        since, cpu_then, read_then = self.last_usage.setdefault(rank, (now, cpu, read))
        if cpu - cpu_then >= STALL_CPU or read != read_then:
            self.last_usage[rank] = (now, cpu, read)
            return False
        return now - since >= STALL_SECONDS


def main_thread(stack: str) -> str:
    """Return the main thread's part of all threads' stacks, innermost call first."""
    return stack.rpartition("(most recent call first):\n")[2]


def _shows(stack: str, path_parts: Iterable[str]) -> bool:
    return any(part in main_thread(stack) for part in path_parts)


def innermost_calls(stack: str) -> str:
    """Return the main thread's innermost calls in words: ``at lib/module.py:12 in wait, from …``."""
    calls = [FRAME.match(line) for line in main_thread(stack).splitlines()[:CALLS]]
    shown = [f"{'/'.join(Path(call[1]).parts[-2:])}:{call[2]} in {call[3]}" for call in calls if call]
    return f"at {', from '.join(shown)}" if shown else "does not answer"


def stopped_or_ended(process: int) -> bool:
    """Return whether a process is stopped, as by SIGSTOP, or has ended, even if nobody has asked for its exit code."""
    states = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE)
    with suppress(psutil.Error):
        return bool(psutil.Process(process).status() in states)
    return True


def process_tree_usage(pid: int, include_writes: bool = False) -> tuple[float, float]:
    """Return CPU seconds and bytes read (with ``include_writes``, also written) so far by a process and its descendants.

    Where one of them runs, or waits for a processor or a disk, the bytes grow as well, so that it never seems idle.
    """
    cpu, byte_count = 0.0, 0.0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            times = process.cpu_times()
            cpu += times.user + times.system
            if process.status() in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP):
                byte_count += time.monotonic()
            if hasattr(process, "io_counters"):  # not where /proc hides them
                counts = process.io_counters()
                byte_count += counts.read_bytes + counts.read_chars
                byte_count += (counts.write_bytes + counts.write_chars) * include_writes
    return cpu, byte_count


def oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since boot; 0 where it does not say."""
    return int(processor.kernel_value("/proc/vmstat", "oom_kill") or 0)
