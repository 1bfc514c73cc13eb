"""Folders in the system's folder for temporary files that bear their machine's name and the number of their process: what a
killed one leaves is known, also where machines share that folder."""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


def ours() -> str:
    """What the names of this machine's folders begin with."""
    return f"sparsebench-{socket.gethostname()}-"


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A new folder of this process."""
    return tempfile.TemporaryDirectory(prefix=f"{ours()}{os.getpid()}-", ignore_cleanup_errors=True)


def of_the_dead() -> Iterator[Path]:
    """The folders of processes that are no more; of this user, and of this machine."""
    import psutil

    for path in Path(tempfile.gettempdir()).glob(f"{glob.escape(ours())}*"):
        owner, _, drawn = path.name.removeprefix(ours()).partition("-")
        # What tempfile draws has no "-": a second one belongs to a machine whose name goes on, `node-5` where this one is `node`.
        if not owner.isdigit() or "-" in drawn:
            continue
        mine = not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
        if mine and not psutil.pid_exists(int(owner)):
            yield path


def sweep() -> None:
    """Remove the folders of processes that are no more."""
    for left in of_the_dead():
        shutil.rmtree(left, ignore_errors=True)
