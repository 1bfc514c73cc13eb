"""Every sample of each row as a tick, with the row's quartiles and median: a distribution as it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.figures import scales
from sparsebench.figures.canvas import Canvas, Panels, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


TICK, BOX = 0.3, 0.17
"""Half the height of a tick and of a box; a row's place is 1 high."""


def panel(axes: Axes, given: Rows, canvas: Canvas) -> None:
    """Draw one panel; rows keep the query's order, the first on top, and share a line with the same y."""
    import numpy as np

    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    for place, name in enumerate(scales.name_rows(axes, given, canvas)):
        mine = [row for row in given if str(row[y]) == name]
        colour = canvas.looks[canvas.series(mine[0])].colour
        values = np.sort(np.array([row[x] for row in mine], dtype=float))
        # One path of a row's ticks, broken by NaN: a figure of thousands of samples stays small.
        xs = np.repeat(values, 3)
        ys = np.tile([place - TICK, place + TICK, np.nan], len(values))
        axes.plot(xs, ys, color=colour, linewidth=0.5, alpha=0.75, zorder=2)
        first, middle, third = np.quantile(values, [0.25, 0.5, 0.75])
        axes.fill_between([first, third], place - BOX, place + BOX, color=colour, alpha=0.35, linewidth=0, zorder=3)
        axes.plot([middle] * 2, [place - 1.3 * BOX, place + 1.3 * BOX], color="black", linewidth=1.4, zorder=4)


def finish(panels: Panels, canvas: Canvas) -> None:
    """The rows carry their names; series only colour them. Levels have a legend."""
    if canvas.spec.references:
        canvas.legend(line=None, levels=scales.row_levels(canvas))
