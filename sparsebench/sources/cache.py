"""The cache: the folder of fetched files, its locks, and file hashes that are computed once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.paths import write_whole


def _default_folder() -> Path:
    folder = os.environ.get("SPARSEBENCH_CACHE") or platformdirs.user_cache_dir("sparsebench")
    return Path(folder).expanduser().absolute()


@dataclass(frozen=True)
class Cache:
    """A folder: ``root``, else $SPARSEBENCH_CACHE, else the platform's user cache. It is created on the first write."""

    root: Path = field(default_factory=_default_folder)
    offline: bool = False
    """Whether downloads are forbidden."""

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of this name, waiting until it is free. The kernel frees it when its holder dies."""
        path = self.root / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def sha256(self, path: Path) -> str:
        """Return the file's sha256 in hexadecimal, remembered by absolute path, size and mtime."""
        path = path.absolute()
        stamp = [str(path), *stamp_of(path)]
        note_path = self.root / "hashes" / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        note = read_json(note_path)
        if note and note.get("stamp") == stamp:
            return str(note["sha256"])
        digest = sha256_of(path)
        write_json(note_path, {"stamp": stamp, "sha256": digest})
        return digest


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> list[int]:
    """Return size in bytes and mtime in nanoseconds, which change when a file does."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the object in a JSON file; None when the file is absent, cut short, or holds anything else."""
    try:
        return bounded.read_object(path)
    except ModelError:
        return None


def write_json(path: Path, content: dict[str, Any], indent: int | None = None) -> None:
    """Write a JSON file in one piece: no reader ever sees half of it."""
    text = json.dumps(content, indent=indent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
