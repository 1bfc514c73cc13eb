"""Heartbeats, every few seconds, of ranks that their parent cannot watch because they were started through a launcher.

A thread sends them over the rank's own connection: how long the rank has done nothing, and which calls it is in.
Only such ranks have the thread: a heartbeat costs a tenth of a millisecond of processor time (measured: 67 µs).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sparsebench.runtime.watch import ELSEWHERE, LOOK_SECONDS, STALL_CPU, STALL_SECONDS, WAITING, at

GONE_SECONDS = 60.0
"""Seconds without a heartbeat after which a rank counts as gone. A call that holds the GIL delays heartbeats."""


@dataclass(frozen=True)
class Heartbeat:
    """A rank's last heartbeat: when it was ``heard``, ``idle`` seconds without work, whether the rank ``waits`` for
    other ranks or for another program (``elsewhere``), and where it is (``at``). The defaults describe a rank that
    works."""

    heard: float
    idle: float = 0.0
    waits: bool = False
    elsewhere: bool = False
    at: str = ""


def start(send: Callable[..., None]) -> None:
    """Start sending heartbeats (called in a rank)."""
    threading.Thread(target=_beat, args=(send, threading.main_thread().ident or 0), daemon=True).start()


def stuck(heartbeats: dict[int, Heartbeat], now: float) -> dict[int, str]:
    """Return the ranks that block the group, and where each hangs: `RankWatchdog.stuck`, but from heartbeats."""
    gone = {rank: "does not answer" for rank, heartbeat in heartbeats.items() if now - heartbeat.heard >= GONE_SECONDS}
    if gone:
        return gone
    idle = {rank: heartbeat for rank, heartbeat in heartbeats.items() if heartbeat.idle >= STALL_SECONDS}
    if any(heartbeat.elsewhere for heartbeat in idle.values()):
        return {}
    guilty = {rank: heartbeat.at for rank, heartbeat in idle.items() if not heartbeat.waits}
    return guilty or ({rank: heartbeat.at for rank, heartbeat in idle.items()} if len(idle) == len(heartbeats) else {})


def _beat(send: Callable[..., None], main: int) -> None:
    since, before, waited = time.monotonic(), _work(), False
    while True:
        now, work = time.monotonic(), _work()
        calls = _calls(main)
        waits, elsewhere = (
            any(word in file for file, _, _ in calls for word in words) for words in (WAITING, ELSEWHERE)
        )
        # A rank that no longer waits starts a new idle time.
        let_go = waited and not (waits or elsewhere)
        if let_go or work.cpu - before.cpu >= STALL_CPU or work.read != before.read or work.state in ("R", "D"):
            since, before = now, work
        waited = waits or elsewhere
        try:
            send("heartbeat", idle=now - since, waits=waits, elsewhere=elsewhere, at=at(calls))
        except OSError:  # the parent is gone, which also ends this rank
            return
        time.sleep(LOOK_SECONDS)


def _calls(thread: int) -> list[tuple[str, int, str]]:
    """Return a thread's calls as (file, line, function), innermost first, without opening a source file."""
    frame, found = sys._current_frames().get(thread), []
    while frame:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


class _ProcessState(NamedTuple):
    """CPU seconds of the other threads; the main thread's bytes read and state (R runs, D waits for a disk)."""

    cpu: float
    read: str
    state: str


def _work() -> _ProcessState:
    cpu, read, state = time.process_time() - time.thread_time(), "", ""
    with suppress(OSError, IndexError):
        state = Path("/proc/self/stat").read_text().rpartition(") ")[2][0]
        read = Path(f"/proc/self/task/{os.getpid()}/io").read_text().partition("\n")[0]
    return _ProcessState(cpu, read, state)
