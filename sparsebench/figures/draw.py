"""Draw pictures from a figure's file and a ledger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sparsebench.errors import QueryError, SparsebenchError, UserError, library_errors
from sparsebench.escape import visible
from sparsebench.figures import bars, forest, heatmap, line, scales, scatter, style
from sparsebench.figures.canvas import Canvas
from sparsebench.figures.spec import LOCAL, FigureSpec, files, parse
from sparsebench.figures.values import MOST_ROWS, drawable
from sparsebench.ledger import query
from sparsebench.manifest.problems import did_you_mean

DRAWERS = {
    "line": (line.panel, line.finish),
    "curve": (line.curve_panel, line.finish),
    "bars": (bars.panel, bars.finish),
    "scatter": (scatter.panel, scatter.finish),
    "forest": (forest.panel, forest.finish),
    "heatmap": (heatmap.panel, heatmap.finish),
}
"""By kind, the function that draws a panel and the one that then finishes the sheet."""


@dataclass(frozen=True)
class Rendered:
    """The result of drawing one figure: the files written, or why there are none."""

    name: str
    title: str
    paths: tuple[Path, ...] = ()
    skipped: str = ""


def render(
    ledger: Path,
    names: Sequence[str],
    out: Path,
    formats: Sequence[str] = ("png", "svg"),
    local: Path = LOCAL,
    width: float = style.WIDTH,
    layout: style.FigureLayout = style.PLAIN,
) -> Iterator[Rendered]:
    """Draw the figures ``names`` (none: all) into ``out`` as ``NAME.FORMAT``, ``width`` inches wide; yield each result.

    The same ledger gives the same bytes. A figure without rows is left out, with the reason.

    Raises UserError for an unknown name. When all others are drawn, raises UserError for a header that is wrong, for a
    column that the query does not give and for several failures, QueryError, naming the file, for SQL that fails.
    """
    paths = files(local)
    for name in names:
        if name not in paths:
            hint = f"{did_you_mean(name, paths)} known: {', '.join(paths)}".strip()
            raise UserError(f"no figure called {name!r}", hint)
    if layout.font:
        _check_font(layout.font)
    failed: list[SparsebenchError] = []
    for name in names or paths:
        try:
            yield render_file(paths[name], ledger, out, formats, width, layout)
        except (UserError, QueryError) as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        reasons = "; ".join(error.message.splitlines()[0] for error in failed)
        raise UserError(f"{len(failed)} figures cannot be drawn: {reasons}", "draw one of them alone to see what to do")


def render_file(
    path: Path, ledger: Path, out: Path, formats: Sequence[str], width: float, layout: style.FigureLayout
) -> Rendered:
    """Draw the figure in one file, as ``render`` does."""
    spec = parse(path)
    try:
        with query.streaming(ledger, spec.sql) as stream:
            table = query.Table(stream.columns, tuple(islice(stream.rows, MOST_ROWS + 1)))
    except QueryError as error:
        raise QueryError(f"{path}: {error.message}", error.hint) from error
    spec.check_columns(table.columns)
    table = drawable(spec, table)
    if not table.rows:
        return Rendered(spec.name, spec.title, skipped="no rows in this ledger")
    spec = spec.with_finding(table.dicts()[0])
    paths = tuple(out / f"{spec.name}.{name}" for name in formats)
    with library_errors(f"{path}: its rows cannot be drawn", "see what they are: sparsebench sql -f FILE", UserError):
        draw(spec, table, paths, width, layout)
    return Rendered(spec.name, spec.title, paths)


def draw(
    spec: FigureSpec,
    table: query.Table,
    paths: Sequence[Path],
    width: float = style.WIDTH,
    layout: style.FigureLayout = style.PLAIN,
) -> Figure:
    """Draw the rows of ``table``, at least one, ``width`` inches wide, and write the picture to each of ``paths``."""
    draw_panel, finish = DRAWERS[spec.kind]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own matplotlibrc must not change a figure
        parameters: Any = matplotlib.rcParams
        parameters.update(style.RC)
        if layout.font:
            parameters["font.family"] = layout.font
        # Fonts have no control characters, and those of a ledger must not reach a vector drawing.
        visible_rows = [
            {name: visible(value) if isinstance(value, str) else value for name, value in row.items()}
            for row in table.dicts()
        ]
        canvas = Canvas(spec, visible_rows, width, layout)
        panels = []
        for axes, facet in canvas.panels():
            draw_panel(axes, facet, canvas)
            panels.append((axes, facet))
        for axes, facet in panels:  # once all are drawn: a shared axis has to hold what is in each
            scales.finish_axes(axes, facet, canvas)
        finish(panels, canvas)
        canvas.close()
        for path in paths:
            style.save(canvas.figure, path)
    return canvas.figure


def _check_font(font: str) -> None:
    """Raise UserError for the family of a font that is not installed, which would be replaced silently."""
    from matplotlib.font_manager import findfont, get_font_names

    try:
        findfont(font, fallback_to_default=False)
    except ValueError:
        raise UserError(f"--font {font}: not installed", did_you_mean(font, get_font_names())) from None
