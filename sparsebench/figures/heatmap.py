"""A grid of coloured cells: x across, y down, one colour scale for all panels; cells may carry text and remarks."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Rows

MOST_LABELLED = 14
"""Cells carry their value as text where in no panel a sheet of full width has more than this many side by side."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel. Rows keep the query's order, and so do columns named by words; columns of numbers are sorted."""
    has_texts = bool(canvas.spec.get("text"))
    columns = canvas.categories if has_texts else canvas.categories_of(rows)
    row_names = list(dict.fromkeys(canvas.row_name(row) for row in rows))
    cells = {(row_names.index(canvas.row_name(row)), columns.index(canvas.value(row, "x"))): row for row in rows}
    grid = np.full((len(row_names), len(columns)), np.nan)
    for cell, row in cells.items():
        grid[cell] = canvas.value(row, "value")
    low, high = _range(canvas)
    colours, scale = (
        matplotlib.colormaps[style.TEXT_COLOURS if has_texts else style.VALUE_COLOURS],
        Normalize(low, high),
    )
    if canvas.spec.get("middle"):
        colours, scale = LinearSegmentedColormap.from_list("around", style.DIVERGING_COLOURS), LogNorm(low, high)
    axes.imshow(grid, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    if has_texts:
        for edge in range(1, len(row_names)):
            axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        for edge in range(1, len(columns)):
            axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_yticks(range(len(row_names)), row_names)
    labels = [style.percent(value) if canvas.spec.get("xscale") == "sparsity" else str(value) for value in columns]
    room = (canvas.width / canvas.across_panels - 1.2) / (0.1 + 0.06 * max(map(len, labels)))
    step = max(1, -(-len(columns) // max(1, int(room))))
    axes.set_xticks(range(0, len(columns), step), labels[::step])
    texts: dict[tuple[int, ...], str] = {}
    if has_texts:
        letters = _letters(canvas)
        for cell, row in cells.items():
            text, remark = canvas.value(row, "text"), canvas.value(row, "remark")
            texts[cell] = f"{'' if text is None else text} {letters.get(remark, '')}".strip()
    elif len(canvas.categories) * canvas.across_panels <= MOST_LABELLED * canvas.width / style.WIDTH:
        texts = {
            cell: canvas.label_of(float(value), digits=0) for cell, value in np.ndenumerate(grid) if not np.isnan(value)
        }
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
        axes[0].images[0], ax=axes, fraction=0.03, pad=0.015, aspect=25, label=label, extend=_arrow_ends(canvas)
    )
    bar.outline.set_visible(False)
    if canvas.spec.get("middle"):
        bar.set_ticks(style.log_ticks(*_range(canvas))[0])
        bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_formatter(lambda value, _: canvas.label_of(value))


def _range(canvas: Canvas) -> tuple[float, float]:
    """Return the values that have the first and the last colour."""
    if canvas.spec.get("middle"):
        middle, factor = map(float, canvas.spec.get("middle").split())
        return middle / factor, middle * factor
    if canvas.spec.get("range"):
        low, high = map(float, canvas.spec.get("range").split())
        return low, high
    return _extreme_values(canvas)


def _extreme_values(canvas: Canvas) -> tuple[float, float]:
    values = [canvas.value(row, "value") for row in canvas.rows]
    return min(values), max(values)


def _arrow_ends(canvas: Canvas) -> str:
    """Return the ends at which a colour bar has an arrow: values beyond them have the end's colour."""
    (low, high), (lowest, highest) = _range(canvas), _extreme_values(canvas)
    if lowest < low:
        return "both" if highest > high else "min"
    return "max" if highest > high else "neither"


def _letters(canvas: Canvas) -> dict[str, str]:
    """Return each different remark with its letter: a to z, then aa, bb and so on."""
    remarks = dict.fromkeys(canvas.value(row, "remark") for row in canvas.rows if canvas.value(row, "remark"))
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {remark: letters[index % 26] * (1 + index // 26) for index, remark in enumerate(remarks)}
