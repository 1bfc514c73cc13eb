"""Groups of bars: one group per value of x, one bar per series; references, such as bounds, cross their group."""

from __future__ import annotations

from matplotlib.axes import Axes

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Row, Rows

GROUP_WIDTH, BAR_SHARE = 0.82, 0.94
"""The width of a group's bars, where groups are 1 apart, and the share of a bar's width that is drawn."""
LEVEL_STYLES = (("#000000", "-"), ("#000000", (0, (1.2, 0.8))), (style.GREY, "-"))
"""Colour and dashes of the first, second and third reference."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    groups = {value: number for number, value in enumerate(canvas.categories_of(rows))}
    series_drawn = {canvas.series(row) for row in rows}
    order = [name for name in canvas.styles if name in series_drawn]
    width = GROUP_WIDTH / len(order)

    def group_number(row: Row) -> int:
        return groups[canvas.value(row, "x")]

    def left_edge(row: Row) -> float:
        return group_number(row) - GROUP_WIDTH / 2 + order.index(canvas.series(row)) * width

    for name in order:
        series_style = canvas.styles[name]
        bars = [row for row in rows if canvas.series(row) == name and canvas.value(row, "y") is not None]
        lefts = [left_edge(row) for row in bars]
        axes.bar(
            lefts, [canvas.value(row, "y") for row in bars], width * BAR_SHARE, align="edge", color=series_style.colour,
            edgecolor="white", hatch=series_style.hatch, linewidth=0.3, zorder=2,
        )  # fmt: skip
        if canvas.spec.get("base"):
            bases = [canvas.value(row, "base") or 0 for row in bars]
            axes.bar(lefts, bases, width * BAR_SHARE, align="edge", color="white", alpha=0.62, linewidth=0, zorder=3)
        if canvas.spec.has_interval:
            lows, highs = ([canvas.value(row, end) for row in bars] for end in ("low", "high"))
            middles = [begin + width * BAR_SHARE / 2 for begin in lefts]
            axes.vlines(middles, lows, highs, color="black", linewidth=0.8, zorder=4)
    for (colour, dashes), column in zip(LEVEL_STYLES, canvas.spec.references, strict=False):
        # One level across a group whose bars share it, else one across each bar.
        marked = [row for row in rows if row[column] is not None]
        levels: dict[int, list[float]] = {}
        for row in marked:
            levels.setdefault(group_number(row), []).append(row[column])
        for row in marked:
            is_shared = len(set(levels[group_number(row)])) == 1 < len(levels[group_number(row)])
            begin, length = (
                (group_number(row) - GROUP_WIDTH / 2, GROUP_WIDTH) if is_shared else (left_edge(row), width * BAR_SHARE)
            )
            axes.hlines(row[column], begin, begin + length, color=colour, linestyle=dashes, linewidth=1.2, zorder=5)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare one legend for all panels."""
    levels = zip(LEVEL_STYLES, canvas.spec.references.values(), strict=False)
    canvas.legend(line=False, levels=[(label, colour, dashes) for (colour, dashes), label in levels])
