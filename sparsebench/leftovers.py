"""Temporary folders whose names hold their machine's name and process id.

What a killed process leaves can thus be found, also where machines share the system's temporary folder.
"""

from __future__ import annotations

import glob
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path


def ours() -> str:
    """Return what the names of this machine's folders begin with."""
    return f"sparsebench-{socket.gethostname()}-"


def temporary() -> tempfile.TemporaryDirectory[str]:
    """Make a new folder of this process."""
    return tempfile.TemporaryDirectory(prefix=f"{ours()}{os.getpid()}-", ignore_cleanup_errors=True)


def of_the_dead() -> Iterator[Path]:
    """Yield the folders of dead processes of this user on this machine."""
    import psutil

    for path in Path(tempfile.gettempdir()).glob(f"{glob.escape(ours())}*"):
        owner, _, drawn = path.name.removeprefix(ours()).partition("-")
        # tempfile's random part has no "-". A second "-" is of a longer machine name: `node-5` where this is `node`.
        if not owner.isdigit() or "-" in drawn:
            continue
        mine = not path.is_symlink() and path.is_dir() and path.stat().st_uid == os.getuid()
        if mine and not psutil.pid_exists(int(owner)):
            yield path


def sweep() -> None:
    """Remove the folders of dead processes."""
    for left in of_the_dead():
        shutil.rmtree(left, ignore_errors=True)
