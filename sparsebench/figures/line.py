"""Lines and curves with intervals, one per series, and levels such as chance and dense across the panel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.figures import names, style
from sparsebench.figures.canvas import Canvas, Panels, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform


CROWD = 12
"""In a panel of more lines than this no intervals are drawn: they would only smear."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    spec = canvas.spec
    here = [name for name in canvas.looks if any(canvas.series(row) == name for row in rows)]
    crowded = len(here) > CROWD
    spread = "low" in spec.values and "high" in spec.values and not crowded
    axes.margins(y=0.08)
    for place, name in enumerate(here):
        look = canvas.looks[name]
        mine = [row for row in rows if canvas.series(row) == name and row[spec.get("y")] is not None]
        mine.sort(key=lambda row: canvas.across(row[spec.get("x")]))
        dashes: Any = "none" if name in canvas.apart else look.dashes
        axes.plot(
            [canvas.across(row[spec.get("x")]) for row in mine], [row[spec.get("y")] for row in mine], color=look.colour,
            marker="" if spread else look.marker, linestyle=dashes, linewidth=0.8 if crowded else 1.2,
            markersize=2.5 if crowded else 3.8, markeredgecolor="white",
            markeredgewidth=0.3, zorder=(2.5 if look.colour == style.BOUND else 3) + place / 100,
        )  # fmt: skip
    if spread:
        _points(axes, rows, canvas, here)
    else:
        marked = [(canvas.across(row[spec.get("x")]), row[spec.get("y")]) for row in _marked(rows, canvas)]
        _ring(axes, marked, axes.transData)
    levels(axes, rows, canvas)


def curve_panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel of curves of many points: lines without markers, intervals as bands."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    axes.margins(x=0.02, y=0.05)
    for place, (name, look) in enumerate(canvas.looks.items()):
        mine = [row for row in rows if canvas.series(row) == name and row[y] is not None]
        mine.sort(key=lambda row: canvas.across(row[x]))
        xs = [canvas.across(row[x]) for row in mine]
        grey = look.colour == style.BOUND
        axes.plot(
            xs, [row[y] for row in mine], color=look.colour, linestyle=look.dashes, linewidth=1.2,
            zorder=(2.5 if grey else 3) + place / 100,
        )  # fmt: skip
        if "low" in canvas.spec.values and "high" in canvas.spec.values:
            ends = ([row[canvas.spec.get(end)] for row in mine] for end in ("low", "high"))
            low, high = ([math.nan if end is None else end for end in each] for each in ends)
            axes.fill_between(xs, low, high, color=look.colour, alpha=0.15, linewidth=0, zorder=2)
    levels(axes, rows, canvas)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Name the lines: at their ends where there is room, else in one legend for all panels; levels always at the edge."""
    crowd = max((len({canvas.series(row) for row in rows}) for _, rows in panels), default=0)
    if crowd > CROWD and "low" in canvas.spec.values:
        canvas.notes.append(f"Intervals are not drawn in panels of more than {CROWD} lines.")
    elif canvas.spec.get("xscale", "") == "sparsity" and len(canvas.looks) > 1 and "low" in canvas.spec.values:
        canvas.notes.append("Points of one sparsity stand side by side; small and large sparsities have more room.")
    if "series" in canvas.spec.values and not canvas.direct:
        canvas.legend(line=True)
    wanted = [(names.series(canvas, rows) if canvas.direct else []) + names.levels(canvas, rows) for _, rows in panels]
    names.write(canvas, panels, wanted)


def levels(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw the levels as rules across the panel."""
    for name in names.levels(canvas, rows):
        axes.axhline(name.y, color=name.colour, linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)


def _points(axes: Axes, rows: Rows, canvas: Canvas, here: Sequence[str]) -> None:
    """Draw markers with whiskers, each series slightly shifted so that none hides another; bands would mix colours.

    Where several series share one point and interval (the dense model), none is shifted, and the whisker is drawn once.
    """
    from matplotlib.transforms import ScaledTranslation

    spec = canvas.spec
    # On a log axis most whiskers are shorter than a marker: the points are shifted less.
    room = 5 if spec.get("yscale") == "log" else 12
    ringed = {
        (canvas.across(row[spec.get("x")]), row[spec.get("y")], canvas.series(row)) for row in _marked(rows, canvas)
    }
    found: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        if row[spec.get("y")] is not None:
            point = (canvas.across(row[spec.get("x")]), *(row[spec.get(name)] for name in ("y", "low", "high")))
            found.setdefault(point, []).append(canvas.series(row))
    for (x, y, *ends), owners in found.items():
        alone = len(owners) == 1
        points = (here.index(owners[0]) - (len(here) - 1) / 2) * min(1.6, room / len(here)) if alone else 0.0
        place = axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
        for name in owners:
            look = canvas.looks[name]
            axes.plot(
                [x], [y], color=look.colour, marker=look.marker, linestyle="none", markersize=3.8, markeredgecolor="white",
                markeredgewidth=0.3, transform=place, zorder=4,
            )  # fmt: skip
        if _known(ends):
            colour = canvas.looks[owners[0]].colour if alone else style.GREY
            axes.vlines([x], ends[0], ends[1], color=colour, linewidth=0.9, alpha=0.75, transform=place, zorder=2)
        if any((x, y, name) in ringed for name in owners):
            _ring(axes, [(x, y)], place)
    # matplotlib leaves shifted artists out of the axis' limits.
    axes.update_datalim([(x, end) for x, _, *ends in found if _known(ends) for end in ends])
    axes.autoscale_view()


def _known(ends: Sequence[float | None]) -> bool:
    return all(end is not None and math.isfinite(end) for end in ends)


def _marked(rows: Rows, canvas: Canvas) -> Rows:
    """Return the rows whose points get a ring."""
    spec = canvas.spec
    return [row for row in rows if row[spec.get("mark")]] if "mark" in spec.values else []


def _ring(axes: Axes, points: Sequence[tuple[float, float]], place: Transform) -> None:
    for x, y in points:
        axes.plot(
            [x], [y], marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black", markeredgewidth=0.8,
            transform=place, zorder=5,
        )  # fmt: skip
