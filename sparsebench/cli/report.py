"""``sparsebench report``: the ledger written up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import LEDGER


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(report)


def report(
    out: Annotated[Path, typer.Option("--out", help="The Markdown file to write.")] = Path("report.md"),
    figures: Annotated[
        Path, typer.Option("--figures", help="Where `sparsebench figures` left its pictures; linked relatively.")
    ] = Path("figures"),
    manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--manifest", metavar="NAME", help="Only this experiment; repeatable. Default: all.", show_default=False
        ),
    ] = None,
    ledger: LEDGER = None,
) -> None:
    """Write what the ledger shows, with figures and the SQL behind every table.

    \b
    sparsebench report
    sparsebench report --manifest quickstart --out out/report.md
    """
    from sparsebench.plan.preflight import ledger_path
    from sparsebench.report import build

    typer.echo(build(ledger_path(ledger), out, figures, manifest or ()))
