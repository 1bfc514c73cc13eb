"""Exports a ledger's views and base tables as Parquet or CSV files."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb

from sparsebench.ledger import query, schema, sqlfiles
from sparsebench.paths import refuse_link


def export(ledger: Path, to: str, out: Path) -> list[Path]:
    """Write every public view, and every base table as ``base_NAME``, in the folder ``out``. Return the paths written.

    ``to`` is parquet or csv.
    """
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
