"""Signs of life of a rank that its parent cannot watch, because it runs on another node: one every few seconds.

A thread sends them over the rank's own connection: how long the rank has done nothing, and what it is in the middle of.
Only ranks of several nodes have it: each costs them a tenth of a millisecond of processor time (measured: 67 µs).
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
"""So long a rank may say nothing: a call that holds Python's lock keeps the thread from speaking."""


@dataclass(frozen=True)
class Heartbeat:
    """What a rank said of itself and when: ``idle`` seconds without work, whether it ``waits`` for other ranks, or for
    something ``elsewhere``, and where (``at``). One that has yet to speak works."""

    heard: float
    idle: float = 0.0
    waits: bool = False
    elsewhere: bool = False
    at: str = ""


def start(send: Callable[..., None]) -> None:
    """In a rank: begin to send."""
    threading.Thread(target=_beat, args=(send, threading.main_thread().ident or 0), daemon=True).start()


def stuck(heartbeats: dict[int, Heartbeat], now: float) -> dict[int, str]:
    """The ranks that keep the group from going on, and where; as `RankWatchdog.stuck` of ranks that can be watched."""
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
        # One that no longer waits has only begun to do nothing.
        let_go = waited and not (waits or elsewhere)
        if let_go or work.cpu - before.cpu >= STALL_CPU or work.read != before.read or work.state in ("R", "D"):
            since, before = now, work
        waited = waits or elsewhere
        try:
            send("heartbeat", idle=now - since, waits=waits, elsewhere=elsewhere, at=at(calls))
        except OSError:  # the parent is gone, and this rank ends by it
            return
        time.sleep(LOOK_SECONDS)


def _calls(thread: int) -> list[tuple[str, int, str]]:
    """What a thread is in the middle of (file, line, function), innermost first; no file is opened for it."""
    frame, found = sys._current_frames().get(thread), []
    while frame:
        found.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return found


class _ProcessState(NamedTuple):
    """CPU seconds of all threads but this one; bytes that the main thread has read; its state (R runs, D waits for a disk)."""

    cpu: float
    read: str
    state: str


def _work() -> _ProcessState:
    cpu, read, state = time.process_time() - time.thread_time(), "", ""
    with suppress(OSError, IndexError):
        state = Path("/proc/self/stat").read_text().rpartition(") ")[2][0]
        read = Path(f"/proc/self/task/{os.getpid()}/io").read_text().partition("\n")[0]
    return _ProcessState(cpu, read, state)
