"""Folders that groups of ranks pass their files in, and those of groups that were killed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NAME = "sparsebench-ranks-"


def prefix() -> str:
    """How the folder of a group of this process is called, in the system's folder for temporary files."""
    return f"{_NAME}{os.getpid()}-"


def of_the_dead() -> Iterator[Path]:
    """The folders of groups whose process is no more; of this user, and of this machine."""
    import psutil

    for path in Path(tempfile.gettempdir()).glob(f"{_NAME}*"):
        owner = path.name.removeprefix(_NAME).partition("-")[0]
        mine = not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
        if mine and owner.isdigit() and not psutil.pid_exists(int(owner)):
            yield path
