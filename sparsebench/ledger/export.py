"""Exports a ledger's views and base tables as Parquet or CSV files, or as one SQLite file."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb

from sparsebench.errors import UserError
from sparsebench.ledger import query, schema, sqlfiles
from sparsebench.paths import create, partial_of, refuse_link

ROWS = 10_000


def export(ledger: Path, to: str, out: Path) -> list[Path]:
    """Write every public view, and every base table as ``base_NAME``. Return the paths written.

    ``to`` is parquet or csv (``out`` is a folder) or sqlite (``out`` is a file, which must not exist: nothing is
    merged).
    """
    if to == "sqlite":
        return [_sqlite(ledger, out)]
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with query.reader(ledger, outlet=out) as connection:
        for name, relation in _relations(connection):
            path = refuse_link(out / f"{name}.{to}")
            rows = connection.sql(f"FROM {relation}")
            rows.to_parquet(str(path)) if to == "parquet" else rows.to_csv(str(path))
            written.append(path)
    return written


def _relations(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Return (name, relation) of what is exported: our views and base tables, nothing else that the file may hold."""
    views = [name for name, text in sqlfiles.definitions().items() if text.startswith("VIEW") and name[0] != "_"]
    schema.stand_in(connection, " ".join(views), set())
    created = re.findall(r"CREATE TABLE base\.(\w+)", "".join(map(sqlfiles.read, sqlfiles.folder("schema"))))
    tables = [(f"base_{name}", f"base.{name}") for name in created if name != "version"]
    return sorted([*zip(views, views, strict=True), *tables])


def _sqlite(ledger: Path, out: Path) -> Path:
    if out.exists():
        raise UserError(f"{out}: exists", "name a new file")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(out)
    create(partial, "ab").close()  # sqlite3 does not say why it cannot make a file
    target = sqlite3.connect(partial)
    try:
        with target, query.reader(ledger) as connection:
            for name, relation in _relations(connection):
                cursor = connection.execute(f"FROM {relation}")
                columns = ", ".join(
                    f'"{column[0]}" {_AFFINITY.get(str(column[1]), "TEXT")}' for column in cursor.description
                )
                target.execute(f'CREATE TABLE "{name}" ({columns})')
                marks = ", ".join("?" * len(cursor.description))
                while rows := cursor.fetchmany(ROWS):
                    target.executemany(f'INSERT INTO "{name}" VALUES ({marks})', _plain(rows))
        target.close()
        return partial.rename(out)
    finally:
        target.close()
        partial.unlink(missing_ok=True)


_AFFINITY = {"BIGINT": "INTEGER", "INTEGER": "INTEGER", "BOOLEAN": "INTEGER", "DOUBLE": "REAL"}


def _plain(rows: list[tuple[Any, ...]]) -> Iterator[list[Any]]:
    """Yield rows as SQLite takes them: lists as JSON, times as ISO text."""
    for row in rows:
        yield [
            json.dumps(value)
            if isinstance(value, list)
            else value
            if isinstance(value, int | float | str | None)
            else str(value)
            for value in row
        ]
