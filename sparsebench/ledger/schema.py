"""Gives a ledger this program's schema and views, in one transaction; refuses what is not a ledger, or a newer version's.

The views are created again whenever their text differs from what the file was last given, each with its comments,
which ``CREATE OR REPLACE`` drops.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

import duckdb

from sparsebench.errors import LedgerError
from sparsebench.ledger import sqlfiles

_WITHOUT_TABLES = frozenset({"samples", "structure", "tensors"})
"""Views with many rows per record. They stay views; the others become tables, which lie in memory."""
_REBUILD = "make a ledger from its records: sparsebench ingest FOLDER --ledger NEW.duckdb"


def upgrade(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Bring the open ledger at ``path`` up to date: the files of ``schema/`` that it lacks, then the views.

    Raises LedgerError for a file that is not a ledger, or that has a newer schema than this program knows.
    """
    version = _version(connection, path)
    if version == _this_version():
        return
    schema_files, digest = sqlfiles.folder("schema"), _this_version()[1]
    connection.execute("BEGIN")
    for name in (*schema_files[version[0] :], *sqlfiles.folder("views")):
        connection.execute(sqlfiles.read(name))
    for (comment,) in connection.execute(sqlfiles.read("inherit_comments")).fetchall():
        connection.execute(comment)
    connection.execute("DELETE FROM base.version")
    connection.execute("INSERT INTO base.version VALUES (?, ?)", [len(schema_files), digest])
    connection.execute("COMMIT")


def is_current(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether an open ledger has this program's schema and views. Raises LedgerError as ``upgrade`` does."""
    return _version(connection, path) == _this_version()


def _this_version() -> tuple[int, str]:
    """Return the number of files of the schema, and a digest of the views and their comments."""
    views = [sqlfiles.read(name) for name in (*sqlfiles.folder("views"), "inherit_comments")]
    return len(sqlfiles.folder("schema")), hashlib.sha256("\0".join(views).encode()).hexdigest()


def _version(connection: duckdb.DuckDBPyConnection, path: Path) -> tuple[int, str]:
    """Return what ``_this_version`` does for the file; (0, "") for an empty one.

    Raises LedgerError for another program's file, for a newer schema, and for one whose macros, types or triggers
    would change what our SQL does.
    """
    _refuse_shadowing(connection, path)
    query = "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE NOT temporary"
    tables = {name for (name,) in connection.execute(query).fetchall()}
    if not tables:
        return 0, ""
    if "base.version" not in tables:
        raise LedgerError(f"{path}: a DuckDB file, but not a ledger of sparsebench", "name another file with --ledger")
    versions = connection.execute("SELECT number, views FROM base.version").fetchall()
    if len(versions) != 1 or not isinstance(versions[0][0], int):
        raise LedgerError(f"{path}: does not say which version it is", _REBUILD)
    number, views = versions[0]
    known_number = len(sqlfiles.folder("schema"))
    if number > known_number:
        raise LedgerError(
            f"{path}: written by a newer sparsebench (schema {number}, this one knows {known_number})",
            "upgrade sparsebench, or name another file with --ledger",
        )
    return number, views


def create_temp_views(connection: duckdb.DuckDBPyConnection, sql: str, existing: set[str]) -> None:
    """Create our views and macros that ``sql`` names, for this connection: the file's own may be somebody else's.

    ``existing`` holds the names that the connection has already, and gets those created now. A view becomes a table:
    views are made of views, and planning them takes far longer than their rows.
    """
    named, texts = _words(sql), []
    for name, text in reversed(sqlfiles.definitions().items()):
        if name in named:
            named |= _words(text)
            if name not in existing:
                becomes_table = text.startswith("VIEW ") and name not in _WITHOUT_TABLES
                texts.append("TABLE " + text.removeprefix("VIEW ") if becomes_table else text)
                existing.add(name)
    for text in reversed(texts):
        connection.execute(f"CREATE OR REPLACE TEMP {text}")


def _words(sql: str) -> set[str]:
    """Return the words of ``sql`` but for names in the schema ``base``: ``base.scores`` is a table, ``scores`` a view."""
    return set(re.findall(r"(?<!\bbase\.)\b\w+", sql.lower()))


def _refuse_shadowing(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    shadowing = connection.execute(sqlfiles.read("shadowing_macros")).fetchall()
    with suppress(duckdb.CatalogException):
        shadowing += connection.execute(sqlfiles.read("shadowing_triggers")).fetchall()
    if shadowing:
        names = ", ".join(f"the {kind} {name}" for kind, name in shadowing)
        raise LedgerError(f"{path}: holds {names}, which would change what sparsebench's own queries mean", _REBUILD)
