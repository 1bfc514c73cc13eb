"""Read-only SQL over a ledger, and its rows as text."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import escape
from sparsebench.errors import QueryError
from sparsebench.ledger import connect, derive, migrate, sqlfiles

if TYPE_CHECKING:
    import duckdb

PATIENCE = 30.0
"""Seconds to wait for a writer to let go of the file."""
_MEANT = re.compile(r"(?:Did you mean|Candidate bindings:) (.+)")
_LINE = re.compile(r"LINE (\d+): (.*)\n(\s*\^+)")


@dataclass(frozen=True)
class Table:
    """The rows of a query, values as Python has them."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def run(path: Path, sql: str, parameters: dict[str, Any] | None = None, patience: float = PATIENCE) -> Table:
    """The rows of ``sql`` with its ``parameters``, which can read this ledger and nothing else.

    Raises QueryError for SQL that fails, with its line; LedgerError for a file that cannot be opened.
    """
    with reader(Path(path), patience) as connection:
        migrate.stand_in(connection, sql)
        cursor = connection.execute(sql, parameters)
        names = tuple(column[0] for column in cursor.description or ())
        return Table(names, tuple(cursor.fetchall()))


def describe(path: Path) -> Table:
    """The public views with their columns, each with its type and what it means."""
    return run(path, sqlfiles.read("describe"))


def render(table: Table, shape: str) -> str:
    """``table`` as csv, json (a list of objects) or markdown."""
    return {"csv": _csv, "json": _json, "markdown": _markdown}[shape](table)


@contextmanager
def reader(path: Path, patience: float = PATIENCE, outlet: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """An open ledger of this program's schema; one that an older version has left is brought up to date first.

    It reaches the folder ``outlet`` and no other file. Raises QueryError for what DuckDB refuses.
    """
    with connect.reader(path, patience, outlet) as connection, _explaining():
        ready = migrate.current(connection, path)
        if ready:
            yield connection
    if not ready:
        with connect.writer(path, patience) as connection:
            migrate.upgrade(connection, path)
            # A migration may ask for what is derived to be computed again.
            connection.execute("BEGIN")
            derive.derive(connection)
            connection.execute("COMMIT")
        with connect.reader(path, patience, outlet) as connection, _explaining():
            yield connection


@contextmanager
def _explaining() -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise _explained(error) from error


def _explained(error: Exception) -> QueryError:
    text = str(error)
    what = text.splitlines()[0].split(" Error: ", 1)[-1]
    place = _LINE.search(text)
    if place:
        # DuckDB indents the mark by the length of its own "LINE n: ".
        mark = place[3][len(f"LINE {place[1]}: ") :]
        what = f"line {place[1]}: {what}\n  {place[2]}\n  {mark}"
    if "read-only mode" in what or "disabled by configuration" in what or "been locked" in what:
        return QueryError(what, "queries only read this ledger; `sparsebench export` writes other formats")
    meant = _MEANT.search(text)
    if meant:
        nearest = meant[1].strip().rstrip("?").split(", ")[:3]
        return QueryError(what, f"did you mean {' or '.join(nearest)}?")
    return QueryError(what, "`sparsebench sql` without a query lists the views and their columns")


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_text(value) for value in row] for row in table.rows)
    return out.getvalue()


def _json(table: Table) -> str:
    rows = [{name: _plain(value) for name, value in row.items()} for row in table.dicts()]
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def _markdown(table: Table) -> str:
    lines = (table.columns, *([_text(value) for value in row] for row in table.rows))
    head, *rows = (["<br>".join(map(escape.markdown, word.split("\n"))) for word in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *rows))


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is not a number is null, times and the like are text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(_plain(value), ensure_ascii=False) if isinstance(value, dict | list | tuple) else str(value)
