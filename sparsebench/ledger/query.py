"""Read-only SQL over a ledger: its rows as text, or its views and base tables as files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from threading import Thread
from typing import Any

import duckdb

from sparsebench import escape
from sparsebench.errors import QueryError
from sparsebench.ledger import connect, schema, sqlfiles
from sparsebench.paths import refuse_link

LOCK_TIMEOUT = 30.0
"""Seconds to wait for a writer to let go of the file."""
_ROWS = 2000
"""Rows that are fetched at once."""
_STOPPING = 0.5
"""Seconds that an interrupted query has to end."""
_MEANT = re.compile(r"(?:Did you mean:?|Candidate bindings:) (.+)")
_LINE = re.compile(r"LINE (\d+): (.*)\n(\s*\^+)")


@dataclass(frozen=True)
class Table:
    """The rows of a query, as Python values."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def dicts(self) -> list[dict[str, Any]]:
        """Return each row as a mapping by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True)
class Stream:
    """The rows of a query that is still running; they can be read once."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


def run(path: Path, sql: str, parameters: dict[str, Any] | None = None, lock_timeout: float = LOCK_TIMEOUT) -> Table:
    """Return the rows of ``sql``, run with ``parameters``. The query can read this ledger and nothing else.

    Raises QueryError for SQL that fails, naming its line, and LedgerError for a file that cannot be opened.
    """
    with streaming(path, sql, parameters, lock_timeout) as stream:
        return Table(stream.columns, tuple(stream.rows))


@contextmanager
def streaming(
    path: Path,
    sql: str,
    parameters: dict[str, Any] | None = None,
    lock_timeout: float = LOCK_TIMEOUT,
    timeout: float = 0,
) -> Iterator[Stream]:
    """Yield the rows of ``sql`` as a stream, while DuckDB still computes them; otherwise like ``run``.

    Also raises QueryError when DuckDB has worked on them for more than ``timeout`` seconds (0: no limit).
    """
    with reader(Path(path), lock_timeout) as connection:
        yield _stream(_Watched(connection, timeout), sql, parameters, set())


class Session:
    """Answers like ``run``, but on one ``connection``, on which each view is made once."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.views: set[str] = set()

    def __call__(self, sql: str, parameters: dict[str, Any] | None = None) -> Table:
        """Return the rows of ``sql``, run with ``parameters``."""
        stream = _stream(_Watched(self.connection, 0), sql, parameters, self.views)
        return Table(stream.columns, tuple(stream.rows))


@contextmanager
def session(path: Path) -> Iterator[Session]:
    """Open a ledger for several queries, which all see it as it is now. Writers wait as long as it is open."""
    with reader(Path(path)) as connection:
        yield Session(connection)


def _stream(watched: _Watched, sql: str, parameters: dict[str, Any] | None, existing: set[str]) -> Stream:
    """Run ``sql`` and return its rows. The ``reader`` around this explains DuckDB's errors.

    ``existing`` are the names of views that the connection has already; those that ``sql`` needs are added.
    """
    watched.call(refuse_several, watched.connection, sql)
    watched.call(schema.create_temp_views, watched.connection, sql, existing)
    cursor = watched.call(watched.connection.execute, sql, parameters)
    if cursor is None or cursor.description is None:
        raise QueryError("there is no query in it", "give one SELECT; without a query the views are listed")

    def rows() -> Iterator[tuple[Any, ...]]:
        while fetched := watched.call(cursor.fetchmany, _ROWS):
            yield from fetched

    return Stream(tuple(column[0] for column in cursor.description), rows())


def refuse_several(connection: duckdb.DuckDBPyConnection, sql: str) -> None:
    """Raise QueryError for more than one statement: DuckDB would run all, and give the rows of the last."""
    statements = len(connection.extract_statements(sql))
    if statements > 1:
        raise QueryError(f"{statements} queries in one text, of which only the last would show", "give one SELECT")


class _Watched:
    """Calls on one connection, which end when their time is up or the user interrupts.

    Python handles a signal only between two of its own steps, and a query is one step: so it runs in its own thread.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, timeout: float) -> None:
        self.connection = connection
        self.timeout = timeout
        self.spent = 0.0

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return or raise what ``function`` does. Raises QueryError when the time is up."""
        answer: Future[Any] = Future()

        def work() -> None:
            try:
                answer.set_result(function(*arguments))
            except BaseException as error:  # raised in the caller's thread instead
                answer.set_exception(error)

        begun = time.monotonic()
        try:
            Thread(target=work, daemon=True).start()
            result = answer.result(self.timeout - self.spent if self.timeout else None)
        except TimeoutError:
            self._stop(answer)
            hint = "ask for less, or give it longer: --timeout SECONDS (0: no limit)"
            raise QueryError(f"the query was stopped at its limit of {self.timeout:g} s", hint) from None
        except KeyboardInterrupt:
            self._stop(answer)
            raise
        self.spent += time.monotonic() - begun
        return result

    def _stop(self, answer: Future[Any]) -> None:
        """Interrupt DuckDB until the call ends, else abandon the connection: work on one huge value does not stop."""
        deadline = time.monotonic() + _STOPPING
        try:
            while not answer.done() and time.monotonic() < deadline:
                self.connection.interrupt()
                wait([answer], 0.02)
        finally:
            if not answer.done():
                connect.STUCK_CONNECTIONS.append(self.connection)


def render(table: Table | Stream, text_format: str) -> Iterator[str]:
    """Yield ``table`` as text, row by row; ``text_format`` is csv, json (a list of objects) or markdown."""
    return {"csv": _csv, "json": _json, "markdown": _markdown}[text_format](table)


@contextmanager
def reader(
    path: Path, lock_timeout: float = LOCK_TIMEOUT, writable_folder: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a ledger for reading. One with the views of another version gets ours first.

    The connection reaches the folder ``writable_folder`` and no other file. Raises QueryError for what DuckDB refuses.
    """
    with connect.reader(path, lock_timeout, writable_folder) as connection, _explaining(path):
        ready = schema.is_current(connection, path)
        if ready:
            yield connection
    if not ready:
        with connect.writer(path, lock_timeout) as connection:
            schema.upgrade(connection, path)
        with connect.reader(path, lock_timeout, writable_folder) as connection, _explaining(path):
            yield connection


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        with connect.explaining_damage(path), connect.interruptible():
            yield
    except duckdb.Error as error:
        raise _explained(error) from error


def _explained(error: Exception) -> QueryError:
    text = str(error)
    message = text.splitlines()[0].split(" Error: ", 1)[-1]
    if line := _LINE.search(text):
        # DuckDB indents the mark by the length of its own "LINE n: ".
        mark = line[3][len(f"LINE {line[1]}: ") :]
        message = f"line {line[1]}: {message}\n  {line[2]}\n  {mark}"
    if text.startswith("Out of Memory"):
        return QueryError(
            f"the query needs more memory than it may have ({connect.query_memory() / 1e9:.1f} GB)",
            "select fewer rows or columns, or aggregate before you join and sort",
        )
    if "read-only mode" in message or "disabled by configuration" in message or "been locked" in message:
        return QueryError(message, "queries only read this ledger; `sparsebench tables` writes files")
    if suggestion := _MEANT.search(text):
        # Names that begin with an underscore are our own steps between views.
        public = [name for name in suggestion[1].strip().rstrip("?").split(", ") if name[:2] != '"_']
        if public:
            return QueryError(message, f"did you mean {' or '.join(public[:3])}?")
    return QueryError(message, "`sparsebench sql` without a query lists the views and their columns")


def _csv(table: Table | Stream) -> Iterator[str]:
    for row in chain([table.columns], table.rows):
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerow([_text(value) for value in row])
        yield out.getvalue()


def _json(table: Table | Stream) -> Iterator[str]:
    for name, occurrences in Counter(table.columns).items():
        if occurrences > 1:
            hint = "give each its own (AS), or use --format csv"
            raise QueryError(f"{occurrences} columns of the name {name!r}, of which JSON keeps one", hint)
    separator = "["
    for row in table.rows:
        values = {name: _json_value(value) for name, value in zip(table.columns, row, strict=True)}
        yield separator + "\n" + textwrap.indent(json.dumps(values, indent=1, ensure_ascii=False), " ")
        separator = ","
    yield "[]\n" if separator == "[" else "\n]\n"


def _markdown(table: Table | Stream) -> Iterator[str]:
    yield _line([escape.markdown(name) for name in table.columns])
    yield _line(["---"] * len(table.columns))
    for row in table.rows:
        yield _line(["<br>".join(map(escape.markdown, _text(value).split("\n"))) for value in row])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _json_value(value: Any) -> Any:
    """Convert a value for JSON: NaN and infinities become null; times and other types that JSON lacks become text."""
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(inner) for inner in value]
    return value if isinstance(value, str | int | bool | None) else str(value)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(_json_value(value), ensure_ascii=False) if isinstance(value, dict | list | tuple) else str(value)


def export(ledger: Path, file_format: str, out: Path) -> list[Path]:
    """Write every public view, and every base table as ``base_NAME``, in the folder ``out``. Return the paths written.

    ``file_format`` is parquet or csv.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with reader(ledger, writable_folder=out) as connection:
        watched = _Watched(connection, 0)
        for name, relation in _relations(connection):
            path = refuse_link(out / f"{name}.{file_format}")
            rows = connection.sql(f"FROM {relation}")
            watched.call(rows.to_parquet if file_format == "parquet" else rows.to_csv, str(path))
            written.append(path)
    return written


def _relations(connection: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """Return (name, relation) of what is exported: our views and base tables, nothing else that the file may hold."""
    views = [name for name, text in sqlfiles.definitions().items() if text.startswith("VIEW") and name[0] != "_"]
    schema.create_temp_views(connection, " ".join(views), set())
    created = re.findall(r"CREATE TABLE base\.(\w+)", "".join(map(sqlfiles.read, sqlfiles.folder("schema"))))
    tables = [(f"base_{name}", f"base.{name}") for name in created if name != "version"]
    return sorted([*zip(views, views, strict=True), *tables])
