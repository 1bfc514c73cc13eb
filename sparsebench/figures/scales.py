"""The two axes of a panel: scales, limits and ticks that fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes

from sparsebench.figures import style
from sparsebench.figures.canvas import Canvas, Rows

LABELLED_FIRST = (0.0, 1.0, 0.99, 0.5, 0.9, 0.95, 0.1)
"""Sparsities that keep their tick label where there is no room for all, the most important first."""


def finish_axes(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Scale and label the axes of a panel whose content is drawn."""
    spec = canvas.spec
    if spec.kind == "heatmap":
        return
    subplot = axes.get_subplotspec()
    if subplot and subplot.is_first_col():
        axes.set_ylabel(spec.get("ylabel"))
    scale_x(axes, rows, canvas)
    if canvas.named_rows:
        return
    if spec.get("yscale") == "log":
        scale_y_log(axes, canvas)
    elif (spec.get("ymin") or spec.kind == "bars") and axes.get_autoscaley_on():
        # Of the panels that share the axis the first one sets its limits, which ends its autoscaling.
        bottom = float(spec.get("ymin") or min(0.0, _data_range(axes, "y")[0]))
        axes.set_ylim(bottom, axes.get_ylim()[1] + 0.05 * (axes.get_ylim()[1] - bottom))
    axes.yaxis.set_major_formatter(lambda value, _: canvas.label_of(value))


def scale_y_log(axes: Axes, canvas: Canvas) -> None:
    """Make the vertical axis a log axis that has labelled ticks at any length and packs what is above the knee."""
    knee = canvas.knee
    axes.set_yscale(
        "function", functions=(partial(style.value_to_axis, knee=knee), partial(style.axis_to_value, knee=knee))
    )
    low, high = _log_limits(_positive_range(axes, "y"), knee, (-0.06, 0.08))
    axes.set_ylim(low, high)
    major, minor = style.log_ticks(low, high, knee)
    axes.set_yticks(major)
    axes.set_yticks(minor, minor=True)
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    if high > knee:
        axes.axhspan(knee, high, color=style.PALE_GREY, linewidth=0, zorder=0)


def scale_x(axes: Axes, rows: Rows, canvas: Canvas) -> None:
    """Scale and label the horizontal axis."""
    kind = canvas.spec.get("xscale", "linear")
    if canvas.spec.kind == "bars" or kind == "category":
        values = canvas.categories_of(rows) if canvas.spec.kind == "bars" else canvas.categories
        names = [style.percent(value) if kind == "sparsity" else str(value) for value in values]
        fitting = _fitting_labels(range(len(names)), names, canvas)
        axes.set_xticks(fitting, [names[at] for at in fitting])
        axes.tick_params(axis="x", length=0)
    elif kind == "sparsity":
        _scale_sparsity(axes, canvas)
    elif kind == "log":
        low, high = _log_limits(_positive_range(axes, "x"), float("inf"), (-0.07, 0.07))
        axes.set_xscale("function", functions=(style.value_to_axis, style.axis_to_value))
        axes.set_xlim(low, high)
        major, minor = style.log_ticks(low, high)
        fitting = _fitting_labels([math.log10(value) for value in major], list(map(style.number, major)), canvas)
        axes.set_xticks([major[at] for at in fitting])
        axes.set_xticks(minor, minor=True)
        axes.xaxis.set_major_formatter(lambda value, _: style.number(value))
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        if all(isinstance(canvas.value(row, "x"), int) for row in rows):
            axes.locator_params(axis="x", integer=True)  # there is no layer 0.5
        axes.xaxis.set_major_formatter(lambda value, _: style.number(round(value, 12)))


def _data_range(axes: Axes, which: str) -> tuple[float, float]:
    """Return the least and the greatest value drawn along one axis, in all panels that share it."""
    shared_axes = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    lows, highs = zip(*(getattr(sharing.dataLim, f"interval{which}") for sharing in shared_axes), strict=True)
    return min(lows), max(highs)


def _positive_range(axes: Axes, which: str) -> tuple[float, float]:
    """Return what ``_data_range`` does, of the values above 0: a log axis has no room for the foot of a bar."""
    shared_axes = getattr(axes, f"get_shared_{which}_axes")().get_siblings(axes)
    return min(getattr(sharing.dataLim, f"minpos{which}") for sharing in shared_axes), _data_range(axes, which)[1]


def _log_limits(interval: tuple[float, float], knee: float, room: tuple[float, float]) -> tuple[float, float]:
    """Return the limits of a log axis around the data; ``room`` is the margins, as shares of the axis' length."""
    ends = style.value_to_axis(np.array(interval), knee)
    ends += np.array(room) * max(float(np.ptp(ends)), 0.05)
    low, high = (float(end) for end in style.axis_to_value(ends, knee))
    return low, high


def _scale_sparsity(axes: Axes, canvas: Canvas) -> None:
    axes.set_xscale("function", functions=(style.sparsity_to_axis, style.axis_to_sparsity))
    values = canvas.categories
    positions = [float(position) for position in style.sparsity_to_axis(np.array(values, dtype=float))]
    ranks = [LABELLED_FIRST.index(value) if value in LABELLED_FIRST else len(LABELLED_FIRST) for value in values]
    labelled = [values[at] for at in _fitting_labels(positions, list(map(style.percent, values)), canvas, ranks)]
    axes.set_xticks(labelled, [style.percent(value) for value in labelled])
    axes.set_xticks([value for value in values if value not in labelled], minor=True)
    ends = np.array([min(positions), max(positions)])
    first_limit, last_limit = style.axis_to_sparsity(ends + np.array([-0.04, 0.04]) * max(float(np.ptp(ends)), 1.0))
    axes.set_xlim(float(first_limit), float(last_limit))


def _fitting_labels(
    positions: Sequence[float], labels: Sequence[str], canvas: Canvas, ranks: Sequence[int] | None = None
) -> list[int]:
    """Return the numbers of the labels that fit side by side, preferring those of a low rank, then the first."""
    width = canvas.width / canvas.across_panels - 0.6 - canvas.name_inches
    scale = width / max(max(positions, default=0) - min(positions, default=0), 1e-9)
    chosen: list[int] = []
    for index in sorted(range(len(positions)), key=lambda index: ranks[index] if ranks else 0):
        # Inches between the centres of two labels; how many they need grows with their characters.
        gaps = ((abs(positions[index] - positions[i]) * scale, len(labels[index] + labels[i])) for i in chosen)
        if all(gap > 0.045 + 0.029 * characters for gap, characters in gaps):
            chosen.append(index)
    return sorted(chosen)
