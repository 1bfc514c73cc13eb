"""Out of the ledger: its views and base tables as Parquet or CSV files, or as one SQLite file."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparsebench.errors import UserError
from sparsebench.ledger import connect, query, sqlfiles
from sparsebench.paths import unlinked

ROWS = 10_000


def export(ledger: Path, to: str, out: Path) -> list[Path]:
    """Write every public view, and every base table as ``base_NAME``; the paths written.

    ``to`` is parquet or csv (``out`` is a folder) or sqlite (``out`` is a file, which must not exist: it is not merged).
    """
    names = query.run(ledger, sqlfiles.read("exported")).rows
    if to == "sqlite":
        return [_sqlite(ledger, names, out)]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    # External access is off for what a person asks; here the statements are our own.
    with connect.reader(ledger, query.PATIENCE, sealed=False) as connection:
        for relation, name in names:
            path = unlinked(out / f"{name}.{to}")
            rows = connection.table(relation)
            rows.to_parquet(str(path)) if to == "parquet" else rows.to_csv(str(path))
            written.append(path)
    return written


def _sqlite(ledger: Path, names: tuple[tuple[Any, ...], ...], out: Path) -> Path:
    if out.exists():
        raise UserError(f"{out}: exists", "name a new file")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.name}.partial")
    partial.unlink(missing_ok=True)
    target = sqlite3.connect(partial)
    try:
        with target, connect.reader(ledger, query.PATIENCE) as connection:
            for relation, name in names:
                cursor = connection.execute(f"FROM {relation}")
                columns = ", ".join(
                    f'"{column[0]}" {_AFFINITY.get(str(column[1]), "TEXT")}' for column in cursor.description
                )
                target.execute(f'CREATE TABLE "{name}" ({columns})')
                marks = ", ".join("?" * len(cursor.description))
                while rows := cursor.fetchmany(ROWS):
                    target.executemany(f'INSERT INTO "{name}" VALUES ({marks})', _plain(rows))
    finally:
        target.close()
    return partial.rename(out)


_AFFINITY = {"BIGINT": "INTEGER", "INTEGER": "INTEGER", "BOOLEAN": "INTEGER", "DOUBLE": "REAL"}


def _plain(rows: list[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Rows as SQLite takes them: lists as JSON, times as ISO text."""
    for row in rows:
        yield [
            json.dumps(value)
            if isinstance(value, list)
            else value
            if isinstance(value, int | float | str | None)
            else str(value)
            for value in row
        ]
