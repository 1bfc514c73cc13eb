"""``sparsebench sql``: read-only SQL over the ledger."""

from __future__ import annotations

import sys
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import LEDGER, LEDGER_VERBS

SHOWN = 1000
"""Rows of a table on a terminal."""


class Shape(StrEnum):
    """How rows are printed."""

    table = "table"
    csv = "csv"
    json = "json"
    markdown = "markdown"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=LEDGER_VERBS)(sql)


def sql(
    query: Annotated[
        str | None,
        typer.Argument(help="One SELECT; without it, the views and their columns are listed.", show_default=False),
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the query from a file; - is stdin.")] = None,
    shape: Annotated[Shape, typer.Option("--format", help="How rows are printed.")] = Shape.table,
    as_json: Annotated[bool, typer.Option("--json", help="Short for --format json.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that a query may take; 0: no limit.")] = 300,
    ledger: LEDGER = None,
) -> None:
    """Ask the ledger. Without a query: what can be asked.

    \b
    sparsebench sql
    sparsebench sql "select model, method, sparsity, task, score from results"
    sparsebench sql -f my.sql --format csv > my.csv
    sparsebench sql --timeout 10 "select count(*) from samples a, samples b"
    """
    from sparsebench.cli.output import emit_table, emit_text, note
    from sparsebench.errors import UserError
    from sparsebench.ledger import query as ask
    from sparsebench.ledger import sqlfiles
    from sparsebench.plan.preflight import ledger_path

    if query and file:
        raise UserError("a query and --file were both given", "give one of them")
    path = ledger_path(ledger)
    if file:
        query = sys.stdin.read() if str(file) == "-" else _read(file)
    with ask.streaming(path, query or sqlfiles.read("describe"), timeout=timeout) as found:
        if shape is Shape.table and not as_json:
            # A terminal's table is as wide as its widest row, so it is made of rows that are all there.
            emit_table(found.columns, islice(found.rows, SHOWN) if sys.stdout.isatty() else found.rows)
            if sys.stdout.isatty() and next(found.rows, None):
                note(f"only the first {SHOWN:,} rows: --format csv has all")
        else:
            for text in ask.render(found, "json" if as_json else shape.value):
                emit_text(text)
        sys.stdout.flush()


def _read(file: Path) -> str:
    from sparsebench.errors import UserError

    try:
        return file.read_text()
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", "name a readable file") from error
