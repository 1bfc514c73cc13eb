"""Folders that appear whole: each is built beside its place, under a name of the process that builds it."""

from __future__ import annotations

import glob
import os
import shutil
import socket
from pathlib import Path


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
