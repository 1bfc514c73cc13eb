"""A grid of coloured cells: x across, y down, one colour scale for all panels; cells may carry text and remarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Panels, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize


WRITTEN = 14
"""Cells carry their value as text where a sheet of full width has at most this many side by side."""


def panel(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Draw one panel. Rows keep the query's order, and so do columns named by words; columns of numbers are sorted."""
    import numpy as np

    spec = canvas.spec
    across = canvas.categories if "text" in spec.values else canvas.categories_of(rows)
    down = list(dict.fromkeys(canvas.row_name(row) for row in rows))
    grid = np.full((len(down), len(across)), np.nan)
    for row in rows:
        grid[down.index(canvas.row_name(row)), across.index(row[spec.get("x")])] = row[spec.get("value")]
    colours, scale = _colours(canvas)
    axes.imshow(grid, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    axes.grid(False)
    if "text" in spec.values:
        for edge in range(1, len(down)):
            axes.axhline(edge - 0.5, color="white", linewidth=1.5)
        for edge in range(1, len(across)):
            axes.axvline(edge - 0.5, color="white", linewidth=1.5)
    axes.tick_params(length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_yticks(range(len(down)), down)
    labels = [style.percent(value) if spec.get("xscale") == "sparsity" else str(value) for value in across]
    room = (canvas.width / canvas.across_panels - 1.2) / (0.1 + 0.06 * max(map(len, labels)))
    step = max(1, -(-len(across) // max(1, int(room))))
    axes.set_xticks(range(0, len(across), step), labels[::step])
    if "text" in spec.values:
        letters, texts = _letters(canvas), {}
        for row in rows:
            shown = f"{row[spec.get('text')] or ''} {letters.get(row.get(spec.get('remark')) or '', '')}"
            texts[down.index(canvas.row_name(row)), across.index(row[spec.get("x")])] = shown.strip()
    elif len(across) * canvas.across_panels <= WRITTEN * canvas.width / style.WIDTH:
        texts = {at: canvas.written(float(value), digits=0) for at, value in np.ndenumerate(grid) if value == value}
    else:
        return
    for (row_at, column_at), text in texts.items():
        colour = "white" if style.dark(colours(scale(grid[row_at, column_at]))) else "black"
        axes.text(column_at, row_at, text, ha="center", va="center", fontsize=6.5, color=colour)


def finish(panels: Panels, canvas: Canvas) -> None:
    """Draw one colour bar for all panels, and add the remarks to the small print."""
    canvas.notes += [f"{letter}: {words}" for words, letter in _letters(canvas).items()]
    if "text" in canvas.spec.values:
        return  # its cells say in words what their colour means
    label = canvas.spec.get("ylabel", canvas.spec.get("value"))
    axes = [axes for axes, _ in panels]
    bar = canvas.figure.colorbar(
        axes[0].images[0], ax=axes, fraction=0.03, pad=0.015, aspect=25, label=label, extend=_beyond(canvas)
    )
    bar.outline.set_visible(False)
    if "middle" in canvas.spec.values:
        bar.set_ticks(style.log_ticks(*_range(canvas))[0])
        bar.minorticks_off()
    bar.ax.tick_params(length=0)
    bar.ax.yaxis.set_major_formatter(lambda value, _: canvas.written(value))


def _colours(canvas: Canvas) -> tuple[Colormap, Normalize]:
    """Return the colour map and the scale from values to it."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize

    low, high = _range(canvas)
    if "middle" in canvas.spec.values:
        return LinearSegmentedColormap.from_list("around", style.AROUND), LogNorm(low, high)
    return matplotlib.colormaps[style.INK if "text" in canvas.spec.values else style.MAP], Normalize(low, high)


def _range(canvas: Canvas) -> tuple[float, float]:
    """Return the values that have the first and the last colour."""
    if "middle" in canvas.spec.values:
        middle, factor = map(float, canvas.spec.get("middle").split())
        return middle / factor, middle * factor
    if "range" in canvas.spec.values:
        low, high = map(float, canvas.spec.get("range").split())
        return low, high
    return _found(canvas)


def _found(canvas: Canvas) -> tuple[float, float]:
    values = [row[canvas.spec.get("value")] for row in canvas.rows]
    return min(values), max(values)


def _beyond(canvas: Canvas) -> str:
    """Return the ends at which a colour bar has an arrow: values beyond them have the end's colour."""
    (low, high), (least, most) = _range(canvas), _found(canvas)
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((least < low, most > high), "neither")


def _letters(canvas: Canvas) -> dict[str, str]:
    """Return each different remark with its letter: a to z, then aa, bb and so on."""
    if "remark" not in canvas.spec.values:
        return {}
    found = dict.fromkeys(row[canvas.spec.get("remark")] for row in canvas.rows if row[canvas.spec.get("remark")])
    letters = "abcdefghijklmnopqrstuvwxyz"
    return {words: letters[at % 26] * (1 + at // 26) for at, words in enumerate(found)}
