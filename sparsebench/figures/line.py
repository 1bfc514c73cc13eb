"""Lines with intervals: one line a series, levels such as chance and dense across the panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsebench.figures.canvas import Canvas

Rows = Sequence[Mapping[str, Any]]
DIRECT = 6
"""Up to so many lines are named at their right end instead of in a legend, where the figure has one panel."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    spec = canvas.spec
    names = [name for name in canvas.looks if any(canvas.series(row) == name for row in rows)]
    for place, name in enumerate(names):
        look = canvas.looks[name]
        mine = sorted((row for row in rows if canvas.series(row) == name), key=lambda row: row[spec.get("x")])
        xs = [canvas.across(row[spec.get("x")]) for row in mine]
        ys = [row[spec.get("y")] for row in mine]
        many = len(names) > 12
        axes.plot(
            xs, ys, color=look.colour, marker=look.marker, linestyle=look.dashes, linewidth=0.8 if many else 1.2,
            markersize=2.5 if many else 3.8, markeredgecolor="white", markeredgewidth=0.3, zorder=3 + place / 100,
        )  # fmt: skip
        if "low" in spec.values and "high" in spec.values:
            _interval(axes, xs, mine, canvas, look, (place, len(names)))
    _levels(axes, rows, canvas)


def finish(panels: Sequence[Axes], canvas: Canvas) -> None:
    """Name the lines: at their ends in a single panel with few, else in one legend for all panels."""
    if len(canvas.looks) == 1 and not canvas.spec.get("series"):
        return
    if len(panels) == 1 and len(canvas.looks) <= DIRECT:
        _names_at_ends(panels[0], canvas)
    else:
        canvas.legend(line=True)


def _interval(axes: Axes, xs: list[float], rows: Rows, canvas: Canvas, look: style.Look, place: tuple[int, int]) -> None:
    """Whiskers, shifted by a hair a series so that they do not hide each other; bands would mix their colours."""
    from matplotlib.transforms import ScaledTranslation

    spec = canvas.spec
    lows = [row[spec.get("low")] for row in rows]
    highs = [row[spec.get("high")] for row in rows]
    known = [at for at, (low, high) in enumerate(zip(lows, highs, strict=True)) if low is not None and high is not None]
    index, count = place
    shift = ScaledTranslation((index - (count - 1) / 2) * min(1.6, 12 / count) / 72, 0, axes.figure.dpi_scale_trans)
    axes.vlines(
        [xs[at] for at in known], [lows[at] for at in known], [highs[at] for at in known],
        color=look.colour, linewidth=0.6 if count > 12 else 0.9, alpha=0.75, transform=axes.transData + shift, zorder=2,
    )  # fmt: skip
    # Shifted artists do not count for the axis' limits.
    axes.update_datalim([(xs[at], end) for at in known for end in (lows[at], highs[at])])
    axes.autoscale_view()


def _levels(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Rules across the panel, each named at the end that has more room above it."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    ends = min(row[x] for row in rows), max(row[x] for row in rows)
    for column, label in canvas.spec.references.items():
        for value in sorted({row[column] for row in rows if row[column] is not None}):
            room = [min(abs(row[y] - value) for row in rows if row[x] == end) for end in ends]
            left = room[0] > room[1]
            axes.axhline(value, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
            axes.annotate(
                label, (0.01 if left else 0.99, value), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                textcoords="offset points", fontsize=6.5, color=style.GREY, ha="left" if left else "right", va="bottom", zorder=1,
            )  # fmt: skip


def _names_at_ends(axes: Axes, canvas: Canvas) -> None:
    """Each name beside its line's last point, moved apart where they would touch."""
    lines = [line for line in axes.get_lines() if line.get_marker() not in (None, "None", "")]
    axes.figure.draw_without_rendering()
    gap = 10 / 72 * axes.figure.dpi
    ends: list[tuple[float, str, str]] = []
    for line, name in zip(lines, canvas.looks, strict=True):
        ends.append((axes.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1]))[1], name, line.get_color()))
    floor = -math.inf
    for height_of_end, name, colour in sorted(ends):
        floor = max(height_of_end, floor + gap)
        at = axes.transAxes.inverted().transform((0, floor))[1]
        axes.annotate(name, (1.01, at), xycoords="axes fraction", va="center", fontsize=7.5, color=colour, annotation_clip=False)
