"""A grid of coloured cells: x across, y down, one scale of colour for all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsebench.figures.canvas import Canvas

Rows = Sequence[Mapping[str, Any]]
WRITTEN = 14
"""Cells carry their value as text where there are at most so many across the whole width."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel; rows keep the query's order, columns are sorted."""
    import numpy as np

    spec = canvas.spec
    across = sorted({row[spec.get("x")] for row in rows})
    down = list(dict.fromkeys(row[spec.get("y")] for row in rows))
    grid = np.full((len(down), len(across)), np.nan)
    for row in rows:
        grid[down.index(row[spec.get("y")]), across.index(row[spec.get("x")])] = row[spec.get("value")]
    low, high = _range(canvas)
    axes.imshow(grid, cmap=style.MAP, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_yticks(range(len(down)), [str(value) for value in down])
    step = max(1, -(-len(across) * canvas.across_panels // 24))
    axes.set_xticks(range(0, len(across), step), [str(value) for value in across[::step]])
    if len(across) * canvas.across_panels <= WRITTEN:
        _write(axes, grid, (low, high), canvas)


def finish(panels: Sequence[Axes], canvas: Canvas) -> None:
    """One colour bar for all panels."""
    label = canvas.spec.get("ylabel", canvas.spec.get("value"))
    bar = canvas.figure.colorbar(panels[0].images[0], ax=list(panels), fraction=0.03, pad=0.015, aspect=25, label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_formatter(lambda value, _: canvas.written(value))


def _range(canvas: Canvas) -> tuple[float, float]:
    values = [row[canvas.spec.get("value")] for row in canvas.rows if row[canvas.spec.get("value")] is not None]
    return min(values), max(values)


def _write(axes: Axes, grid: Any, limits: tuple[float, float], canvas: Canvas) -> None:
    middle = sum(limits) / 2
    for down in range(grid.shape[0]):
        for across in range(grid.shape[1]):
            value = grid[down, across]
            if value == value:  # a cell without a row is NaN
                colour = "white" if value < middle else "black"
                axes.text(
                    across, down, canvas.written(value, digits=0), ha="center", va="center", fontsize=6.5, color=colour
                )
