"""Lines with intervals: one line a series, levels such as chance and dense across the panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.figures import names, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsebench.figures.canvas import Canvas

Rows = Sequence[Mapping[str, Any]]
CROWD = 12
"""Above so many lines intervals would only smear."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    spec = canvas.spec
    here = [name for name in canvas.looks if any(canvas.series(row) == name for row in rows)]
    crowded = len(canvas.looks) > CROWD
    axes.margins(y=0.08)
    for place, name in enumerate(here):
        look = canvas.looks[name]
        mine = [row for row in rows if canvas.series(row) == name and row[spec.get("y")] is not None]
        mine.sort(key=lambda row: row[spec.get("x")])
        axes.plot(
            [canvas.across(row[spec.get("x")]) for row in mine], [row[spec.get("y")] for row in mine], color=look.colour,
            marker=look.marker, linestyle=look.dashes, linewidth=0.8 if crowded else 1.2, markersize=2.5 if crowded else 3.8,
            markeredgecolor="white", markeredgewidth=0.3, zorder=(2.5 if look.colour == style.BOUND else 3) + place / 100,
        )  # fmt: skip
    for row in rows if "mark" in spec.values else ():
        if row[spec.get("mark")]:
            axes.plot(
                [canvas.across(row[spec.get("x")])], [row[spec.get("y")]], marker="o", markersize=9, markerfacecolor="none",
                markeredgecolor="black", markeredgewidth=0.8, zorder=5,
            )  # fmt: skip
    if "low" in spec.values and "high" in spec.values and not crowded:
        _intervals(axes, rows, canvas, here)
    levels(axes, rows, canvas)


def finish(panels: names.Panels, canvas: Canvas) -> None:
    """Name the lines: at their ends where there is room, else in one legend for all panels; levels always at the edge."""
    if len(canvas.looks) > CROWD and "low" in canvas.spec.values:
        canvas.notes.append("Intervals are not drawn among so many lines.")
    if "series" in canvas.spec.values and not canvas.direct:
        canvas.legend(line=True)
    wanted = [(names.series(canvas, rows) if canvas.direct else []) + names.levels(canvas, rows) for _, rows in panels]
    names.write(canvas, panels, wanted)


def levels(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Rules across the panel."""
    for name in names.levels(canvas, rows):
        axes.axhline(name.y, color=name.colour, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def _intervals(axes: Axes, rows: Rows, canvas: Canvas, here: Sequence[str]) -> None:
    """Whiskers, shifted by a hair a series so that they do not hide each other; bands would mix their colours.

    Where several series share one point with one interval (the dense model), it is drawn once.
    """
    from matplotlib.transforms import ScaledTranslation

    spec = canvas.spec
    # On a log axis most are shorter than a marker: they must not come off it.
    room = 5 if spec.get("yscale") == "log" else 12
    found: dict[tuple[Any, float, float], list[str]] = {}
    for row in rows:
        low, high = row[spec.get("low")], row[spec.get("high")]
        if low is not None and high is not None and math.isfinite(low) and math.isfinite(high):
            found.setdefault((canvas.across(row[spec.get("x")]), low, high), []).append(canvas.series(row))
    for (x, low, high), owners in found.items():
        alone = len(owners) == 1
        points = (here.index(owners[0]) - (len(here) - 1) / 2) * min(1.6, room / len(here)) if alone else 0.0
        shift = ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        colour = canvas.looks[owners[0]].colour if alone else style.GREY
        axes.vlines(
            [x], [low], [high], color=colour, linewidth=0.9, alpha=0.75, transform=axes.transData + shift, zorder=2
        )
    # Shifted artists do not count for the axis' limits.
    axes.update_datalim([(x, end) for x, low, high in found for end in (low, high)])
    axes.autoscale_view()
