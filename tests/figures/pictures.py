"""Names of shipped figures, rows to draw, and what overlaps in a picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsebench.ledger.query import Table

Drawn = Callable[..., Any]
"""Draws rows by a figure made for them."""
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 0.95, 0.99)
NAMES = [
    "allocation", "block_error", "bytes_read", "calibration", "engines", "failures", "kinds", "kinds_time", "magnitudes",
    "memory", "near_zero", "pareto_bytes", "perplexity", "recovered", "removed", "retained", "rms", "score", "shapes",
    "size", "structure", "training",
]  # fmt: skip
SAMPLED = [
    name
    for name in NAMES
    if name not in ("block_error", "bytes_read", "kinds", "kinds_time", "recovered", "removed", "shapes", "training")
]
"""Figures that the sample has rows for: it has zeros only, and nothing was trained."""
SPECS = Path(__file__).parent / "specs"
"""Headers that no shipped figure has any more, for what they make the drawing do."""


def rows_of(series: int, facets: int) -> list[dict[str, Any]]:
    """Lines that fall and cross, with intervals, chance and dense."""
    generator = np.random.default_rng(series)
    found = []
    for facet in range(facets):
        for name in range(series):
            for sparsity in SPARSITIES:
                score = 0.7 - 0.2 * sparsity**3 + 0.02 * generator.normal()
                found.append(
                    {
                        "sparsity": sparsity, "score": score, "low": score - 0.03, "high": score + 0.03, "chance": 0.5,
                        "dense": 0.7, "int8": 0.69, "line": f"method-{name}/layer", "bound": name == 2, "place": name,
                        "apart": False,
                        "panel": f"a-model-with-a-long-name-{facet} (dequantized)\ntask (acc)",
                    }
                )  # fmt: skip
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a query answers them."""
    return Table(tuple(rows[0]), tuple(tuple(row.values()) for row in rows))


def overlaps(figure: Any) -> list[str]:
    """Texts that leave the sheet, and pairs of texts that touch."""
    from matplotlib.text import Text

    figure.draw_without_rendering()
    undrawn = {id(label) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in _beyond(axis)}
    boxes = [
        (text.get_text(), Text.get_window_extent(text))  # without an annotation's thread
        for text in figure.findobj(Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in undrawn
    ]
    sheet = figure.bbox
    wrong = [
        f"{text!r} is clipped"
        for text, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > sheet.x1 + 1 or box.y1 > sheet.y1 + 1
    ]
    for place, (text, box) in enumerate(boxes):
        for other, rival in boxes[place + 1 :]:
            across = min(box.x1, rival.x1) - max(box.x0, rival.x0)
            down = min(box.y1, rival.y1) - max(box.y0, rival.y0)
            if across > 1 and down > 1.5:
                wrong.append(f"{text!r} lies on {other!r}")
    return wrong


def _beyond(axis: Any) -> list[Any]:
    """Labels of the spare ticks outside of an axis' limits, which are not drawn."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-6 * (high - low)
    return [tick.label1 for tick in axis.get_major_ticks() if not low - slack <= tick.get_loc() <= high + slack]


def exploding(series: int, facets: int, dense: float = 25.0, worst: float = 1e9) -> list[dict[str, Any]]:
    """Perplexities from ``dense`` to ``worst``: lines of different lengths, holes, missing intervals."""
    found = []
    for facet in range(facets):
        for name in range(series):
            for place, sparsity in enumerate(SPARSITIES[: len(SPARSITIES) - name % 3]):
                score = dense * (worst / dense) ** (sparsity ** (1 + name))
                known = (place + name) % 4 != 3
                found.append(
                    {
                        "sparsity": sparsity, "score": score if known else None, "low": score / 1.1 if place % 2 else None,
                        "high": min(score * 1.1, 1.79e308) if place % 2 else None, "dense": dense,
                        "collapsed": 1e4 if worst > 1e4 else None, "line": f"method+owl/{name}", "bound": name == 1,
                        "place": name, "panel": f"a-model-{facet} (dequantized)\nperplexity, 172 windows", "apart": False,
                    }
                )  # fmt: skip
    return found


def labels(axes: Any) -> list[str]:
    """What is written along the vertical axis, from below."""
    undrawn = {id(label) for label in _beyond(axes.yaxis)}
    return [label.get_text() for label in axes.get_yticklabels() if id(label) not in undrawn]
