"""A grid of coloured cells: x across, y down, one colour scale for all panels; cells may carry text and remarks."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Rows

WRITTEN = 14
"""Cells carry their value as text where in no panel a sheet of full width has more than this many side by side."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel. Rows keep the query's order, and so do columns named by words; columns of numbers are sorted."""
    in_words = bool(canvas.spec.get("text"))
    across = canvas.categories if in_words else canvas.categories_of(rows)
    down = list(dict.fromkeys(canvas.row_name(row) for row in rows))
    cells = {(down.index(canvas.row_name(row)), across.index(canvas.value(row, "x"))): row for row in rows}
    grid = np.full((len(down), len(across)), np.nan)
    for cell, row in cells.items():
        grid[cell] = canvas.value(row, "value")
    low, high = _range(canvas)
    colours, scale = matplotlib.colormaps[style.INK if in_words else style.MAP], Normalize(low, high)
    if canvas.spec.get("middle"):
        colours, scale = LinearSegmentedColormap.from_list("around", style.AROUND), LogNorm(low, high)
    axes.imshow(grid, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    if in_words:
        for edge in range(1, len(down)):
            axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        for edge in range(1, len(across)):
            axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks(range(len(down)), down)
    labels = [style.percent(value) if canvas.spec.get("xscale") == "sparsity" else str(value) for value in across]
    room = (canvas.width / canvas.across_panels - 1.2) / (0.1 + 0.06 * max(map(len, labels)))
    step = max(1, -(-len(across) // max(1, int(room))))
    axes.set_xticks(range(0, len(across), step), labels[::step])
    texts: dict[tuple[int, ...], str] = {}
    if in_words:
        letters = _letters(canvas)
        for cell, row in cells.items():
            text, remark = canvas.value(row, "text"), canvas.value(row, "remark")
            texts[cell] = f"{'' if text is None else text} {letters.get(remark, '')}".strip()
    elif len(canvas.categories) * canvas.across_panels <= WRITTEN * canvas.width / style.WIDTH:
        texts = {cell: canvas.written(float(value), digits=0) for cell, value in np.ndenumerate(grid) if value == value}
    for (row_number, column_number), text in texts.items():
        colour = "white" if style.dark(colours(scale(grid[row_number, column_number]))) else "black"
        axes.text(column_number, row_number, text, ha="center", va="center", fontsize=6.5, color=colour)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Draw one colour bar for all panels, and add the remarks to the small print."""
    canvas.notes += [f"{letter}: {words}" for words, letter in _letters(canvas).items()]
    if canvas.spec.get("text"):
        return  # its cells say in words what their colour means
    label = canvas.spec.get("ylabel", canvas.spec.get("value"))
    axes = [axes for axes, _ in panels]
    bar = canvas.figure.colorbar(
        axes[0].images[0], ax=axes, fraction=0.03, pad=0.015, aspect=25, label=label, extend=_beyond(canvas)
    )
    bar.outline.set_visible(False)
    if canvas.spec.get("middle"):
        bar.set_ticks(style.log_ticks(*_range(canvas))[0])
        bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_formatter(lambda value, _: canvas.written(value))


def _range(canvas: Canvas) -> tuple[float, float]:
    """Return the values that have the first and the last colour."""
    if canvas.spec.get("middle"):
        middle, factor = map(float, canvas.spec.get("middle").split())
        return middle / factor, middle * factor
    if canvas.spec.get("range"):
        low, high = map(float, canvas.spec.get("range").split())
        return low, high
    return _extremes(canvas)


def _extremes(canvas: Canvas) -> tuple[float, float]:
    values = [canvas.value(row, "value") for row in canvas.rows]
    return min(values), max(values)


def _beyond(canvas: Canvas) -> str:
    """Return the ends at which a colour bar has an arrow: values beyond them have the end's colour."""
    (low, high), (lowest, highest) = _range(canvas), _extremes(canvas)
    if lowest < low:
        return "both" if highest > high else "min"
    return "max" if highest > high else "neither"


def _letters(canvas: Canvas) -> dict[str, str]:
    """Return each different remark with its letter: a to z, then aa, bb and so on."""
    remarks = dict.fromkeys(canvas.value(row, "remark") for row in canvas.rows if canvas.value(row, "remark"))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {remark: letters[index % 26] * (1 + index // 26) for index, remark in enumerate(remarks)}
