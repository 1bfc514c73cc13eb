"""One look for every figure: it must survive greyscale printing and colour-blind eyes, and come out the same every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.figure import Figure

WIDTH = 6.5
"""Inches: a text column."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#8C8C00")
"""Okabe and Ito's palette, darkest contrasts first; their yellow is darkened to be seen on white."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2.5, 1)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
GREY = "#666666"
MAP = "cividis"
"""Even in luminance: dark to light in greyscale as well."""

RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "svg.hashsalt": "sparsebench",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Look:
    """How one series is told from the others: by colour, by marker and by dashes, each of which is enough for a few."""

    colour: str
    marker: str
    dashes: Any
    hatch: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A look for each series, the same for the same list. Up to 440 are different."""
    return {
        name: Look(
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            DASHES[(place + place // len(COLOURS)) % len(DASHES)],
            HATCHES[place % len(HATCHES)],
        )
        for place, name in enumerate(names)
    }


def spread(share: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The sparsity axis: log((s + 0.2) / (1.01 - s)), in which 0, 10, 50, 90, 95 and 99% all stand apart."""
    import numpy as np

    inside = np.clip(share, -0.15, 1.005)
    return np.log((inside + 0.2) / (1.01 - inside))


def gather(place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The inverse of ``spread``."""
    import numpy as np

    odds = np.exp(place)
    return (1.01 * odds - 0.2) / (1 + odds)


def percent(share: float) -> str:
    """A share as a percentage without its sign, with the digits it needs: 0.995 is 99.5."""
    return f"{round(100 * share, 2):g}"


def number(value: float) -> str:
    """A tick's label: no exponent where a person would not write one."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10**power:g}e{power}"
    return f"{value:g}"


def save(figure: Figure, path: Path) -> Path:
    """Write the figure; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata=_METADATA[path.suffix[1:]])
    return path
