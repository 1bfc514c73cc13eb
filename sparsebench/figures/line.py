"""Lines and curves with intervals, one per series, and levels such as chance and dense across the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from sparsebench.figures import names, style
from sparsebench.figures.canvas import Canvas, Panels, Rows

MOST_WITH_INTERVALS = 12
"""In a panel of more lines than this no intervals are drawn: they would only smear."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    drawn = [name for name in canvas.styles if any(canvas.series(row) == name for row in rows)]
    is_crowded = len(drawn) > MOST_WITH_INTERVALS
    whiskers = canvas.spec.has_interval and not is_crowded
    axes.margins(y=0.08)
    for number, name in enumerate(drawn):
        series_style = canvas.styles[name]
        points = canvas.points_of(rows, name)
        dashes: Any = "none" if name in canvas.unjoined else series_style.dashes
        axes.plot(
            list(map(canvas.x_position, points)), [canvas.value(row, "y") for row in points], color=series_style.colour,
            marker="" if whiskers else series_style.marker, linestyle=dashes, linewidth=0.8 if is_crowded else 1.2,
            markersize=2.5 if is_crowded else 3.8, markeredgecolor="white",
            markeredgewidth=0.3, zorder=(2.5 if series_style.colour == style.BACKGROUND_GREY else 3) + number / 100,
        )  # fmt: skip
    if whiskers:
        _draw_whiskers(axes, rows, canvas, drawn)
    levels(axes, rows, canvas)


def curve_panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel of curves of many points: lines without markers, intervals as bands."""
    axes.margins(x=0.02, y=0.05)
    for number, (name, series_style) in enumerate(canvas.styles.items()):
        points = canvas.points_of(rows, name)
        xs = list(map(canvas.x_position, points))
        axes.plot(
            xs, [canvas.value(row, "y") for row in points], color=series_style.colour, linestyle=series_style.dashes,
            linewidth=1.2, zorder=(2.5 if series_style.colour == style.BACKGROUND_GREY else 3) + number / 100,
        )  # fmt: skip
        if canvas.spec.has_interval:
            ends = ([canvas.value(row, end) for row in points] for end in ("low", "high"))
            low, high = ([math.nan if end is None else end for end in column] for column in ends)
            axes.fill_between(xs, low, high, color=series_style.colour, alpha=0.15, linewidth=0, zorder=2)
    levels(axes, rows, canvas)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Name the lines: at their ends where there is room, else in one legend for all panels; levels always at the edge."""
    if canvas.spec.kind == "line" and canvas.spec.has_interval:
        if max(len({canvas.series(row) for row in rows}) for _, rows in panels) > MOST_WITH_INTERVALS:
            canvas.notes.append(f"Intervals are not drawn in panels of more than {MOST_WITH_INTERVALS} lines.")
        elif canvas.spec.get("xscale") == "sparsity" and len(canvas.styles) > 1:
            canvas.notes.append("Points of one sparsity stand side by side; small and large sparsities have more room.")
    if canvas.spec.get("series") and not canvas.named_at_ends:
        canvas.legend(line=True)
    labels_by_panel = [
        (names.series(canvas, rows) if canvas.named_at_ends else []) + names.levels(canvas, rows) for _, rows in panels
    ]
    names.write(canvas, panels, labels_by_panel)


def levels(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw the levels as rules across the panel."""
    for name in names.levels(canvas, rows):
        axes.axhline(name.y, color=name.colour, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def _draw_whiskers(axes: Axes, rows: Rows, canvas: Canvas, drawn: Sequence[str]) -> None:
    """Draw markers with whiskers, each series slightly shifted so that none hides another; bands would mix colours.

    Where several series share one point and interval (the dense model), none is shifted, and the whisker is drawn once.
    """
    # On a log axis most whiskers are shorter than a marker: the points are shifted less.
    spread = 5 if canvas.spec.get("yscale") == "log" else 12
    points: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        if canvas.value(row, "y") is not None:
            point = (canvas.x_position(row), *(canvas.value(row, key) for key in ("y", "low", "high")))
            points.setdefault(point, []).append(canvas.series(row))
    for (x, y, *ends), owners in points.items():
        alone = len(owners) == 1
        shift = (drawn.index(owners[0]) - (len(drawn) - 1) / 2) * min(1.6, spread / len(drawn)) if alone else 0.0
        shifted = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
        for name in owners:
            series_style = canvas.styles[name]
            axes.plot(
                [x], [y], color=series_style.colour, marker=series_style.marker, linestyle="none", markersize=3.8,
                markeredgecolor="white", markeredgewidth=0.3, transform=shifted, zorder=4,
            )  # fmt: skip
        if _known(ends):
            colour = canvas.styles[owners[0]].colour if alone else style.GREY
            axes.vlines([x], ends[0], ends[1], color=colour, linewidth=0.9, alpha=0.75, transform=shifted, zorder=2)
    # matplotlib leaves shifted artists out of the axis' limits.
    axes.update_datalim([(x, end) for x, _, *ends in points if _known(ends) for end in ends])
    axes.autoscale_view()


def _known(ends: Sequence[float | None]) -> bool:
    return None not in ends
