"""Folders that appear whole: each is built next to its final path, under a name with the building process's id."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sparsebench import environment
from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.paths import PARTIAL, partial_of, sweep

_CURRENT_FOLDER, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of renameat2(2)."""


def reserve(folder: Path, size: int) -> None:
    """Raise ModelError where the disk of ``folder`` has less than ``size`` bytes free.

    A sparse file takes no space on its own disk, but its full size where it is copied to.
    """
    free = environment.free_disk(folder)
    if size > free:
        problem = f"{folder}: it takes {size / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there"
        raise ModelError(problem, "make room, or let `work_dir` or the cache (SPARSEBENCH_CACHE) lie on a larger disk")


def new_partial(folder: Path) -> Path:
    """Make a new, empty folder to build ``folder`` in and then rename.

    Each process gets its own, even for the same ``folder``. What dead processes of this machine have left is removed.
    """
    sweep(folder.parent, folder.name)
    partial = partial_of(folder)
    if partial.is_symlink() or partial.is_file():
        partial.unlink()  # not ours; what a link points to is left alone
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


@contextmanager
def temporary(folder: Path) -> Iterator[Path]:
    """Make a temporary folder of this process beside ``folder``; one left by a killed process is swept later."""
    partial = new_partial(folder)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def activations_beside(folder: Path) -> AbstractContextManager[Path]:
    """Make a temporary folder for activations beside ``folder``: the disk with room for a variant has room for them too."""
    return temporary(folder.parent / ".activations")


@contextmanager
def removed_on_error(folder: Path) -> Iterator[None]:
    """Remove ``folder``, which has its final name and would pass for complete, where the body raises an error of ours."""
    try:
        yield
    except SparsebenchError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def rename_whole(partial: Path, folder: Path) -> Path:
    """Rename the finished folder ``partial`` to ``folder``, replacing an older one, atomically where possible."""
    try:
        partial.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        _exchange(partial, folder)
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def set_aside(folder: Path) -> Path:
    """Rename a folder before it is removed, so that nobody takes it for whole; return its new path."""
    return folder.rename(partial_of(folder))


def is_whole(folder: Path) -> bool:
    """Return whether a model's folder is there; folders appear whole or not at all."""
    return (folder / "config.json").is_file()


def _exchange(first: Path, second: Path) -> None:
    """Swap the names of two folders: atomically where system and disk can, else by three renames."""
    names = (os.fsencode(first), _CURRENT_FOLDER, os.fsencode(second))
    library = ctypes.CDLL(None)
    if not hasattr(library, "renameat2") or library.renameat2(_CURRENT_FOLDER, *names, _EXCHANGE):
        between = first.with_name(first.name.replace(PARTIAL, f".replaced{PARTIAL}"))
        second.rename(between)
        first.rename(second)
        between.rename(first)
