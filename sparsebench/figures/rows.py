"""Panels whose vertical axis is a list of names: a row each, the first on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsebench.figures.canvas import Canvas

Rows = Sequence[Mapping[str, Any]]


def dress(axes: Axes, rows: Rows, canvas: Canvas) -> list[str]:
    """Name the rows, rule the panel downwards, draw the levels, and give the names in their order."""
    down = [str(name) for name in dict.fromkeys(row[canvas.spec.get("y")] for row in rows)]
    axes.set_yticks(range(len(down)), down)
    axes.set_ylim(canvas.most_rows - 0.4, -0.6)  # rows are as high as those of the panels beside
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    for column in canvas.spec.references:
        for value in {row[column] for row in rows if row[column] is not None}:
            axes.axvline(value, color="black", linewidth=0.8, linestyle=(0, (1, 1.5)), zorder=1)
    return down


def levels(canvas: Canvas) -> list[tuple[str, str, Any]]:
    """The levels, for a legend: label, colour, dashes."""
    return [(label, "black", (0, (1, 1.5))) for label in canvas.spec.references.values()]
