"""Folders in the system's folder for temporary files that bear the number of their process: what a killed one leaves is known."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAME = "sparsebench-"


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A new folder of this process."""
    return tempfile.TemporaryDirectory(prefix=f"{_NAME}{os.getpid()}-", ignore_cleanup_errors=True)


def of_the_dead() -> Iterator[Path]:
    """The folders of processes that are no more; of this user, and of this machine."""
    import psutil

    for path in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
        owner = path.name.removeprefix(_NAME).partition("-")[0]
        mine = not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
        if mine and owner.isdigit() and not psutil.pid_exists(int(owner)):
            yield path


def sweep() -> None:
    """Remove the folders of processes that are no more."""
    for left in of_the_dead():
        shutil.rmtree(left, ignore_errors=True)
