"""A forest: points with intervals in named rows."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Rows

LEVEL_DASHES: Any = (0, (1, 1.5))
"""Dashes of a level across named rows."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel; the points of a named row stand below each other, in the order of the legend."""
    row_names = _name_rows(axes, rows, canvas)
    orders = canvas.series_by_row(rows)
    for edge in range(len(row_names) - 1):
        axes.axhline(edge + 0.5, color=style.PALE_GREY, linewidth=0.8, zorder=0)
    for row in rows:
        series = canvas.series(row)
        series_style = canvas.styles[series]
        order = orders[canvas.row_name(row)]
        step = 1 / (len(order) + 1)  # a named row is 1 high
        height = row_names.index(canvas.row_name(row)) + (order.index(series) - (len(order) - 1) / 2) * step
        low, high = canvas.value(row, "xlow"), canvas.value(row, "xhigh")
        if low is not None and high is not None:
            axes.hlines([height], [low], [high], color=series_style.colour, linewidth=1.0, alpha=0.75, zorder=2)
        axes.plot(
            [canvas.value(row, "x")], [height], color=series_style.colour, marker=series_style.marker, markersize=3.6,
            linestyle="none", markeredgecolor="white", markeredgewidth=0.3, zorder=3,
        )  # fmt: skip
    axes.margins(x=0.06)


def _name_rows(axes: Axes, rows: Rows, canvas: Canvas) -> list[str]:
    """Label a panel's rows, the first on top, draw vertical grid lines and levels, and return the names in order."""
    row_names = list(dict.fromkeys(canvas.row_name(row) for row in rows))
    axes.set_yticks(range(len(row_names)), row_names)
    axes.set_ylim(canvas.most_rows - 0.4, -0.6)  # rows are as high as those of the panels beside
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    for column in canvas.spec.references:
        for value in {row[column] for row in rows if row[column] is not None}:
            axes.axvline(value, color="black", linewidth=0.8, linestyle=LEVEL_DASHES, zorder=1)
    return row_names


def finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare a legend of series and levels. The rows carry their names."""
    levels = [(label, "black", LEVEL_DASHES) for label in canvas.spec.references.values()]
    canvas.legend(line=True, levels=levels, joined=False)
