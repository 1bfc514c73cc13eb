"""Processes that do not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def die_with_parent(parent: int | None = None, number: signal.Signals = signal.SIGTERM) -> None:
    """On Linux this process gets the signal ``number`` when its parent dies, however that dies; elsewhere nothing happens.

    No signal is sent for a parent that has died before; where its number ``parent`` is given, SystemExit is raised instead.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, number)
        if parent is not None and os.getppid() != parent:
            sys.exit("the parent was gone before this process began")
