"""How commands print: data to stdout, all else to stderr; tables that fit a terminal, or plain lines in a pipe.

Text from a ledger cannot control the terminal: control characters are shown, not sent.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sparsebench.escape import visible

MOST_NOTED = 20
"""At most this many lines of one kind are printed for the reader."""


def stderr() -> Console:
    """Return the console for progress, notes and problems."""
    return Console(stderr=True, highlight=False, soft_wrap=False)


def note(text: str, style: str = "") -> None:
    """Print a line for the reader that is not data."""
    stderr().print(visible(text), style=style or None, markup=False, soft_wrap=True)


def end_with(failures: Sequence[str]) -> None:
    """Print what failed; if anything did, end the command with exit code 1."""
    for failure in failures:
        note(failure, "red")
    if failures:
        raise typer.Exit(1)


def notes(prefix: str, lines: Sequence[str]) -> None:
    """Print a line of ``prefix`` for each of the first ``MOST_NOTED`` lines, and how many more there are."""
    for line in lines[:MOST_NOTED]:
        note(f"{prefix}: {line}")
    if len(lines) > MOST_NOTED:
        note(f"{prefix}: {len(lines) - MOST_NOTED} more")


def emit_text(text: str) -> None:
    """Print data in a format of its own: unchanged into a pipe, with control characters made visible on a terminal."""
    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)


def emit_json(value: Any) -> None:
    """Print a value as JSON, for scripts."""
    json.dump(value, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print rows for people: a rich table on a terminal, tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        print("\t".join(map(visible, columns)))
        for row in rows:
            print("\t".join("" if value is None else visible(str(value)).replace("\n", "; ") for value in row))
        return
    listed = list(rows)
    table = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        values = [row[index] for row in listed]
        numeric = values and all(isinstance(value, int | float | None) or str(value).endswith("%") for value in values)
        table.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        table.add_row(*(Text("" if value is None else format_value(value)) for value in row))
    Console(highlight=False).print(table)


def format_value(value: Any) -> str:
    """Format a value for a table: floats to four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def format_score(value: float | None, sign: str = "") -> str:
    """Format a score or a difference: ``0.681``, ``+0.013``, ``26.15``, ``8,210``, ``2.4e+05``; empty for None."""
    if value is None:
        return ""
    formats = {10: "z.3f", 100: ",.2f", 1e5: ",.0f"}
    digits = next((digits for limit, digits in formats.items() if abs(value) < limit), ".1e")
    return f"{value:{sign}{digits}}"
