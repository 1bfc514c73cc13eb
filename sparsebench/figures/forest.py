"""A forest: points with intervals in named rows."""

from __future__ import annotations

from matplotlib.axes import Axes

from sparsebench.figures import scales, style
from sparsebench.figures.canvas import Canvas, Panels, Rows


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel; the points of a named row stand below each other, in the order of the legend."""
    down = scales.name_rows(axes, rows, canvas)
    orders = canvas.series_by_row(rows)
    for above in range(len(down) - 1):
        axes.axhline(above + 0.5, color=style.GROUND, linewidth=0.8, zorder=0)
    for row in rows:
        series = canvas.series(row)
        look = canvas.looks[series]
        order = orders[canvas.row_name(row)]
        step = 1 / (len(order) + 1)  # a named row is 1 high
        height = down.index(canvas.row_name(row)) + (order.index(series) - (len(order) - 1) / 2) * step
        low, high = canvas.value(row, "xlow"), canvas.value(row, "xhigh")
        if low is not None and high is not None:
            axes.hlines([height], [low], [high], color=look.colour, linewidth=1.0, alpha=0.75, zorder=2)
        axes.plot(
            [canvas.value(row, "x")], [height], color=look.colour, marker=look.marker, markersize=3.6, linestyle="none",
            markeredgecolor="white", markeredgewidth=0.3, zorder=3,
        )  # fmt: skip
    axes.margins(x=0.06)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare a legend of series and levels. The rows carry their names."""
    levels = [(label, "black", scales.LEVEL_DASHES) for label in canvas.spec.references.values()]
    canvas.legend(line=True, levels=levels, joined=False)
