"""Brings a ledger to this program's schema: ordered migrations, then the views, in one transaction.

Before migrations, a ledger that is not new is copied to ``NAME.before-NNNN.duckdb``. The views are created again
whenever their text differs from what the file was last given, each with its comments, which ``CREATE OR REPLACE``
drops.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.errors import LedgerError
from sparsebench.ledger import sqlfiles
from sparsebench.paths import unlinked

if TYPE_CHECKING:
    import duckdb

_LONG = frozenset({"samples", "structure", "tensors"})
"""Views with many rows per record. They stay views even where others become tables, which lie in memory."""


def upgrade(
    connection: duckdb.DuckDBPyConnection,
    path: Path,
    migrations: Sequence[str] | None = None,
    derive: Callable[[duckdb.DuckDBPyConnection], None] = lambda connection: None,
) -> None:
    """Bring the open ledger at ``path`` up to date by ``migrations`` (default: all); leave a current one alone.

    ``derive`` computes anew, in the same transaction, what a migration removed for that purpose.
    Raises LedgerError for a file that is not a ledger, or that a newer program has migrated.
    """
    steps = sqlfiles.folder("migrations") if migrations is None else migrations
    views = _views()
    known = version(connection, path)
    if known > len(steps):
        raise newer(path, known, len(steps))
    todo = steps[known:]
    if not todo and _issued(connection) == _digest(views):
        return
    if todo and known:
        # Everything must be in the one file that is copied, not in its write-ahead log.
        connection.execute("CHECKPOINT")
        shutil.copy2(path, unlinked(path.with_name(f"{path.stem}.before-{len(steps):04d}{path.suffix}")))
    connection.execute("BEGIN")
    for number, step in enumerate(todo, known + 1):
        connection.execute(sqlfiles.read(step))
        connection.execute(
            "INSERT INTO base.migrations VALUES (?, ?, ?)", [number, step.rpartition("/")[2], datetime.now(UTC)]
        )
    for text in views:
        connection.execute(text)
    for (comment,) in connection.execute(sqlfiles.read("inherit_comments")).fetchall():
        connection.execute(comment)
    connection.execute("DELETE FROM base.issued_views")
    connection.execute("INSERT INTO base.issued_views VALUES (?)", [_digest(views)])
    if todo:
        derive(connection)
    connection.execute("COMMIT")


def current(connection: duckdb.DuckDBPyConnection, path: Path) -> bool:
    """Whether an open ledger has this program's schema and views. Raises LedgerError as ``upgrade`` does."""
    known, steps = version(connection, path), len(sqlfiles.folder("migrations"))
    if known > steps:
        raise newer(path, known, steps)
    return known == steps and _issued(connection) == _digest(_views())


def version(connection: duckdb.DuckDBPyConnection, path: Path) -> int:
    """Return the number of migrations that the file has had; 0 for an empty one.

    Raises LedgerError for another program's file, for one that does not say its version, and for one whose macros,
    types or triggers would change what our SQL does.
    """
    _refuse_stand_ins(connection, path)
    tables = connection.execute(
        "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE NOT temporary"
    ).fetchall()
    if not tables:
        return 0
    if ("base.migrations",) not in tables:
        raise LedgerError(f"{path}: a DuckDB file, but not a ledger of sparsebench", "name another file with --ledger")
    row = connection.execute("SELECT max(number) FROM base.migrations").fetchone()
    if row is None or row[0] is None:
        raise LedgerError(
            f"{path}: does not say which version it is", "make it anew from its records: sparsebench ingest"
        )
    return int(row[0])


def stand_in(connection: duckdb.DuckDBPyConnection, sql: str, made: set[str] | None = None) -> None:
    """Create our views and macros that ``sql`` names, for this connection: the file's own may be somebody else's.

    ``made`` holds the names that the connection has already, and gets those created now. With it, a view becomes a table:
    views are made of views, and planning them anew for each of many queries takes far longer than the queries.
    """
    wanted, texts = _words(sql), []
    for name, text in reversed(sqlfiles.definitions().items()):
        if name in wanted:
            wanted |= _words(text)
            if made is None or name not in made:
                once = made is not None and text.startswith("VIEW ") and name not in _LONG
                texts.append("TABLE " + text.removeprefix("VIEW ") if once else text)
                if made is not None:
                    made.add(name)
    for text in reversed(texts):
        connection.execute(f"CREATE OR REPLACE TEMP {text}")


def _words(sql: str) -> set[str]:
    return set(re.findall(r"\w+", sql.lower()))


def _refuse_stand_ins(connection: duckdb.DuckDBPyConnection, path: Path) -> None:
    import duckdb

    found = connection.execute(sqlfiles.read("stand_ins")).fetchall()
    with suppress(duckdb.CatalogException):
        found += connection.execute(sqlfiles.read("triggers")).fetchall()
    if found:
        named = ", ".join(f"the {kind} {name}" for kind, name in found)
        raise LedgerError(
            f"{path}: holds {named}, which would change what sparsebench's own queries mean",
            "make a ledger from its records: sparsebench ingest FOLDER --ledger NEW.duckdb",
        )


def newer(path: Path, known: int, steps: int) -> LedgerError:
    """Return the error for a file that a later version of this program has written."""
    return LedgerError(
        f"{path}: written by a newer sparsebench (schema {known}, this one knows {steps})",
        "upgrade sparsebench, or name another file with --ledger",
    )


def _views() -> list[str]:
    return [sqlfiles.read(name) for name in sqlfiles.folder("views")]


def _digest(views: Sequence[str]) -> str:
    return hashlib.sha256("\0".join([*views, sqlfiles.read("inherit_comments")]).encode()).hexdigest()


def _issued(connection: duckdb.DuckDBPyConnection) -> str | None:
    row = connection.execute("SELECT any_value(digest) FROM base.issued_views").fetchone()
    return row[0] if row else None
