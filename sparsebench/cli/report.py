"""``sparsebench figures`` and ``report``: pictures and pages made from a ledger."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import JSON, LEDGER_ALONE, reads_folder, writes_file, writes_folder
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.errors import UserError
from sparsebench.figures.spec import listing
from sparsebench.paths import ledger_path
from sparsebench.report import build, build_brief

Picture = StrEnum("Picture", ["png", "svg", "pdf"])
Page = StrEnum("Page", ["md", "html"])
PICTURES_HELP = "The folder of pictures from `sparsebench figures`; links are relative."
RESULTS_HELP = "The file of tables and commands, to which the report links. Default: NAME-results.md beside it."
PAGES_HELP = "md, or html: one page with everything in it. Repeatable. Default: both; with --brief only md."


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Figures to render; default: all.")] = None,
    list_them: Annotated[bool, typer.Option("--list", help="List the figures and what each shows.")] = False,
    out: Annotated[Path, writes_folder("The folder for the pictures.")] = Path("figures"),
    formats: Annotated[list[Picture] | None, typer.Option("--format", help="Repeatable; default: png and svg.")] = None,
    width: Annotated[
        float, typer.Option(min=2.5, max=20, help="Width in inches: 3.3 fits a paper's column, 6.5 its page.")
    ] = 6.5,
    height: Annotated[float | None, typer.Option(min=1, max=30, help="Height in inches. Default: as needed.")] = None,
    font: Annotated[str | None, typer.Option(help="Family of an installed font. Default: DejaVu Sans.")] = None,
    no_title: Annotated[bool, typer.Option("--no-title", help="Leave out the sentence above.")] = False,
    no_note: Annotated[bool, typer.Option("--no-note", help="Leave out the small print below.")] = False,
    ledger: LEDGER_ALONE = None,
    as_json: JSON = False,
) -> None:
    """Render figures from the ledger.

    Your .sql files in ./figures are rendered too; one with the name of a shipped figure replaces it.

    \b
    sparsebench figures
    sparsebench figures kinds --format pdf --width 3.3 --no-title --out paper/
    """
    if list_them:
        columns = ["name", "title", "about", "file"]
        rows = [[spec.name, spec.title, spec.get("about"), str(spec.path)] for spec in listing()]
        if as_json:
            emit_json([dict(zip(columns, row, strict=True)) for row in rows])
        else:
            emit_table(columns[:3], [row[:3] for row in rows])
        return
    if as_json:
        raise UserError(
            "--json: pictures are no JSON; it prints the list of figures", "add --list, or leave out --json"
        )
    from sparsebench.figures.draw import render  # matplotlib is heavy
    from sparsebench.figures.style import FigureLayout

    chosen_formats = tuple(map(str, formats or ("png", "svg")))
    left_out: dict[str, list[str]] = {}
    layout = FigureLayout(height, font, not no_title, not no_note)
    for result in render(ledger_path(ledger), names or [], out, chosen_formats, width=width, layout=layout):
        if result.skipped:
            left_out.setdefault(result.skipped, []).append(result.name)
        for path in result.paths:
            typer.echo(path)
    for reason, figures_without in left_out.items():
        note(f"left out ({reason}): {', '.join(figures_without)}")


def report(
    out: Annotated[Path, writes_file("The Markdown file; the HTML page is written beside it.")] = Path("report.md"),
    results: Annotated[Path | None, writes_file(RESULTS_HELP)] = None,
    brief: Annotated[bool, typer.Option("--brief", help="Write only the first page, and no other file.")] = False,
    figures: Annotated[Path, reads_folder(PICTURES_HELP, show_default=True)] = Path("figures"),
    manifest: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this experiment; repeatable. Default: all.")
    ] = None,
    formats: Annotated[list[Page] | None, typer.Option("--format", help=PAGES_HELP)] = None,
    ledger: LEDGER_ALONE = None,
) -> None:
    """Write a report of the ledger, tables with the command that prints all rows of each, and one HTML page of both.

    \b
    sparsebench report
    sparsebench report --brief --out summary.md
    sparsebench report --manifest quickstart --out out/report.md
    """
    if brief:
        if Page.html in (formats or ()):
            raise UserError("a brief report is Markdown alone", "leave out --format, or --brief")
        if results:
            raise UserError(f"--results {results}: a brief report is one file", "leave out --results, or --brief")
        paths = build_brief(ledger_path(ledger), out, figures, manifest or ())
    else:
        paths = build(ledger_path(ledger), out, figures, manifest or (), list(map(str, formats or Page)), results)
    for path in paths:
        typer.echo(path)
