"""The SQL of this room, read once: a process keeps to one version of it even while the program is being upgraded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

ROOM = Path(__file__).parent


@cache
def read(name: str) -> str:
    """The text of one file, such as ``derive/outcomes``."""
    return (ROOM / f"{name}.sql").read_text(encoding="utf-8")


@cache
def folder(name: str) -> tuple[str, ...]:
    """The names (for ``read``) of the files of ``migrations``, ``ingest`` or ``views``, in order."""
    return tuple(f"{name}/{path.stem}" for path in sorted((ROOM / name).glob("*.sql")))
