"""Drawings with named rows: a strip has samples as ticks, quartiles and median; a forest has points with intervals."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from sparsebench.figures import scales, style
from sparsebench.figures.canvas import Canvas, Panels, Rows

TICK, BOX = 0.3, 0.17
"""Half the height of a tick and of a box; a named row is 1 high."""


def strip_panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel. Named rows keep the query's order, the first on top; samples with the same y share one."""
    for height, name in enumerate(scales.name_rows(axes, rows, canvas)):
        samples = [row for row in rows if canvas.row_name(row) == name]
        colour = canvas.looks[canvas.series(samples[0])].colour
        values = np.sort(np.array([canvas.value(row, "x") for row in samples], dtype=float))
        # One path for all ticks of a row, broken by NaN: a figure of thousands of samples stays a small file.
        xs = np.repeat(values, 3)
        ys = np.tile([height - TICK, height + TICK, np.nan], len(values))
        axes.plot(xs, ys, color=colour, linewidth=0.5, alpha=0.75, zorder=2)
        first, middle, third = np.quantile(values, [0.25, 0.5, 0.75])
        axes.fill_between([first, third], height - BOX, height + BOX, color=colour, alpha=0.35, linewidth=0, zorder=3)
        axes.plot([middle] * 2, [height - 1.3 * BOX, height + 1.3 * BOX], color="black", linewidth=1.4, zorder=4)


def strip_finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare a legend of the levels. The rows carry their names, and series only colour them."""
    if canvas.spec.references:
        canvas.legend(line=None, levels=scales.row_levels(canvas))


def forest_panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel; the points of a named row stand below each other, in the order of the legend."""
    down = scales.name_rows(axes, rows, canvas)
    order = [name for name in canvas.looks if any(canvas.series(row) == name for row in rows)]
    step = 1 / (len(order) + 1)  # a named row is 1 high
    for above in range(len(down) - 1):
        axes.axhline(above + 0.5, color=style.GROUND, linewidth=0.8, zorder=0)
    for row in rows:
        series = canvas.series(row)
        look = canvas.looks[series]
        height = down.index(canvas.row_name(row)) + (order.index(series) - (len(order) - 1) / 2) * step
        low, high = canvas.value(row, "xlow"), canvas.value(row, "xhigh")
        if low is not None and high is not None:
            axes.hlines([height], [low], [high], color=look.colour, linewidth=1.0, alpha=0.75, zorder=2)
        axes.plot(
            [canvas.value(row, "x")], [height], color=look.colour, marker=look.marker, markersize=3.6, linestyle="none",
            markeredgecolor="white", markeredgewidth=0.3, zorder=3,
        )  # fmt: skip
    axes.margins(x=0.06)


def forest_finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare a legend of series and levels. The rows carry their names."""
    canvas.legend(line=True, levels=scales.row_levels(canvas), joined=False)
