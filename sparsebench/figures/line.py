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
CROWD = 12
"""Above so many lines intervals would only smear."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    spec = canvas.spec
    names = [name for name in canvas.looks if any(canvas.series(row) == name for row in rows)]
    crowded = len(canvas.looks) > CROWD
    axes.margins(y=0.08)  # room for the name of a level at the very top
    for place, name in enumerate(names):
        look = canvas.looks[name]
        mine = sorted((row for row in rows if canvas.series(row) == name), key=lambda row: row[spec.get("x")])
        axes.plot(
            [canvas.across(row[spec.get("x")]) for row in mine], [row[spec.get("y")] for row in mine], color=look.colour,
            marker=look.marker, linestyle=look.dashes, linewidth=0.8 if crowded else 1.2, markersize=2.5 if crowded else 3.8,
            markeredgecolor="white", markeredgewidth=0.3, zorder=3 + place / 100,
        )  # fmt: skip
    if "low" in spec.values and "high" in spec.values and not crowded:
        _intervals(axes, rows, canvas, names)
    _levels(axes, rows, canvas)


def finish(panels: Sequence[Axes], canvas: Canvas) -> None:
    """Name the lines: at their ends in a single panel with few, else in one legend for all panels."""
    if len(canvas.looks) > CROWD and "low" in canvas.spec.values:
        canvas.notes.append("Intervals are not drawn among so many lines.")
    if len(canvas.looks) == 1 and not canvas.spec.get("series"):
        return
    if len(panels) == 1 and len(canvas.looks) <= DIRECT:
        _names_at_ends(panels[0], canvas)
    else:
        canvas.legend(line=True)


def _intervals(axes: Axes, rows: Rows, canvas: Canvas, names: Sequence[str]) -> None:
    """Whiskers, shifted by a hair a series so that they do not hide each other; bands would mix their colours.

    Where several series share one point with one interval (the dense model), it is drawn once.
    """
    from matplotlib.transforms import ScaledTranslation

    spec = canvas.spec
    found: dict[tuple[Any, float, float], list[str]] = {}
    for row in rows:
        low, high = row[spec.get("low")], row[spec.get("high")]
        if low is not None and high is not None:
            found.setdefault((canvas.across(row[spec.get("x")]), low, high), []).append(canvas.series(row))
    for (x, low, high), owners in found.items():
        alone = len(owners) == 1
        points = (names.index(owners[0]) - (len(names) - 1) / 2) * min(1.6, 12 / len(names)) if alone else 0.0
        shift = ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        colour = canvas.looks[owners[0]].colour if alone else style.GREY
        axes.vlines(
            [x], [low], [high], color=colour, linewidth=0.9, alpha=0.75, transform=axes.transData + shift, zorder=2
        )
    # Shifted artists do not count for the axis' limits.
    axes.update_datalim([(x, end) for x, low, high in found for end in (low, high)])
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
                textcoords="offset points", fontsize=6.5, color=style.GREY, ha="left" if left else "right", va="bottom", zorder=6,
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.3},
            )  # fmt: skip


def _names_at_ends(axes: Axes, canvas: Canvas) -> None:
    """Each name beside its line's last point, moved apart where they would touch."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    canvas.fit()
    canvas.figure.draw_without_rendering()
    gap, floor = 10 / 72 * canvas.figure.dpi, -math.inf
    ends = []
    for name in canvas.looks:
        last = max((row for row in canvas.rows if canvas.series(row) == name), key=lambda row: row[x])
        ends.append((float(axes.transData.transform((canvas.across(last[x]), last[y]))[1]), name))
    for end, name in sorted(ends):
        floor = max(end, floor + gap)
        at = float(axes.transAxes.inverted().transform((0, floor))[1])
        axes.annotate(
            name, (1.01, at), xycoords="axes fraction", va="center", fontsize=7.5,
            color=canvas.looks[name].colour, annotation_clip=False,
        )  # fmt: skip
