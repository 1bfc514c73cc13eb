"""Folders that appear whole: each is built beside its place, under a name of the process that builds it."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from pathlib import Path

from sparsebench.errors import ModelError


def reserve(folder: Path, size: int) -> None:
    """Raise ModelError where the disk that ``folder`` will lie on has less than ``size`` bytes free.

    A sparse file takes no room where it lies and all of its size where it is copied to.
    """
    free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.exists())).free
    if size > free:
        raise ModelError(
            f"{folder}: it takes {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there",
            "make room, or let `work_dir` or the cache (SPARSEBENCH_CACHE) lie on a larger disk",
        )


def beside(folder: Path) -> Path:
    """A new, empty folder to build ``folder`` in and then rename.

    Two processes that make the same folder do not meet in it. What dead processes of this machine have left there is removed.
    """
    import psutil

    ours = f"{folder.name}.partial-{socket.gethostname()}-"
    for left in folder.parent.glob(glob.escape(ours) + "*"):
        number = left.name.removeprefix(ours)
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f"{ours}{os.getpid()}")
    if partial.is_symlink() or partial.is_file():
        partial.unlink()  # not ours; what a link points to is left alone
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial
