"""``sparsebench figures``: every ``.sql`` figure rendered."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, LEDGER, LEDGER_VERBS


class Picture(StrEnum):
    """File formats of figures."""

    png = "png"
    svg = "svg"
    pdf = "pdf"


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=LEDGER_VERBS)(figures)


def figures(
    names: Annotated[
        list[str] | None, typer.Argument(help="Figures to render; default: all.", show_default=False)
    ] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List figures with what they show.")] = False,
    out: Annotated[Path, typer.Option(help="Where pictures go.")] = Path("figures"),
    formats: Annotated[
        list[Picture] | None, typer.Option("--format", help="Repeatable; default: png and svg.", show_default=False)
    ] = None,
    width: Annotated[
        float, typer.Option(min=2.5, max=20, help="Inches: 3.3 is a column of a paper, 6.5 its page.")
    ] = 6.5,
    ledger: LEDGER = None,
    as_json: JSON = False,
) -> None:
    """Render figures from the ledger.

    A .sql file of yours in ./figures is rendered too, or replaces a shipped one of that name.

    \b
    sparsebench figures
    sparsebench figures score --format pdf --width 3.3 --out paper/
    """
    from sparsebench import figures as room
    from sparsebench.cli.output import emit_json, emit_table, note
    from sparsebench.plan.preflight import ledger_path

    if list_them:
        columns = ["name", "title", "about", "file"]
        rows = [[spec.name, spec.title, spec.get("about"), str(spec.path)] for spec in room.listing()]
        if as_json:
            emit_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            emit_table(columns[:3], [row[:3] for row in rows])
        return
    chosen = tuple(picture.value for picture in formats or (Picture.png, Picture.svg))
    for result in room.render(ledger_path(ledger), names or [], out, chosen, width=width):
        if result.skipped:
            note(f"{result.name}: left out: {result.skipped}")
        for path in result.paths:
            typer.echo(path)
