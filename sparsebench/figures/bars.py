"""Groups of bars: one group per value of x, one bar per series; references, such as bounds, cross their group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes


GROUP = 0.82
"""The share of a group's width that its bars fill."""
LEVELS = (("#000000", "-"), ("#000000", (0, (1.2, 0.8))), (style.GREY, "-"))
"""Colour and dashes of the first, second and third reference."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    spec = canvas.spec
    places = {value: place for place, value in enumerate(canvas.categories_of(rows))}
    found = {canvas.series(row) for row in rows}
    order = {name: index for index, name in enumerate(name for name in canvas.looks if name in found)}
    width = GROUP / len(order)

    def left(row: Mapping[str, Any]) -> float:
        return places[row[spec.get("x")]] - GROUP / 2 + order[canvas.series(row)] * width

    for name in order:
        look = canvas.looks[name]
        mine = [row for row in rows if canvas.series(row) == name and row[spec.get("y")] is not None]
        lefts = [left(row) for row in mine]
        heights = [row[spec.get("y")] for row in mine]
        axes.bar(
            lefts, heights, width * 0.94, align="edge", color=look.colour, edgecolor="white", hatch=look.hatch,
            linewidth=0.3, zorder=2,
        )  # fmt: skip
        if "base" in spec.values:
            bases = [row[spec.get("base")] or 0 for row in mine]
            axes.bar(lefts, bases, width * 0.94, align="edge", color="white", alpha=0.62, linewidth=0, zorder=3)
        if "low" in spec.values and "high" in spec.values:
            lows = [row[spec.get("low")] for row in mine]
            highs = [row[spec.get("high")] for row in mine]
            axes.vlines([begin + width * 0.47 for begin in lefts], lows, highs, color="black", linewidth=0.8, zorder=4)
    for (colour, dashes), column in zip(LEVELS, spec.references, strict=False):
        # One level across a group whose bars share it, else one across each bar.
        by_group: dict[float, list[float]] = {}
        marked = [row for row in rows if row[column] is not None]
        for row in marked:
            by_group.setdefault(places[row[spec.get("x")]], []).append(row[column])
        for row in marked:
            place = places[row[spec.get("x")]]
            shared = len(set(by_group[place])) == 1 < len(by_group[place])
            begin, length = (place - GROUP / 2, GROUP) if shared else (left(row), width * 0.94)
            axes.hlines(row[column], begin, begin + length, color=colour, linestyle=dashes, linewidth=1.2, zorder=5)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare one legend for all panels."""
    levels = zip(LEVELS, canvas.spec.references.values(), strict=False)
    canvas.legend(line=False, levels=[(label, colour, dashes) for (colour, dashes), label in levels])
