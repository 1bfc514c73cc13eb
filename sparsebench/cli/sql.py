"""``sparsebench sql``: one read-only query over a ledger."""

from __future__ import annotations

import sys
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer

from sparsebench import bounded
from sparsebench.cli.options import LEDGER_ALONE, YEAR, reads_file
from sparsebench.cli.output import emit_table, emit_text, note
from sparsebench.errors import UserError
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.query import render, run, streaming
from sparsebench.paths import ledger_path

SHORTER = "give a shorter query"
MOST_ROWS = 1000
"""At most this many rows are shown in a table on a terminal."""


def sql(
    query: Annotated[
        str | None, typer.Argument(help="One SELECT; without it, the views and their columns are listed.")
    ] = None,
    file: Annotated[Path | None, reads_file("Read the query from a file; - is stdin.", "--file", "-f")] = None,
    report: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Run the query behind a table of the report, or behind a picture: figures/NAME."
        ),
    ] = None,
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="With --report: only this experiment; repeatable.")
    ] = None,
    shape: Annotated[
        Literal["table", "csv", "json", "markdown"] | None,
        typer.Option("--format", help="How rows are printed; default: table."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    timeout: Annotated[float, typer.Option(min=0, max=YEAR, help="Seconds that a query may take; 0: no limit.")] = 300,
    ledger: LEDGER_ALONE = None,
) -> None:
    """Query the ledger with SQL. Without a query, list its views and columns.

    \b
    sparsebench sql
    sparsebench sql "select model, method, sparsity, task, score from results"
    sparsebench sql -f my.sql --format csv > my.csv
    sparsebench sql --report findings_scores
    sparsebench sql --timeout 10 "select count(*) from samples a, samples b"
    """
    if sum(option is not None for option in (query, file, report)) > 1:
        raise UserError("of a query, --file and --report more than one was given", "give one of them")
    if manifest and not report:
        raise UserError("--manifest limits a query of the report", "name it with --report")
    if as_json and shape not in (None, "json"):
        raise UserError(f"--json and --format {shape}: two formats", "give one of them")
    printed = "json" if as_json else shape or "table"
    path = ledger_path(ledger)
    if file:
        query = _read_query(file)
    elif report:
        from sparsebench.report.lookup import check_manifests, query_named  # they read the figures' files

        query = query_named(report, manifest or ())
        if manifest:
            check_manifests(path, partial(run, path), manifest)
    statement = sqlfiles.read("describe") if query is None else query
    with streaming(path, statement, timeout=timeout) as answer:
        if printed == "table":
            # A table on a terminal is as wide as its widest row, so all rows must be there before it is drawn.
            emit_table(answer.columns, islice(answer.rows, MOST_ROWS) if sys.stdout.isatty() else answer.rows)
            if sys.stdout.isatty() and next(answer.rows, None):
                note(f"only the first {MOST_ROWS:,} rows are shown; --format csv prints all")
        else:
            for text in render(answer, printed):
                emit_text(text)
        sys.stdout.flush()


def _read_query(file: Path) -> str:
    """Return the query in a file, or on stdin for ``-``.

    Raises UserError for what is longer than a query may be, or not UTF-8.
    """
    if str(file) != "-":
        return bounded.read_text(file, UserError, bounded.QUERY_CHARACTERS, SHORTER)
    try:
        text = sys.stdin.read(bounded.QUERY_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"--file -: not UTF-8 text ({error.reason})", "save the query as UTF-8") from error
    if len(text) > bounded.QUERY_CHARACTERS:
        raise UserError(f"--file -: more than {bounded.QUERY_CHARACTERS:,} characters", SHORTER)
    return text
