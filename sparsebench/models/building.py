"""Folders that appear whole: each is built beside its place, under a name of the process that builds it."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsebench.errors import ModelError

PARTIAL = ".partial-"
"""What the name of every folder holds that is being built, or removed."""
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""


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
    sweep(folder.parent, folder.name)
    partial = folder.with_name(f"{folder.name}{_ours()}{os.getpid()}")
    if partial.is_symlink() or partial.is_file():
        partial.unlink()  # not ours; what a link points to is left alone
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


@contextmanager
def temporary(name: Path) -> Iterator[Path]:
    """A new folder of this process's own for passing files, at ``name`` and more; one that it leaves when killed is swept."""
    made = beside(name)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def appear(partial: Path, folder: Path) -> Path:
    """Give a finished folder its name. What has it already is replaced, without a moment in which a reader finds neither."""
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(partial, folder)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def aside(folder: Path) -> Path:
    """Take a folder's name away, so that nobody takes for whole what is being removed; where it lies now."""
    return folder.rename(folder.with_name(f"{folder.name}{_ours()}{os.getpid()}"))


def sweep(parent: Path, name: str = "*") -> None:
    """Remove from ``parent`` what dead processes of this machine have left there of ``name``, or of anything."""
    for left in of_the_dead(parent, name):
        shutil.rmtree(left, ignore_errors=True)


def of_the_dead(parent: Path, name: str = "*") -> Iterator[Path]:
    """What dead processes of this machine have left in ``parent`` of ``name``, or of anything."""
    import psutil

    for left in parent.glob((glob.escape(name) if name != "*" else name) + glob.escape(_ours()) + "*"):
        # All of the rest, or the machine is another whose name goes on: `node-5` where this one is `node`.
        number = left.name.rpartition(_ours())[2]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            yield left


def _ours() -> str:
    return f"{PARTIAL}{socket.gethostname()}-"


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders: at once where system and disk know how, else one after the other."""
    names = (os.fsencode(one), _HERE, os.fsencode(other))
    library = ctypes.CDLL(None)
    if not hasattr(library, "renameat2") or library.renameat2(_HERE, *names, _EXCHANGE):
        between = one.with_name(one.name.replace(".partial-", ".replaced.partial-"))
        other.rename(between)
        one.rename(other)
        between.rename(one)
