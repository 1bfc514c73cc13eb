"""Points with intervals both ways; those that no other beats are solid, joined as the front, and carry their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from sparsebench.figures import line, names, style
from sparsebench.figures.canvas import Canvas, Panels, Row, Rows
from sparsebench.figures.spec import ENDS, FigureSpec

AWAY = (3.5, 7.0)
"""Points between a mark and its text, nearest first: further away it would need a thread."""
FROM_AXIS = 4.0
"""Points between a text and the vertical axis at its left."""
COMPASS = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel."""
    x, y = canvas.spec.get("x"), canvas.spec.get("y")
    pareto = front(rows, canvas.spec)
    axes.margins(x=0.1, y=0.1)
    for row in rows:
        marker, colour = canvas.styles[canvas.series(row)].marker, canvas.colour(row)
        solid = row in pareto or not canvas.spec.get("front") or _outside_front(row, canvas.spec)
        in_background = colour == style.BACKGROUND_GREY
        axes.plot(
            [row[x]], [row[y]], marker=marker, markersize=4.6 if solid else 3.6, linestyle="none",
            color=colour if solid else "white", markeredgecolor="white" if solid else colour,
            markeredgewidth=0.3 if solid else 0.8, zorder=(2.5 if in_background else 3) + solid,
        )  # fmt: skip
        _interval(axes, row, canvas, colour, solid)
    steps = [row[x] for row in pareto], [row[y] for row in pareto]
    axes.plot(*steps, color="#333333", linewidth=0.9, drawstyle="steps-post", zorder=2)
    line.levels(axes, rows, canvas)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Prepare one legend; write the levels' names at the edge, and the points' texts where they touch nothing."""
    if canvas.spec.get("series"):
        canvas.legend(line=True, joined=False)
    names.write(canvas, panels, [names.levels(canvas, rows) for _, rows in panels])
    if not canvas.spec.get("text"):
        return
    canvas.fit()
    canvas.figure.draw_without_rendering()
    complete = [_write_texts(axes, rows, canvas) for axes, rows in panels]
    if not all(complete):
        canvas.notes.append("Points without a label have no room for one.")


def front(rows: Rows, spec: FigureSpec) -> list[Row]:
    """Return a panel's Pareto front, cheapest first: no other row is as good and cheaper, or better and as cheap."""
    x, y, front_key = (spec.get(key) for key in ("x", "y", "front"))
    contenders = [row for row in rows if not _outside_front(row, spec)]
    if not front_key or not contenders:
        return []
    sign = ENDS.get(front_key) or (1 if contenders[0][front_key] else -1)
    pareto: list[Row] = []
    for row in sorted(contenders, key=lambda row: (row[x], -sign * row[y])):
        last = pareto[-1] if pareto else None
        if last is None or sign * row[y] > sign * last[y] or (row[x], row[y]) == (last[x], last[y]):
            pareto.append(row)
    return pareto


def _outside_front(row: Row, spec: FigureSpec) -> bool:
    """Return whether a point takes no part in the front: its `front` column is NULL, because no variant made what it shows."""
    front_key = spec.get("front")
    return bool(front_key) and front_key not in ENDS and row[front_key] is None


def _interval(axes: Axes, row: Row, canvas: Canvas, colour: str, solid: bool) -> None:
    x, y, low, high, x_low, x_high = (canvas.value(row, key) for key in ("x", "y", "low", "high", "xlow", "xhigh"))
    stroke: dict[str, Any] = {"color": colour, "linewidth": 0.8, "alpha": 0.7 if solid else 0.35, "zorder": 1.5}
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], **stroke)
    if x_low is not None and x_high is not None:
        axes.plot([x_low, x_high], [y, y], **stroke)


def _write_texts(axes: Axes, rows: Rows, canvas: Canvas) -> bool:
    """Write each text of a panel at the nearest position where it touches nothing; return whether all found one."""
    x, y, column = (canvas.spec.get(key) for key in ("x", "y", "text"))
    pixels_per_point = canvas.figure.dpi / 72
    marks = [axes.transData.transform((row[x], row[y])) for row in rows]
    side = 5 * pixels_per_point
    occupied = [Bbox.from_bounds(across - side / 2, up - side / 2, side, side) for across, up in marks]
    occupied += _strokes(axes)
    pareto = front(rows, canvas.spec) if canvas.spec.get("texts", "front") == "front" else []
    texts: list[Annotation] = []
    for row in rows:
        if row[column] in (None, "") or (pareto and row not in pareto and not _outside_front(row, canvas.spec)):
            continue
        text = axes.annotate(
            str(row[column]), (row[x], row[y]), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=6.5, color=canvas.colour(row), zorder=6,
        )  # fmt: skip
        text.set_in_layout(False)
        texts.append(text)
    # What is placed first takes room from the others: of a few orders, the one that leaves out fewest.
    orders = [sorted(texts, key=lambda text: sign * text.xy[axis]) for axis in (0, 1) for sign in (1, -1)]
    window = axes.get_window_extent()
    room = Bbox([(window.x0 + FROM_AXIS * pixels_per_point, window.y0), window.max])
    placed = max((_fitting_offsets(order, occupied, room, pixels_per_point) for order in orders), key=len)
    for text in texts:
        if text in placed:
            text.set_position(placed[text])
        else:
            text.remove()
    return len(placed) == len(texts)


def _fitting_offsets(
    texts: Sequence[Annotation], occupied: Sequence[Bbox], panel: Bbox, pixels_per_point: float
) -> dict[Annotation, tuple[float, float]]:
    """Return the offsets in points of those texts, placed in this order, that find room in a panel beside their marks."""
    boxes = list(occupied)
    placed: dict[Annotation, tuple[float, float]] = {}
    for text in texts:
        size = text.get_window_extent()
        for across, up in _candidate_offsets(size.width / pixels_per_point, size.height / pixels_per_point):
            box = size.translated(across * pixels_per_point, up * pixels_per_point)
            within = all(panel.contains(*corner) for corner in (box.min, box.max))
            if within and not any(box.overlaps(other) for other in boxes):
                placed[text] = (across, up)
                boxes.append(box.padded(4 * pixels_per_point, 2 * pixels_per_point))
                break
    return placed


def _strokes(axes: Axes) -> list[Bbox]:
    """Return the boxes that a panel's straight strokes cover: intervals, the front's steps, levels."""
    strokes = []
    for stroke in axes.lines:
        points: Any = stroke.get_path().vertices
        if stroke.get_drawstyle() == "steps-post":
            corners = [corner for (x, y), (next_x, _) in pairwise(points) for corner in ((x, y), (next_x, y))]
            points = [*corners, *points[-1:]]
        ends: Any = stroke.get_transform().transform(points) if len(points) > 1 else []
        strokes += [
            Bbox([np.minimum(first, last) - 0.8, np.maximum(first, last) + 0.8]) for first, last in pairwise(ends)
        ]
    return strokes


def _candidate_offsets(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield centres for a text of that size around its mark, nearest first: across and up, in points."""
    for distance in AWAY:
        for across, up in COMPASS:
            yield across * (distance + width / 2), up * (distance + height / 2)
