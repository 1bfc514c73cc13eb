"""Names at the right edge of a panel, beside the lines and levels they belong to, moved apart where they would touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import blended_transform_factory

from sparsebench.figures import style
from sparsebench.figures.canvas import NAME_LINE, Canvas, Panels, Rows

LEVEL = 50.0
"""The weight of a level's name beside those of lines: it stays at its level, and they make room."""
MOVED = 0.4
"""The share of a line's height from which a level's name counts as moved: a thread then leads to it."""
BESIDE_LEVEL, BESIDE_THREAD = 1.015, 1.035
"""Where a level's name begins, in widths of the panel: at its level, or at the end of its thread."""


@dataclass(frozen=True)
class PointLabel:
    """A name and the point that it belongs to, in data units; ``x`` is None for a level across the whole panel."""

    text: str
    x: Any
    y: float
    colour: str


def series(canvas: Canvas, rows: Rows) -> list[PointLabel]:
    """Return the name of each line of a panel, at the line's last point."""
    with_value = [row for row in rows if canvas.value(row, "y") is not None]
    ends = {canvas.series(row): row for row in sorted(with_value, key=canvas.x_position)}
    return [
        PointLabel(name, canvas.x_position(row), canvas.value(row, "y"), canvas.styles[name].colour)
        for name, row in ends.items()
    ]


def levels(canvas: Canvas, rows: Rows) -> list[PointLabel]:
    """Return the name of each level across a panel."""
    return [
        PointLabel(label, None, value, style.GREY)
        for column, label in canvas.spec.references.items()
        for value in sorted({row[column] for row in rows if row[column] is not None})
    ]


def write(canvas: Canvas, panels: Panels, labels_by_panel: Sequence[Sequence[PointLabel]]) -> None:
    """Write each panel's names. Call it when everything else is on the sheet: its height must be known."""
    if not any(labels_by_panel):
        return
    canvas.fit()
    canvas.figure.draw_without_rendering()
    line_names: list[tuple[Axes, Annotation]] = []
    for (axes, _), labels in zip(panels, labels_by_panel, strict=True):
        line_gap = NAME_LINE / 72 * canvas.figure.dpi / axes.get_window_extent().height
        ordered = _in_order(canvas, axes, labels, line_gap)
        weights = [LEVEL if label.x is None else 1.0 for _, label in ordered]
        heights_apart = apart([line_end for line_end, _ in ordered], line_gap, weights)
        for height, (line_end, label) in zip(heights_apart, ordered, strict=True):
            if label.x is None:
                _write_level(axes, label, height, is_moved=abs(height - line_end) > MOVED * line_gap)
            else:
                line_names.append((axes, _write_line(axes, label, height)))
    # The names have made the panels narrower.
    canvas.figure.draw_without_rendering()
    for axes, text in line_names:
        _move_clear(axes, text)


def _in_order(canvas: Canvas, axes: Axes, labels: Sequence[PointLabel], gap: float) -> list[tuple[float, PointLabel]]:
    """Return a panel's labels from the bottom up, each with the height of its point as a share of the panel's.

    A level's label has no more labels below it than fit below the level, nor above.
    """
    heights = ((canvas.height_of(axes, label.y), label) for label in labels)
    ordered = sorted(heights, key=lambda pair: (pair[0], pair[1].text))
    lowest_rank = 0  # those of levels stay in their order
    for pair in [pair for pair in ordered if pair[1].x is None]:
        height, _ = pair
        ordered.remove(pair)
        labels_below = min(sum(other <= height for other, _ in ordered), int(height / gap))
        rank = max(labels_below, len(ordered) - int((1 - height) / gap), lowest_rank)
        ordered.insert(rank, pair)
        lowest_rank = rank + 1
    return ordered


def _write_line(axes: Axes, label: PointLabel, height: float) -> Annotation:
    """Write a line's name beside its end, without a thread: threads would cross in a fan."""
    beside_line = blended_transform_factory(axes.transData, axes.transAxes)
    return axes.annotate(
        label.text, (label.x, height), xycoords=beside_line, xytext=(6, 0), textcoords="offset points", va="center",
        fontsize=7, color=label.colour, annotation_clip=False, zorder=6,
    )  # fmt: skip


def _write_level(axes: Axes, label: PointLabel, height: float, is_moved: bool) -> None:
    """Write a level's name at the panel's edge, with a thread to its level where it is moved."""
    edge = blended_transform_factory(axes.transAxes, axes.transData)
    begin = BESIDE_THREAD if is_moved else BESIDE_LEVEL
    thread = {"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "linestyle": (0, (1, 2.5)),
              "relpos": (0, 0.5), "shrinkA": 0.5, "shrinkB": 0}  # fmt: skip
    axes.annotate(
        label.text, (1, label.y), xycoords=edge, xytext=(begin, height), textcoords="axes fraction", va="center",
        fontsize=6.5, color=label.colour, annotation_clip=False, arrowprops=thread if is_moved else None,
    )  # fmt: skip


def _move_clear(axes: Axes, text: Annotation) -> None:
    """Move a name behind the end of its line to where nothing runs through it: before, above or below; else on white."""
    left = axes.get_window_extent().x0
    for up, across in product((0, 9, -9, 18, -18), (6, -6)):
        text.set(position=(across, up), horizontalalignment="left" if across > 0 else "right")
        if not _crossed(axes, text) and text.get_window_extent().x0 >= left:
            return
    text.set(position=(6, 0), horizontalalignment="left")
    text.set_bbox({"facecolor": "white", "linewidth": 0, "pad": 0.5})


def _crossed(axes: Axes, text: Annotation) -> bool:
    """Whether a line of the panel, or another text, runs through a text."""
    box = text.get_window_extent()
    paths = [
        line.get_transform().transform_path(line.get_path()) for line in axes.lines if line.get_linestyle() != "None"
    ]
    others = [other.get_window_extent() for other in axes.texts if other is not text]
    room = box.padded(axes.figure.dpi / 16, 0)  # names that nearly touch in a line read as one
    return any(path.intersects_bbox(box, filled=False) for path in paths) or any(map(room.overlaps, others))


def apart(positions: Sequence[float], gap: float, weights: Sequence[float] | None = None) -> list[float]:
    """Return positions at least ``gap`` apart, in the order of ``positions`` and as near to it as possible (least squares,
    by ``weights`` where given). They stay between 0 and 1 where there is room for all.
    """
    # With the gaps before it subtracted, a position must only not be below the one before: neighbours that would be
    # are pooled.
    pools: list[list[tuple[float, float]]] = []
    for number, (position, weight) in enumerate(zip(positions, weights or [1.0] * len(positions), strict=True)):
        pools.append([(position - number * gap, weight)])
        while len(pools) > 1 and fmean(*zip(*pools[-2], strict=True)) > fmean(*zip(*pools[-1], strict=True)):
            last_pool = pools.pop()
            pools[-1] += last_pool
    level = [fmean(*zip(*pool, strict=True)) for pool in pools for _ in pool]
    top = max(0.0, 1 - (len(positions) - 1) * gap)
    return [min(max(position, 0.0), top) + number * gap for number, position in enumerate(level)]
