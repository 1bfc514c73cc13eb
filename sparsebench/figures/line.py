"""Lines with intervals: one line a series, levels such as chance and dense across the panel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsebench.figures.canvas import Canvas

Rows = Sequence[Mapping[str, Any]]
DIRECT, LONGEST = 12, 30
"""Up to so many lines, of names of at most so many characters, are named at their right end instead of in a legend, where
the figure has one panel."""
LINE = 10
"""Points from one name to the next."""
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
        mine = [row for row in rows if canvas.series(row) == name and row[spec.get("y")] is not None]
        mine.sort(key=lambda row: row[spec.get("x")])
        axes.plot(
            [canvas.across(row[spec.get("x")]) for row in mine], [row[spec.get("y")] for row in mine], color=look.colour,
            marker=look.marker, linestyle=look.dashes, linewidth=0.8 if crowded else 1.2, markersize=2.5 if crowded else 3.8,
            markeredgecolor="white", markeredgewidth=0.3, zorder=(2.5 if look.colour == style.BOUND else 3) + place / 100,
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
    if len(panels) == 1 and len(canvas.looks) <= DIRECT and max(map(len, canvas.looks)) <= LONGEST:
        _names_at_ends(panels[0], canvas)
    else:
        canvas.legend(line=True)


def _intervals(axes: Axes, rows: Rows, canvas: Canvas, names: Sequence[str]) -> None:
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
        points = (names.index(owners[0]) - (len(names) - 1) / 2) * min(1.6, room / len(names)) if alone else 0.0
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
    rows = [row for row in rows if row[y] is not None]
    ends = min(row[x] for row in rows), max(row[x] for row in rows)
    for column, label in canvas.spec.references.items():
        for value in sorted({row[column] for row in rows if row[column] is not None}):
            room = [
                min(abs(canvas.upward(row[y]) - canvas.upward(value)) for row in rows if row[x] == end) for end in ends
            ]
            left = room[0] > room[1]
            axes.axhline(value, color=style.GREY, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
            axes.annotate(
                label, (0.01 if left else 0.99, value), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                textcoords="offset points", fontsize=6.5, color=style.GREY, ha="left" if left else "right", va="bottom", zorder=6,
                bbox={"facecolor": "white", "alpha": 0.7 * (value < canvas.knee), "edgecolor": "none", "pad": 0.3},
            )  # fmt: skip


def _names_at_ends(axes: Axes, canvas: Canvas) -> None:
    """Each name beside its line's last point, moved apart where they would touch, and a thread from one to the other."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    ends = {canvas.series(row): row for row in sorted(canvas.rows, key=lambda row: row[x]) if row[y] is not None}
    if len({row[x] for row in ends.values()}) > 1:
        canvas.notes.append("Thin dotted lines only lead to the names of lines that end early.")
    canvas.fit()
    canvas.figure.draw_without_rendering()
    box = axes.get_window_extent()
    found = []
    for name, last in ends.items():
        point = canvas.across(last[x]), last[y]
        found.append(((float(axes.transData.transform(point)[1]) - box.y0) / box.height, name, point))
    found.sort()
    gap = LINE / 72 * canvas.figure.dpi / box.height
    for at, (_, name, point) in zip(apart([end for end, _, _ in found], gap), found, strict=True):
        look = canvas.looks[name]
        axes.annotate(
            name, point, xycoords="data", xytext=(1.035, at), textcoords="axes fraction", va="center", fontsize=7.5,
            color=look.colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "linestyle": (0, (1, 2.5)),
                        "relpos": (0, 0.5), "shrinkA": 0.5, "shrinkB": 2.5},
        )  # fmt: skip


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Places at least ``gap`` apart, in the order of ``wanted`` (ascending) and as near to it as that allows (least squares).

    They stay within 0 and 1 where there is room for all.
    """
    # Less the gaps before it, a place only must not fall below the one before: neighbours that would are pooled.
    pools: list[list[float]] = []
    for number, place in enumerate(wanted):
        pools.append([place - number * gap])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    level = [fmean(pool) for pool in pools for _ in pool]
    top = max(0.0, 1 - (len(wanted) - 1) * gap)
    return [min(max(place, 0.0), top) + number * gap for number, place in enumerate(level)]
