"""The SQL of this package. Each file is read once: a process keeps one version even while the program is upgraded."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

SQL_FOLDER = Path(__file__).parent
_DEFINITION = re.compile(r"^CREATE OR REPLACE ((?:VIEW|MACRO) (\w+).*?;)$", re.MULTILINE | re.DOTALL)


@cache
def read(name: str) -> str:
    """Return the text of one file, such as ``derive/outcomes``."""
    return (SQL_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


@cache
def folder(name: str) -> tuple[str, ...]:
    """Return the names (for ``read``) of the files of ``schema``, ``ingest`` or ``views``, in order."""
    return tuple(f"{name}/{path.stem}" for path in sorted((SQL_FOLDER / name).glob("*.sql")))


@cache
def definitions() -> dict[str, str]:
    """Return every view and macro of ``views`` by name: the SQL after ``CREATE OR REPLACE``, dependencies first."""
    return {name: text for file in folder("views") for text, name in _DEFINITION.findall(read(file))}
