"""Draw pictures from a figure's file and a ledger."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench import bounded
from sparsebench.errors import QueryError, SparsebenchError, UserError, foreign
from sparsebench.escape import visible
from sparsebench.figures import bars, heatmap, line, rows, scales, scatter, style
from sparsebench.figures.canvas import Canvas, Rows, styled
from sparsebench.figures.spec import SHIPPED, FigureSpec, parse
from sparsebench.figures.values import ROWS, fitting
from sparsebench.ledger import query
from sparsebench.manifest.problems import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOCAL = Path("figures")
DRAWN = {
    "line": (line.panel, line.finish),
    "curve": (line.curve_panel, line.finish),
    "bars": (bars.panel, bars.finish),
    "scatter": (scatter.panel, scatter.finish),
    "strip": (rows.strip_panel, rows.strip_finish),
    "forest": (rows.forest_panel, rows.forest_finish),
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


def listing(local: Path = LOCAL, names: Container[str] | None = None) -> list[FigureSpec]:
    """Return the figures, or those in ``names``, sorted by name: the shipped ones, and those in ``local``, which
    override them.

    Raises UserError naming the file and line of a header that is wrong.
    """
    return [parse(path) for name, path in _files(local).items() if names is None or name in names]


def _files(local: Path) -> dict[str, Path]:
    files = {path.stem: path for folder in (SHIPPED, local) for path in sorted(folder.glob("*.sql"))}
    for path in files.values():
        bounded.refuse_special(path, UserError)
        if not path.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{path}: a link to a file outside of {path.parent}", "copy the file into the folder")
    return dict(sorted(files.items()))


def render(
    ledger: Path,
    names: Sequence[str],
    out: Path,
    formats: Sequence[str] = ("png", "svg"),
    local: Path = LOCAL,
    width: float = style.WIDTH,
) -> Iterator[Rendered]:
    """Draw the figures ``names`` (none: all) into ``out`` as ``NAME.FORMAT``, ``width`` inches wide; yield each result.

    The same ledger gives the same bytes. A figure without rows is left out, with the reason.

    Raises UserError for an unknown name. When all others are drawn, raises UserError for a header that is wrong, for a
    column that the query does not give and for several failures, QueryError, naming the file, for SQL that fails.
    """
    known = _files(local)
    for name in names:
        if name not in known:
            hint = f"{did_you_mean(name, known)} known: {', '.join(known)}".strip()
            raise UserError(f"no figure called {name!r}", hint)
    failed: list[SparsebenchError] = []
    for name in names or known:
        try:
            yield _render(parse(known[name]), ledger, out, formats, width)
        except (UserError, QueryError) as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        said = "; ".join(error.message.splitlines()[0] for error in failed)
        raise UserError(f"{len(failed)} figures cannot be drawn: {said}", "draw one of them alone to see what to do")


def draw(spec: FigureSpec, table: query.Table, paths: Sequence[Path], width: float = style.WIDTH) -> Figure:
    """Draw the rows of ``table``, at least one, ``width`` inches wide, and write the picture to each of ``paths``."""
    panel, finish = DRAWN[spec.kind]
    with styled():
        # Fonts have no control characters, and those of a ledger must not reach a vector drawing.
        shown: Rows = [
            {name: visible(value) if isinstance(value, str) else value for name, value in row.items()}
            for row in table.dicts()
        ]
        canvas = Canvas(spec, shown, width)
        panels = []
        for axes, facet in canvas.panels():
            panel(axes, facet, canvas)
            panels.append((axes, facet))
        for axes, facet in panels:  # once all are drawn: a shared axis has to hold what is in each
            scales.dress(axes, facet, canvas)
        finish(panels, canvas)
        canvas.close()
        for path in paths:
            style.save(canvas.figure, path)
    return canvas.figure


def _render(spec: FigureSpec, ledger: Path, out: Path, formats: Sequence[str], width: float) -> Rendered:
    try:
        with query.streaming(ledger, spec.sql) as found:
            table = query.Table(found.columns, tuple(islice(found.rows, ROWS + 1)))
    except QueryError as error:
        raise QueryError(f"{spec.path}: {error.message}", error.hint) from error
    spec.check_columns(table.columns)
    drawn = fitting(spec, table)
    if not drawn.rows:
        return Rendered(spec.name, spec.title, skipped="its query finds no rows in this ledger")
    spec = spec.found(drawn.dicts()[0])
    paths = tuple(out / f"{spec.name}.{name}" for name in formats)
    with foreign(f"{spec.path}: its rows cannot be drawn", "see what they are: sparsebench sql -f FILE", UserError):
        draw(spec, drawn, paths, width)
    return Rendered(spec.name, spec.title, paths)
