"""What can be removed from the cache: all of it can be made or fetched again; each item says what its loss costs."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sparsebench import paths
from sparsebench.models.files import building
from sparsebench.run.workspace import FOLDERS, leased
from sparsebench.storage import sums

KINDS = {
    "models": "a prepared model: a run that needs it prepares it again",
    "variants": "a variant's folder: a run that needs it unpacks or makes it again",
    "packed": "a variant's packed copy: a new cell of it makes the variant again",
    "training": "a training that was interrupted: a run that needs it begins it anew",
}
"""The folders of a work folder whose content can go, and why."""
_DEAD = "left by a process that is no more"


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed, how many bytes on the disk that frees, and why it can go."""

    path: Path
    kind: str
    bytes: int
    why: str


def removable(work: Path) -> list[Removable]:
    """Return what can be removed from a work folder and the system's temporary files, the largest first.

    What a run uses just now is not among it.
    """
    half_built = chain.from_iterable(paths.of_the_dead(work / name) for name in FOLDERS)
    temporary = paths.of_the_dead(Path(tempfile.gettempdir()), paths.TEMPORARY)
    items = [Removable(path, "leftovers", _size(path), _DEAD) for path in (*temporary, *half_built)]
    for kind, why in KINDS.items():
        for path in (work / kind).glob("*"):
            is_whole = path.is_dir() and not path.is_symlink() and paths.PARTIAL not in path.name
            if is_whole and not leased(work, path.name):
                items.append(Removable(path, kind, _size(path), why))
    return sorted(items, key=lambda item: (-item.bytes, str(item.path)))


def remove(item: Removable) -> bool:
    """Rename it away, then remove it; return False where a run has begun to use it, or another process removed it.

    Raises OSError for what cannot be removed.
    """
    if item.kind in KINDS and leased(item.path.parent.parent, item.path.name):
        return False
    try:
        path = building.aside(item.path) if item.kind in KINDS else item.path
        sums.forget(item.path)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    """Return the bytes on the disk that are freed; a file with another hard link, such as a download's, frees none."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):  # another process has removed it meanwhile
                stat = os.lstat(os.path.join(folder, name))
                total += stat.st_blocks * 512 * (stat.st_nlink == 1)
    return total
