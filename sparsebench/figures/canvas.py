"""The sheet that every kind of drawing shares: panels, axes, legend, title and small print."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from sparsebench.figures import style
from sparsebench.figures.spec import NAMED_ROWS, FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
Panels = Sequence[tuple["Axes", Rows]]
# Inches: a panel of lines or bars, a heatmap's frame and each of its rows, a forest's points; lines of text by size.
PANEL, FRAME, CELL, POINT = 1.8, 0.55, 0.17, 0.065
TITLE_LINE, NOTE_LINE, LEGEND_LINE = 0.19, 0.14, 0.145
CHARACTER, TITLE_CHARACTER = 0.061, 0.064
HANDLE = 0.5
NARROWEST = {"heatmap": 1.6}
ELSE = 1.9
"""The least width in inches of one of several panels: by kind, and of all other kinds."""
NAME_LINE, NAME_CHARACTER = 9.5, 0.057
"""Points from one name at a panel's edge to the next; inches of a character."""
NAMED = ("line", "curve")
"""Kinds of drawing whose series are lines, which can be named at their ends."""
MOST, SHARE, LEAST = 12, 0.4, 2.3
"""Lines are named directly if a panel has at most ``MOST``, the longest name takes at most ``SHARE`` of a panel's
width, and that width is at least ``LEAST`` inches; otherwise one legend names them for all panels."""


class Canvas:
    """One figure while it is drawn."""

    def __init__(self, spec: FigureSpec, rows: Rows, width: float = style.WIDTH) -> None:
        """``rows`` are the query's, at least one; ``width`` is the sheet's, in inches."""
        from matplotlib.figure import Figure

        self.spec = spec
        self.rows = rows
        bounds = {self.series(row) for row in rows if "bound" in spec.values and row[spec.get("bound")]}
        places = ((self.series(row), row[spec.get("place")]) for row in rows if "place" in spec.values)
        wanted = {name: int(place) for name, place in places if place is not None}
        names = sorted(dict.fromkeys(map(self.series, rows)), key=lambda name: name in bounds)  # grey ones come last
        self.looks = style.looks(names, bounds, wanted)
        self.apart = {self.series(row) for row in rows if "apart" in spec.values and row[spec.get("apart")]}
        self.knee = float(spec.get("knee", "inf"))
        self.facets = list(dict.fromkeys(self.facet(row) for row in rows))
        self.categories = self.categories_of(rows)
        self.width = width
        self.panel_height = PANEL if len(self.facets) > 1 else 1.6 * PANEL
        self.rowing = 0.0
        if spec.kind in NAMED_ROWS:
            self.rowing = CHARACTER * max(len(line) for row in rows for line in self.row_name(row).split("\n"))
        fitting = max(1, int(width / max(NARROWEST.get(spec.kind, ELSE), 1.0 + self.rowing)))
        most = min(int(spec.get("columns", "1" if spec.kind in NAMED_ROWS else "3")), fitting)
        # Four panels stand two by two rather than three and one.
        self.across_panels = most if "row" in spec.values else -(-len(self.facets) // -(-len(self.facets) // most))
        self.figure = Figure(figsize=(width, 4), layout="constrained")
        self.notes = self.spec.get("note").splitlines()
        self._title_lines = textwrap.wrap(spec.title, int(74 * width / style.WIDTH))
        self._xlabel_lines = textwrap.wrap(spec.get("xlabel"), int((width - 0.2) / TITLE_CHARACTER))
        if bounds.intersection(names) and "boundnote" in spec.values:
            self.notes.append(spec.get("boundnote"))
        self.most_rows = 1
        self.direct = False
        self.naming = 0.0
        self._legend: dict[str, Any] | None = None

    def series(self, row: Mapping[str, Any]) -> str:
        """Return the name of a row's series; empty where the figure has none."""
        return str(row[self.spec.get("series")]) if "series" in self.spec.values else ""

    def facet(self, row: Mapping[str, Any]) -> str:
        """Return the name of a row's panel; empty where the figure has no `facet`."""
        return str(row[self.spec.get("facet")]) if "facet" in self.spec.values else ""

    def row_name(self, row: Mapping[str, Any]) -> str:
        """Return the name of the named row that a row belongs to, wrapped where it would take too much of the sheet."""
        return _in_lines(str(row[self.spec.get("y")]), int(SHARE * self.width / CHARACTER))

    def across(self, value: Any) -> Any:
        """Return the position of a value of x on the horizontal axis."""
        return self.categories.index(value) if self.spec.get("xscale") == "category" else value

    def categories_of(self, rows: Rows) -> list[Any]:
        """Return the different values of x: numbers sorted, words in the query's order."""
        found = dict.fromkeys(row[self.spec.get("x")] for row in rows if row[self.spec.get("x")] is not None)
        return list(found) if any(isinstance(value, str) for value in found) else sorted(found)

    def height_of(self, axes: Axes, value: float) -> float:
        """Return the position of a value of y in a panel, from 0 at the bottom to 1 at the top."""
        return float(axes.transLimits.transform(axes.transScale.transform((axes.get_xlim()[0], value)))[1])

    def written(self, value: float, digits: int | None = None) -> str:
        """Return a value of y or of a cell as an axis shows it."""
        if self.spec.get("yscale") == "percent":
            return f"{100 * value:.{digits}f}" if digits is not None else style.percent(value)
        return style.number(value)

    def panels(self) -> Iterator[tuple[Axes, Rows]]:
        """Yield each facet's axes with its rows."""
        by_facet = {name: [row for row in self.rows if self.facet(row) == name] for name in self.facets}
        lines = self._lines(by_facet)
        self.direct = self._names_lines(by_facet.values())
        self.naming = self._room_of_names()
        heights = [self._height([by_facet[name] for name in line]) for line in lines]
        # A title of several lines takes from its panel's height.
        titles = sum(TITLE_LINE * max(self._title(name).count("\n") for name in line) for line in lines)
        self.height = sum(heights) + titles
        grid = self.figure.add_gridspec(len(lines), self.across_panels, height_ratios=heights)
        shared: Axes | None = None
        alike = {axis: self.spec.get(f"{axis}share") == "yes" for axis in "xy"}
        for down, line in enumerate(lines):
            self.most_rows = max(self._rows_of(by_facet[name]) for name in line)
            for across, name in enumerate(line):
                same = {f"share{axis}": shared for axis, yes in alike.items() if yes}
                axes = self.figure.add_subplot(grid[down, across], **same)
                shared = shared or axes
                axes.set_title(self._title(name), pad=4)
                yield axes, by_facet[name]

    def _names_lines(self, panels: Collection[Rows]) -> bool:
        """Whether the series are named beside their lines rather than in a legend."""
        place = self.width / self.across_panels
        most = max(len({self.series(row) for row in rows}) for rows in panels)
        fitting = int((self.panel_height - 0.55) * 72 / NAME_LINE) - len(self.spec.references)
        longest = max(map(len, self.looks)) * NAME_CHARACTER
        named = self.spec.kind in NAMED and "series" in self.spec.values
        return named and most <= min(MOST, fitting) and longest <= SHARE * place and place >= LEAST

    def _room_of_names(self) -> float:
        """Return the inches that the names beside a panel take from its width."""
        longest = max(map(len, self.looks)) if self.direct else 0
        levels = self.spec.references.values() if self.spec.kind in (*NAMED, "scatter") else ()
        return NAME_CHARACTER * max(longest, *map(len, levels), 0) + 0.1

    def _lines(self, by_facet: Mapping[str, Rows]) -> list[list[str]]:
        """Arrange the facets in lines of panels; a new line begins where the width is full and where `row` changes."""
        groups: dict[Any, list[str]] = {}
        for name, rows in by_facet.items():
            groups.setdefault(rows[0][self.spec.get("row")] if "row" in self.spec.values else None, []).append(name)
        most = self.across_panels = min(self.across_panels, max(len(group) for group in groups.values()))
        return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]

    def _height(self, line: Sequence[Rows]) -> float:
        if self.spec.kind in NAMED_ROWS:
            return FRAME + max(self._cell(rows) * self._rows_of(rows) for rows in line)
        return self.panel_height

    def _cell(self, rows: Rows) -> float:
        """Return the height of a named row: room for its name's lines and, in a forest, for a point of each series."""
        points = len({self.series(row) for row in rows}) if self.spec.kind == "forest" else 1
        lines = max(self.row_name(row).count("\n") for row in rows) if self.spec.kind in NAMED_ROWS else 0
        return max(CELL + LEGEND_LINE * lines, POINT * (points + 1))

    def _rows_of(self, rows: Rows) -> int:
        return len({row[self.spec.get("y")] for row in rows})

    def _title(self, name: str) -> str:
        bar = 0.7 if self.spec.kind == "heatmap" and "text" not in self.spec.values else 0.0
        beside = max(0.5, self.rowing + 0.2)
        width = max(8, int(((self.width - bar) / self.across_panels - beside) / TITLE_CHARACTER))
        return "\n".join(
            line for part in name.splitlines() for line in textwrap.wrap(part, width, break_long_words=False)
        )

    def legend(self, line: bool | None, levels: Sequence[tuple[str, str, Any]] = (), joined: bool = True) -> None:
        """Prepare one legend for all panels.

        A series gets a line (only its marker unless ``joined``), a patch (``line`` is False) or no entry (None). Each
        level (label, colour, dashes) gets a rule.
        """
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles: list[Any] = []
        room = int((self.width - 0.2 - HANDLE) / CHARACTER)
        for series, look in self.looks.items():
            if line is None or not series:
                continue
            name = textwrap.fill(series, room)
            if line:
                shape: Any = {
                    "marker": look.marker,
                    "markersize": 4,
                    "markeredgecolor": "white",
                    "markeredgewidth": 0.3,
                }
                dashes: Any = look.dashes if joined and series not in self.apart else "none"
                handles.append(Line2D([], [], color=look.colour, linestyle=dashes, linewidth=1.2, label=name, **shape))
            else:
                edge: Any = {"edgecolor": "white", "linewidth": 0.3}
                handles.append(Patch(facecolor=look.colour, hatch=look.hatch, label=name, **edge))
        for label, colour, dashes in levels:
            handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, label=label))
        widest = max((len(part) for handle in handles for part in handle.get_label().splitlines()), default=1)
        columns = max(1, min(len(handles), int((self.width - 0.2) / (widest * CHARACTER + HANDLE))))
        self._legend = {"handles": handles, "ncols": columns}

    def fit(self) -> None:
        """Give the sheet the height that its content needs."""
        title = TITLE_LINE * len(self._title_lines) + 0.1
        self._bottom = 0.06 + NOTE_LINE * len(self._note_lines)
        lines = sum(handle.get_label().count("\n") + 1 for handle in self._legend["handles"]) if self._legend else 0
        rows = -(-lines // self._legend["ncols"]) if self._legend else 0
        self._legend_top = self._bottom + (LEGEND_LINE * rows + 0.06 if rows else 0.0)
        below = self._legend_top + TITLE_LINE * len(self._xlabel_lines)
        height = title + self.height + 0.25 + below
        self.figure.set_size_inches(self.width, height)
        engine: Any = self.figure.get_layout_engine()
        sides = 0.015  # room for one more digit: ticks are chosen after the panels have their size
        engine.set(
            rect=(sides, below / height, 1 - 2 * sides, (height - title - below) / height), w_pad=0.03, h_pad=0.05
        )

    def close(self) -> None:
        """Fit the sheet, lay the panels out, and add title, legend and small print."""
        self.fit()
        self._settle()
        left, height = 0.06 / self.width, self.figure.get_figheight()
        self.figure.text(
            left, 1 - 0.06 / height, "\n".join(self._title_lines), fontsize=9.5, fontweight="bold", va="top"
        )
        xlabel = "\n".join(self._xlabel_lines)
        self.figure.text(0.5, (self._legend_top + 0.05) / height, xlabel, ha="center", va="bottom")
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
    def _note_lines(self) -> list[str]:
        return [line for note in self.notes for line in textwrap.wrap(note, int(130 * self.width / style.WIDTH))]


@cache
def _in_lines(text: str, width: int) -> str:
    """Wrap a row's name; cached, because thousands of samples share one."""
    return textwrap.fill(text, width)


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style while a figure is drawn."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a person's own matplotlibrc must not change a figure
        parameters: Any = matplotlib.rcParams
        parameters.update(style.RC)
        yield
