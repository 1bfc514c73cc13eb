"""The sheet that every kind of drawing shares: panels, axes, legend, title and small print."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style
from sparsebench.figures.spec import Spec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
# Inches: a panel of lines or bars, a heatmap's frame and each of its rows, lines of text by size.
PANEL, FRAME, CELL = 1.8, 0.55, 0.17
TITLE_LINE, NOTE_LINE, LEGEND_LINE = 0.19, 0.14, 0.145
CHARACTER = 0.061
HANDLE = 0.5
FIRST = (0.0, 0.99, 0.5, 0.9, 0.95, 0.1)
"""Sparsities that keep their tick label where there is no room for all."""


class Canvas:
    """One figure while it is drawn."""

    def __init__(self, spec: Spec, rows: Rows) -> None:
        """``rows`` are the query's, at least one."""
        from matplotlib.figure import Figure

        self.spec = spec
        self.rows = rows
        bounds = {self.series(row) for row in rows if "bound" in spec.values and row[spec.get("bound")]}
        self.looks = style.looks(list(dict.fromkeys(self.series(row) for row in rows)), bounds)
        self.knee = float(spec.get("knee", "inf"))
        self.facets = list(dict.fromkeys(self.facet(row) for row in rows))
        self.categories = sorted({row[spec.get("x")] for row in rows if row[spec.get("x")] is not None})
        most = int(spec.get("columns", "1" if spec.kind == "heatmap" else "3"))
        # Four panels stand two by two rather than three and one.
        self.across_panels = most if "row" in spec.values else -(-len(self.facets) // -(-len(self.facets) // most))
        self.figure = Figure(figsize=(style.WIDTH, 4), layout="constrained")
        self.notes = self.spec.get("note").splitlines()
        self._legend: dict[str, Any] | None = None

    def series(self, row: Mapping[str, Any]) -> str:
        """The name of a row's series, empty where the figure has none."""
        return str(row[self.spec.get("series")]) if "series" in self.spec.values else ""

    def facet(self, row: Mapping[str, Any]) -> str:
        """The name of a row's panel."""
        return str(row[self.spec.get("facet")]) if "facet" in self.spec.values else ""

    def across(self, value: Any) -> Any:
        """Where a value of x lies on the horizontal axis."""
        return self.categories.index(value) if self.spec.get("xscale") == "category" else value

    def upward(self, value: float) -> float:
        """Where a value of y lies on the vertical axis, in the axis' own unit."""
        import numpy as np

        return float(style.fold(np.array(value), self.knee)) if self.spec.get("yscale") == "log" else value

    def written(self, value: float, digits: int | None = None) -> str:
        """A value of y or of a cell, as an axis shows it."""
        if self.spec.get("yscale") == "percent":
            return f"{100 * value:.{digits}f}" if digits is not None else style.percent(value)
        return style.number(value)

    def panels(self) -> Iterator[tuple[Axes, Rows]]:
        """Each facet's axes, scaled and labelled once its content is drawn, with its rows."""
        by_facet = {name: [row for row in self.rows if self.facet(row) == name] for name in self.facets}
        lines = self._lines(by_facet)
        heights = [self._height([by_facet[name] for name in line]) for line in lines]
        # A title of two lines takes from its panel's height.
        titles = sum(TITLE_LINE * max(self._title(name).count("\n") for name in line) for line in lines)
        self.height = sum(heights) + titles
        grid = self.figure.add_gridspec(len(lines), self.across_panels, height_ratios=heights)
        shared: Axes | None = None
        for down, line in enumerate(lines):
            for across, name in enumerate(line):
                axes = self.figure.add_subplot(
                    grid[down, across], sharey=shared if self.spec.get("yshare") == "yes" else None
                )
                shared = shared or axes
                yield axes, by_facet[name]
                axes.set_title(self._title(name), pad=4)
                self._dress(axes, left=across == 0)

    def _lines(self, by_facet: Mapping[str, Rows]) -> list[list[str]]:
        """The facets in lines of panels: broken where they fill the width, and where `row` changes."""
        groups: dict[Any, list[str]] = {}
        for name, rows in by_facet.items():
            groups.setdefault(rows[0][self.spec.get("row")] if "row" in self.spec.values else None, []).append(name)
        most = self.across_panels = min(self.across_panels, max(len(group) for group in groups.values()))
        return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]

    def _height(self, line: Sequence[Rows]) -> float:
        if self.spec.kind == "heatmap":
            return FRAME + CELL * max(len({row[self.spec.get("y")] for row in rows}) for rows in line)
        return PANEL if len(self.facets) > 1 else 1.6 * PANEL

    def _title(self, name: str) -> str:
        width = int(6 / self.across_panels / CHARACTER)
        return "\n".join(line for part in name.splitlines() for line in textwrap.wrap(part, width))

    def _dress(self, axes: Axes, left: bool) -> None:
        spec = self.spec
        if spec.kind == "heatmap":
            return
        if left:
            axes.set_ylabel(spec.get("ylabel"))
        self._scale_x(axes)
        if spec.get("yscale") == "log":
            self._scale_y(axes)
        elif "ymin" in spec.values or spec.kind == "bars":
            bottom = float(spec.get("ymin", "0"))
            axes.set_ylim(bottom, axes.get_ylim()[1] + 0.05 * (axes.get_ylim()[1] - bottom))
        axes.yaxis.set_major_formatter(lambda value, _: self.written(value))

    def _scale_y(self, axes: Axes) -> None:
        """A log axis of our own: labelled ticks however short or long it is, and room for the knee."""
        import numpy as np

        axes.set_yscale(
            "function", functions=(partial(style.fold, knee=self.knee), partial(style.unfold, knee=self.knee))
        )
        ends = style.fold(np.array(axes.dataLim.intervaly), self.knee)
        ends += np.array([-0.06, 0.08]) * max(float(np.ptp(ends)), 0.05)
        low, high = (float(end) for end in style.unfold(ends, self.knee))
        axes.set_ylim(low, high)
        major, minor = style.log_ticks(low, high, self.knee)
        axes.set_yticks(major)
        axes.set_yticks(minor, minor=True)
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        if high > self.knee:
            axes.axhspan(self.knee, high, color=style.GROUND, linewidth=0, zorder=0)

    def _scale_x(self, axes: Axes) -> None:
        import numpy as np

        kind = self.spec.get("xscale", "linear")
        if self.spec.kind == "bars" or kind == "category":
            names = [style.percent(value) if kind == "sparsity" else str(value) for value in self.categories]
            axes.set_xticks(range(len(names)), names)
            axes.tick_params(axis="x", length=0)
        elif kind == "sparsity":
            axes.set_xscale("function", functions=(style.spread, style.gather))
            kept = self._room_for_ticks()
            axes.set_xticks(kept, [style.percent(value) for value in kept])
            axes.set_xticks([value for value in self.categories if value not in kept], minor=True)
            ends = style.spread(np.array([min(self.categories), max(self.categories)]))
            left, right = style.gather(ends + np.array([-0.04, 0.04]) * max(float(np.ptp(ends)), 1.0))
            axes.set_xlim(float(left), float(right))
        elif kind == "log":
            axes.set_xscale("log")

    def _room_for_ticks(self) -> list[float]:
        """The sparsities whose labels fit side by side."""
        import numpy as np

        places = style.spread(np.array(self.categories, dtype=float))
        width = style.WIDTH / self.across_panels - 0.6
        scale = width / max(float(np.ptp(places)), 1e-9)
        labels = [style.percent(value) for value in self.categories]
        order = sorted(range(len(places)), key=lambda at: (_rank(self.categories[at]), at))
        kept: list[int] = []
        for at in order:
            if all(abs(places[at] - places[other]) * scale > _apart(labels[at], labels[other]) for other in kept):
                kept.append(at)
        return [self.categories[at] for at in sorted(kept)]

    def legend(self, line: bool, levels: Sequence[tuple[str, str, Any]] = ()) -> None:
        """One legend for all panels: a line or a patch a series, and a rule a level (label, colour, dashes)."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles: list[Any] = []
        for name, look in self.looks.items():
            if line:
                shape: Any = {
                    "marker": look.marker,
                    "markersize": 4,
                    "markeredgecolor": "white",
                    "markeredgewidth": 0.3,
                }
                handles.append(
                    Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.2, label=name, **shape)
                )
            elif name:
                handles.append(
                    Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0.3, label=name)
                )
        for label, colour, dashes in levels:
            handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, label=label))
        widest = max((len(handle.get_label()) for handle in handles), default=1)
        columns = max(1, min(len(handles), int((style.WIDTH - 0.2) / (widest * CHARACTER + HANDLE))))
        self._legend = {"handles": handles, "ncols": columns}

    def fit(self) -> None:
        """Give the sheet the height that its content needs."""
        title = TITLE_LINE * len(self._title_lines) + 0.1
        self._bottom = 0.06 + NOTE_LINE * len(self._note_lines)
        rows = -(-len(self._legend["handles"]) // self._legend["ncols"]) if self._legend else 0
        self._legend_top = self._bottom + (LEGEND_LINE * rows + 0.06 if rows else 0.0)
        below = self._legend_top + (TITLE_LINE if self.spec.get("xlabel") else 0.0)
        height = title + self.height + 0.25 + below
        self.figure.set_size_inches(style.WIDTH, height)
        engine: Any = self.figure.get_layout_engine()
        sides = 0.015  # room for one more digit: ticks are chosen after the panels have their size
        engine.set(
            rect=(sides, below / height, 1 - 2 * sides, (height - title - below) / height), w_pad=0.03, h_pad=0.05
        )

    def close(self) -> None:
        """Fit the sheet, lay the panels out, and add title, legend and small print."""
        self.fit()
        self._settle()
        left, height = 0.06 / style.WIDTH, self.figure.get_figheight()
        self.figure.text(
            left, 1 - 0.06 / height, "\n".join(self._title_lines), fontsize=9.5, fontweight="bold", va="top"
        )
        self.figure.text(0.5, (self._legend_top + 0.05) / height, self.spec.get("xlabel"), ha="center", va="bottom")
        if self._note_lines:
            self.figure.text(
                left, 0.05 / height, "\n".join(self._note_lines), fontsize=6.5, color=style.GREY, va="bottom"
            )
        if self._legend:
            self.figure.legend(
                **self._legend, loc="lower left", bbox_to_anchor=(left, self._bottom / height), borderaxespad=0, borderpad=0,
                columnspacing=1.2, handlelength=2.6, handletextpad=0.5, labelspacing=0.35,
            )  # fmt: skip

    def _settle(self) -> None:
        """Lay out once and round: the solver's last digits differ from run to run, and the files would differ with them."""
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axes in self.figure.axes:
            x, y, width, height = (round(value, 4) for value in axes.get_position().bounds)
            axes.set_position((x, y, width, height))

    @property
    def _title_lines(self) -> list[str]:
        return textwrap.wrap(self.spec.title, 74)

    @property
    def _note_lines(self) -> list[str]:
        return [line for note in self.notes for line in textwrap.wrap(note, 130)]


def _apart(first: str, second: str) -> float:
    """Inches between the middles of two tick labels that just do not touch."""
    return 0.045 + 0.029 * (len(first) + len(second))


def _rank(sparsity: float) -> int:
    return FIRST.index(sparsity) if sparsity in FIRST else len(FIRST)


@contextmanager
def styled() -> Iterator[None]:
    """The style, for as long as a figure is drawn."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own matplotlibrc must not change a figure
        parameters: Any = matplotlib.rcParams
        parameters.update(style.RC)
        yield
