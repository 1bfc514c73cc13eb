"""One look for every figure: it must survive greyscale printing and colour-blind eyes, and come out the same every time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparsebench.paths import refuse_link

WIDTH, COLUMN = 6.5, 3.3
"""Inches: the whole width of a page, and one of its two columns."""
COLOURS = (
    "#0072B2", "#00305E", "#3D9BD9", "#5B6FD6", "#7A99B8",  # zeros, and the methods that make them: blues
    "#C24E00", "#7A3000", "#E69F00",  # fewer bits: oranges
    "#009E73", "#882255", "#8C8C00", "#CC79A7", "#000000", "#8E5AA8", "#44AA99", "#117733",  # all else
)  # fmt: skip
"""A series' place is its number here. The colours of a family differ in lightness, so that they do in greyscale too."""
OTHERS = 8
"""The place of the first series that asks for none: such as models, tasks, sparsities and engines."""
MARKERS = ("o", "^", "D", "P", "v", "s", "X", "<")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2.5, 1)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
GREY = "#666666"
BACKGROUND_GREY = "#999999"
"""The grey of series in the background (`bound`)."""
PALE_GREY = "#F1F1F1"
"""The background of what is packed together above a knee; also the rules between the rows of a forest."""
PACKED = 0.35
"""The length, in decades, of the first decade above a knee; the next two together take as much, then the next four."""
TICK_DIGITS: tuple[tuple[float, Sequence[int]], ...] = (
    (2.5, (1,)), (1.4, (1, 3)), (0.8, (1, 2, 5)), (0.45, (1, 2, 3, 5, 7)), (0, range(1, 10)),
)  # fmt: skip
"""By the least length of a log axis in decades, the leading digits that have a label on it."""
NEAR_TICKS, FAR_TICKS = (1e5, 1e6), (1e6, 1e10, 1e20, 1e50, 1e150, 1e300)
"""Ticks above a knee, on an axis that ends below 1e7 and on a longer one."""
VALUE_COLOURS, TEXT_COLOURS = "cividis_r", "Greys"
"""Colour maps of even luminance, light to dark in greyscale as well: high values are dark, like ink."""
DIVERGING_COLOURS = ("#5AAE61", "#F7F7F7", "#40004B")
"""Colours around a middle. In greyscale too the highest are the darkest, and the lowest a middle grey."""

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans", "font.size": 8,
    "text.parse_math": False,  # a label from the ledger is plain text, even if it holds dollar signs
    "axes.titlesize": 8, "axes.titlelocation": "left", "axes.labelsize": 8, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
    "grid.color": "#E3E3E3", "grid.linewidth": 0.5, "xtick.labelsize": 7.5, "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "legend.fontsize": 7.5, "legend.frameon": False, "hatch.linewidth": 0.5,
    "figure.dpi": 200, "savefig.dpi": 200,  # equal, because the widths of glyphs depend on the resolution
    "svg.hashsalt": "sparsebench", "svg.fonttype": "path", "pdf.fonttype": 42,
}  # fmt: skip
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class FigureLayout:
    """What a paper may want otherwise: the height in inches (None: as needed), a font's family, title and small print."""

    height: float | None = None
    font: str | None = None
    title: bool = True
    note: bool = True


PLAIN = FigureLayout()


@dataclass(frozen=True)
class SeriesStyle:
    """How one series is told from the others: by colour, by marker and by dashes, each of which is enough for a few."""

    colour: str
    marker: str
    dashes: Any
    hatch: str


def series_styles(
    names: Sequence[str], background: Collection[str] = (), places: Mapping[str, int] | None = None
) -> dict[str, SeriesStyle]:
    """Return a style for each series, the same for the same list. Up to 80 are different; ``background`` is grey.

    ``places`` gives a series its place among the styles, else it is ``OTHERS``. Series with the same place in several
    figures look alike in them, unless an earlier series has the colour.
    """
    foreground = [name for name in names if name not in background]
    grey = [name for name in names if name in background]
    numbers = _numbered(foreground, places or {}) | _numbered(grey, places or {})
    return {
        name: SeriesStyle(
            BACKGROUND_GREY if name in background else COLOURS[numbers[name] % len(COLOURS)],
            MARKERS[numbers[name] % len(MARKERS)],
            DASHES[(numbers[name] % len(MARKERS) + numbers[name] // len(COLOURS)) % len(DASHES)],
            HATCHES[numbers[name] % len(MARKERS) % len(HATCHES)],
        )
        for name in names
    }


def _numbered(names: Sequence[str], places: Mapping[str, int]) -> dict[str, int]:
    """Return for each of ``names`` its place or, where that or its colour is taken, the next free one."""
    numbers: dict[str, int] = {}
    for name in sorted(names, key=lambda name: places.get(name, OTHERS)):
        used = set(numbers.values())
        colours = {number % len(COLOURS) for number in used} if len(used) < len(COLOURS) else set()
        candidates = itertools.count(places.get(name, OTHERS))
        numbers[name] = next(place for place in candidates if place not in used and place % len(COLOURS) not in colours)
    return numbers


def sparsity_to_axis(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return positions on the sparsity axis, log((s + 0.2) / (1.01 - s)): 0, 10, 50, 90, 95 and 99% all stand apart."""
    inside = np.clip(share, -0.15, 1.005)
    return np.log((inside + 0.2) / (1.01 - inside))


def axis_to_sparsity(position: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the inverse of ``sparsity_to_axis``."""
    odds = np.exp(position)
    return (1.01 * odds - 0.2) / (1 + odds)


def value_to_axis(value: npt.NDArray[np.float64], knee: float = math.inf) -> npt.NDArray[np.float64]:
    """Return positions on a log axis, in decades, packed ever closer above ``knee`` so that no number is too large."""
    decades = np.log10(np.clip(value, 1e-300, None))
    above = np.clip(decades - math.log10(knee), 0, None)
    return np.minimum(decades, math.log10(knee)) + PACKED * np.log2(1 + above)


def axis_to_value(position: npt.NDArray[np.float64], knee: float = math.inf) -> npt.NDArray[np.float64]:
    """Return the inverse of ``value_to_axis``, up to 1e308."""
    border = math.log10(knee)
    above = np.exp2(np.clip((np.asarray(position) - border) / PACKED, 0, 12)) - 1
    return np.power(10.0, np.clip(np.minimum(position, border) + above, -300, 308))


def log_ticks(low: float, high: float, knee: float = math.inf) -> tuple[list[float], list[float]]:
    """Return the major and minor ticks of a log axis from ``low`` to ``high``; at least two major ones, but few."""
    top = min(high, knee)
    decades = math.log10(top / low) if top > low else 0.0
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(max(top, low))) + 1)
    digits = next(choice for fewest_decades, choice in TICK_DIGITS if decades >= fewest_decades)
    stride = max(1, round(decades / 8))
    major = [digit * 10.0**power for power in powers if power % stride == 0 for digit in digits]
    major = [value for value in major if low <= value <= top]
    beyond_knee = FAR_TICKS if high >= 1e7 else NEAR_TICKS
    major += [value for value in (knee, *beyond_knee) if max(low, knee) <= value <= high and value not in major]
    if len(major) < 2:
        major = [float(value) for value in MaxNLocator(4).tick_values(low, high) if low <= value <= high]
    minor = [digit * 10.0**power for power in powers for digit in range(1, 10)] if stride == 1 else []
    return major, [value for value in minor if low <= value <= top and value not in major]


def dark(colour: Sequence[float]) -> bool:
    """Whether white is easier to read on a colour (red, green, blue from 0 to 1) than black."""
    red, green, blue, *_ = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.5


def percent(share: float) -> str:
    """Return a share as a percentage without the % sign, with at most two digits behind the point: 0.995 is 99.5."""
    return f"{round(100 * share, 2):g}"


def number(value: float) -> str:
    """Return a tick's label, with an exponent only for values from 1e5 on or below 1e-3."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        digits, power = f"{value:.5e}".split("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(refuse_link(path), metadata=_METADATA[path.suffix[1:]])
    return path
