"""Curves of many points: lines without markers, intervals as bands; named as lines are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.figures import line, style
from sparsebench.figures.canvas import Canvas, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    axes.margins(x=0.02, y=0.05)
    for place, (name, look) in enumerate(canvas.looks.items()):
        mine = [row for row in rows if canvas.series(row) == name and row[y] is not None]
        mine.sort(key=lambda row: row[x])
        xs = [canvas.across(row[x]) for row in mine]
        grey = look.colour == style.BOUND
        axes.plot(
            xs, [row[y] for row in mine], color=look.colour, linestyle=look.dashes, linewidth=1.2,
            zorder=(2.5 if grey else 3) + place / 100,
        )  # fmt: skip
        if "low" in canvas.spec.values and "high" in canvas.spec.values:
            low, high = ([row[canvas.spec.get(end)] for row in mine] for end in ("low", "high"))
            axes.fill_between(xs, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
    line.levels(axes, rows, canvas)


finish = line.finish
