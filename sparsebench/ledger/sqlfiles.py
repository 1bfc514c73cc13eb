"""The SQL of this package, read once: a process keeps to one version of it even while the program is being upgraded."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOM = Path(__file__).parent
_DEFINITION = re.compile(r"^CREATE OR REPLACE ((?:VIEW|MACRO) (\w+).*?;)$", re.MULTILINE | re.DOTALL)


@cache
def read(name: str) -> str:
    """The text of one file, such as ``derive/outcomes``."""
    return (ROOM / f"{name}.sql").read_text(encoding="utf-8")


@cache
def folder(name: str) -> tuple[str, ...]:
    """The names (for ``read``) of the files of ``migrations``, ``ingest`` or ``views``, in order."""
    return tuple(f"{name}/{path.stem}" for path in sorted((ROOM / name).glob("*.sql")))


@cache
def definitions() -> dict[str, str]:
    """Every view and macro of ``views`` by name, as what follows ``CREATE``; whatever another is made of comes before it."""
    return {name: text for file in folder("views") for text, name in _DEFINITION.findall(read(file))}
