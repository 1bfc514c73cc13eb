"""Points with their intervals along the horizontal axis, some in each row: one number under many settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.figures import scales, style
from sparsebench.figures.canvas import Canvas, Panels, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def panel(axes: Axes, given: Rows, canvas: Canvas) -> None:
    """Draw one panel; a row's points stand below each other in the order of the legend."""
    spec = canvas.spec
    down = scales.name_rows(axes, given, canvas)
    order = [name for name in canvas.looks if any(canvas.series(row) == name for row in given)]
    step = 1 / (len(order) + 1)  # a row's place is 1 high
    for above in range(len(down) - 1):
        axes.axhline(above + 0.5, color=style.GROUND, linewidth=0.8, zorder=0)
    for row in given:
        series = canvas.series(row)
        look = canvas.looks[series]
        place = down.index(str(row[spec.get("y")])) + (order.index(series) - (len(order) - 1) / 2) * step
        low, high = (row[spec.get(end)] if end in spec.values else None for end in ("xlow", "xhigh"))
        if low is not None and high is not None:
            axes.hlines([place], [low], [high], color=look.colour, linewidth=1.0, alpha=0.75, zorder=2)
        axes.plot(
            [row[spec.get("x")]], [place], color=look.colour, marker=look.marker, markersize=3.6, linestyle="none",
            markeredgecolor="white", markeredgewidth=0.3, zorder=3,
        )  # fmt: skip
    axes.margins(x=0.06)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Rows carry their names; series and levels have a legend."""
    canvas.legend(line=True, levels=scales.row_levels(canvas), joined=False)
