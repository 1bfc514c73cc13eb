"""Signs of life of a rank that its parent cannot watch, because it runs on another node: one every few seconds.

A thread sends them over the rank's own connection: how long the rank has done nothing, and what it is in the middle of.
It costs a millisecond of processor time each, and only ranks of several nodes have it.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench.runtime.watch import ELSEWHERE, LOOK_SECONDS, STALL_CPU, STALL_SECONDS, WAITING, at

GONE_SECONDS = 60.0
"""So long a rank may say nothing: a call that holds Python's lock keeps the thread from speaking."""


@dataclass(frozen=True)
class Pulse:
    """What a rank said of itself and when: ``idle`` seconds without work, whether it ``waits`` for other ranks, or for
    something ``elsewhere``, and where (``at``). One that has yet to speak works."""

    heard: float
    idle: float = 0.0
    waits: bool = False
    elsewhere: bool = False
    at: str = ""


def start(send: Callable[..., None]) -> None:
    """In a rank: begin to send."""
    threading.Thread(target=_beat, args=(send, threading.main_thread().ident), daemon=True).start()


def stuck(pulses: dict[int, Pulse], now: float) -> dict[int, str]:
    """The ranks that keep the group from going on, and where; as `Watch.stuck` of ranks that can be watched."""
    gone = {rank: "does not answer" for rank, pulse in pulses.items() if now - pulse.heard >= GONE_SECONDS}
    if gone:
        return gone
    idle = {rank: pulse for rank, pulse in pulses.items() if pulse.idle >= STALL_SECONDS}
    if any(pulse.elsewhere for pulse in idle.values()):
        return {}
    guilty = {rank: pulse.at for rank, pulse in idle.items() if not pulse.waits}
    return guilty or ({rank: pulse.at for rank, pulse in idle.items()} if len(idle) == len(pulses) else {})


def _beat(send: Callable[..., None], main: int) -> None:
    since, used = time.monotonic(), 0.0
    while True:
        now, cpu = time.monotonic(), time.process_time() - time.thread_time()
        if cpu - used >= STALL_CPU or _reads():
            since, used = now, cpu
        frames = traceback.extract_stack(sys._current_frames()[main])
        files = [frame.filename for frame in frames]
        content: dict[str, Any] = {
            "idle": now - since,
            "waits": any(word in file for file in files for word in WAITING),
            "elsewhere": any(word in file for file in files for word in ELSEWHERE),
            "at": at([(frame.filename, frame.lineno or 0, frame.name) for frame in reversed(frames)]),
        }
        try:
            send("pulse", **content)
        except OSError:  # the parent is gone, and this rank ends by it
            return
        time.sleep(LOOK_SECONDS)


def _reads() -> bool:
    """Whether the main thread waits for a disk, which is as good as work."""
    with suppress(OSError, IndexError):
        return Path("/proc/self/stat").read_text().rpartition(") ")[2][0] == "D"
    return False
