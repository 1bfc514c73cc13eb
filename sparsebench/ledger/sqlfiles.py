"""The SQL of this room: each file read where it is needed, in the order of its name."""

from __future__ import annotations

from pathlib import Path

ROOM = Path(__file__).parent


def read(name: str) -> str:
    """The text of one file, such as ``derive/new_pairs``."""
    return (ROOM / f"{name}.sql").read_text(encoding="utf-8")


def folder(name: str) -> list[Path]:
    """The files of ``migrations``, ``ingest``, ``derive`` or ``views``, in order."""
    return sorted((ROOM / name).glob("*.sql"))
