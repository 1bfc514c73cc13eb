"""The two axes of a panel: scales, limits and ticks that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Rows
from sparsebench.figures.spec import NAMED_ROWS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL: Any = (0, (1, 1.5))
"""Dashes of a level across named rows."""
FIRST = (0.0, 1.0, 0.99, 0.5, 0.9, 0.95, 0.1)
"""Sparsities that keep their tick label where there is no room for all, the most important first."""


def dress(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Scale and label the axes of a panel whose content is drawn."""
    spec = canvas.spec
    if spec.kind == "heatmap":
        return
    place = axes.get_subplotspec()
    if place and place.is_first_col():
        axes.set_ylabel(spec.get("ylabel"))
    across(axes, rows, canvas)
    if spec.kind in NAMED_ROWS:
        return
    if spec.get("yscale") == "log":
        upward(axes, canvas)
    elif ("ymin" in spec.values or spec.kind == "bars") and axes.get_autoscaley_on():  # a shared axis once
        bottom = float(spec.get("ymin")) if "ymin" in spec.values else min(0.0, _held(axes, "y")[0])
        axes.set_ylim(bottom, axes.get_ylim()[1] + 0.05 * (axes.get_ylim()[1] - bottom))
    axes.yaxis.set_major_formatter(lambda value, _: canvas.written(value))


def name_rows(axes: Axes, rows: Rows, canvas: Canvas) -> list[str]:
    """Label a panel's rows, the first on top, draw vertical grid lines and levels, and return the names in order."""
    down = list(dict.fromkeys(canvas.row_name(row) for row in rows))
    axes.set_yticks(range(len(down)), down)
    axes.set_ylim(canvas.most_rows - 0.4, -0.6)  # rows are as high as those of the panels beside
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    for column in canvas.spec.references:
        for value in {row[column] for row in rows if row[column] is not None}:
            axes.axvline(value, color="black", linewidth=0.8, linestyle=LEVEL, zorder=1)
    return down


def row_levels(canvas: Canvas) -> list[tuple[str, str, Any]]:
    """Return the levels of ``name_rows``, for a legend: label, colour, dashes."""
    return [(label, "black", LEVEL) for label in canvas.spec.references.values()]


def upward(axes: Axes, canvas: Canvas) -> None:
    """Make the vertical axis a log axis that has labelled ticks at any length and packs what is above the knee."""
    knee = canvas.knee
    axes.set_yscale("function", functions=(partial(style.fold, knee=knee), partial(style.unfold, knee=knee)))
    low, high = _ends(_held(axes, "y"), knee, (-0.06, 0.08))
    axes.set_ylim(low, high)
    major, minor = style.log_ticks(low, high, knee)
    axes.set_yticks(major)
    axes.set_yticks(minor, minor=True)
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    if high > knee:
        axes.axhspan(knee, high, color=style.GROUND, linewidth=0, zorder=0)


def across(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Scale and label the horizontal axis."""
    kind = canvas.spec.get("xscale", "linear")
    if canvas.spec.kind == "bars" or kind == "category":
        found = canvas.categories_of(rows) if canvas.spec.kind == "bars" else canvas.categories
        names = {place: style.percent(value) if kind == "sparsity" else str(value) for place, value in enumerate(found)}
        kept = _fitting(list(names), list(names), list(names.values()), canvas)
        axes.set_xticks([int(place) for place in kept], [names[int(place)] for place in kept])
        axes.tick_params(axis="x", length=0)
    elif kind == "sparsity":
        _sparsities(axes, canvas)
    elif kind == "log":
        low, high = _ends(_held(axes, "x"), float("inf"), (-0.07, 0.07))
        axes.set_xscale("function", functions=(style.fold, style.unfold))
        axes.set_xlim(low, high)
        major, minor = style.log_ticks(low, high)
        axes.set_xticks(
            _fitting(major, [math.log10(value) for value in major], [style.number(v) for v in major], canvas)
        )
        axes.set_xticks(minor, minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: style.number(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        if all(isinstance(row[canvas.spec.get("x")], int) for row in rows):
            axes.locator_params(axis="x", integer=True)  # there is no layer 0.5
        axes.xaxis.set_major_formatter(lambda value, _: style.number(round(value, 12)))


def _held(axes: Axes, which: str) -> tuple[float, float]:
    """Return the least and the greatest value drawn along one axis, in all panels that share it."""
    alike = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    lows, highs = zip(*(getattr(one.dataLim, f"interval{which}") for one in alike), strict=True)
    return min(lows), max(highs)


def _ends(interval: tuple[float, float], knee: float, room: tuple[float, float]) -> tuple[float, float]:
    """Return the limits of a log axis around the data; ``room`` is the margins, as shares of the axis' length."""
    import numpy as np

    ends = style.fold(np.array(interval), knee)
    ends += np.array(room) * max(float(np.ptp(ends)), 0.05)
    low, high = (float(end) for end in style.unfold(ends, knee))
    return low, high


def _sparsities(axes: Axes, canvas: Canvas) -> None:
    import numpy as np

    axes.set_xscale("function", functions=(style.spread, style.gather))
    values = canvas.categories
    places = [float(place) for place in style.spread(np.array(values, dtype=float))]
    labels, ranks = list(map(style.percent, values)), {sparsity: place for place, sparsity in enumerate(FIRST)}
    kept = _fitting(values, places, labels, canvas, lambda sparsity: ranks.get(sparsity, len(FIRST)))
    axes.set_xticks(kept, [style.percent(value) for value in kept])
    axes.set_xticks([value for value in values if value not in kept], minor=True)
    ends = np.array([min(places), max(places)])
    left, right = style.gather(ends + np.array([-0.04, 0.04]) * max(float(np.ptp(ends)), 1.0))
    axes.set_xlim(float(left), float(right))


def _fitting(
    values: Sequence[float], places: Sequence[float], labels: Sequence[str], canvas: Canvas, rank: Any = None
) -> list[float]:
    """Return the values whose labels fit side by side, preferring those of a low ``rank``."""
    width = canvas.width / canvas.across_panels - 0.6 - canvas.naming
    scale = width / max(max(places, default=0) - min(places, default=0), 1e-9)
    order = sorted(range(len(places)), key=lambda at: (rank(values[at]) if rank else 0, at))
    kept: list[int] = []
    for at in order:
        # Inches between the centres of two labels; how many they need grows with their characters.
        gaps = ((abs(places[at] - places[other]) * scale, len(labels[at] + labels[other])) for other in kept)
        if all(gap > 0.045 + 0.029 * characters for gap, characters in gaps):
            kept.append(at)
    return [values[at] for at in sorted(kept)]
