"""``sparsebench report``: the ledger written up."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import LEDGER, LEDGER_VERBS


class Format(StrEnum):
    """What the report is written as."""

    md = "md"
    html = "html"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=LEDGER_VERBS)(report)


def report(
    out: Annotated[Path, typer.Option("--out", help="The Markdown file to write; the page lies beside it.")] = Path(
        "report.md"
    ),
    figures: Annotated[
        Path, typer.Option("--figures", help="Where `sparsebench figures` left its pictures; linked relatively.")
    ] = Path("figures"),
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--manifest", metavar="NAME", help="Only this experiment; repeatable. Default: all.", show_default=False
        ),
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            help="Markdown, or one page with everything in it. Repeatable; default: both.",
            show_default=False,
        ),
    ] = None,
    ledger: LEDGER = None,
) -> None:
    """Write what the ledger shows, with figures and the SQL behind every table, as report.md and as report.html.

    \b
    sparsebench report
    sparsebench report --manifest quickstart --out out/report.md
    """
    from sparsebench.plan.preflight import ledger_path
    from sparsebench.report import build

    chosen = [str(kind) for kind in formats or Format]
    for path in build(ledger_path(ledger), out, figures, manifest or (), chosen):
        typer.echo(path)
