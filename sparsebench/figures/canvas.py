"""The sheet that every kind of drawing shares: panels, axes, legend, title and small print."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsebench.errors import UserError
from sparsebench.figures import style
from sparsebench.figures.spec import NAMED_ROWS, FigureSpec

Row = Mapping[str, Any]
Rows = Sequence[Row]
Panels = Sequence[tuple[Axes, Rows]]
# Inches: a panel of lines or bars, a heatmap's frame and each of its rows, a forest's points; lines of text by size.
PANEL, FRAME, CELL, POINT = 1.8, 0.55, 0.17, 0.065
TITLE_LINE, NOTE_LINE, LEGEND_LINE = 0.19, 0.14, 0.145
CHARACTER, TITLE_CHARACTER = 0.061, 0.064
HANDLE = 0.5
LOWEST = 0.6
"""The least of their usual height that panels get where the sheet's height was asked for."""
NARROWEST = {"heatmap": 1.6}
NARROWEST_OTHER = 1.9
"""The least width in inches of one of several panels: by kind, and of all other kinds."""
NAME_LINE, NAME_CHARACTER = 9.5, 0.057
"""Points from one name at a panel's edge to the next; inches of a character."""
NAMED = ("line", "curve")
"""Kinds of drawing whose series are lines, which can be named at their ends."""
MOST_NAMED, NAME_SHARE, NAMED_WIDTH = 12, 0.4, 2.1
"""Lines are named directly if a panel has at most ``MOST_NAMED``, the longest name takes at most ``NAME_SHARE`` of a panel's
width, and that width is at least ``NAMED_WIDTH`` inches; otherwise one legend names them for all panels."""
_wrapped = cache(textwrap.fill)
"""Cached, because thousands of samples share a row's name."""


class Canvas:
    """One figure while it is drawn."""

    def __init__(
        self, spec: FigureSpec, rows: Rows, width: float = style.WIDTH, layout: style.FigureLayout = style.PLAIN
    ) -> None:
        """``rows`` are the query's, at least one; ``width`` is the sheet's, in inches."""
        self.layout = layout
        self.spec = spec
        self.rows = rows
        self.width = width
        self.named_rows = spec.kind in NAMED_ROWS
        foreground = {self.series(row) for row in rows if not self.value(row, "bound")}
        background = {self.series(row) for row in rows} - foreground
        series_places = ((self.series(row), self.value(row, "place")) for row in rows)
        place_by_series = {name: int(place) for name, place in series_places if place is not None}
        # Grey ones come last; a legend lists the others by their places.
        names = list(dict.fromkeys(map(self.series, rows)))
        names.sort(key=lambda name: place_by_series.get(name, style.OTHERS))
        names.sort(key=background.__contains__)
        self.styles = style.series_styles(names, background, place_by_series)
        self.unjoined = {self.series(row) for row in rows if self.value(row, "apart")}
        self.knee = float(spec.get("knee", "inf"))
        self.facets = list(dict.fromkeys(self.facet(row) for row in rows))
        self.categories = self.categories_of(rows)
        self.panel_height = PANEL if len(self.facets) > 1 else 1.6 * PANEL
        self.row_name_inches = 0.0
        if self.named_rows:
            self.row_name_inches = CHARACTER * max(len(line) for row in rows for line in self.row_name(row).split("\n"))
        fitting_columns = max(
            1, int(width / max(NARROWEST.get(spec.kind, NARROWEST_OTHER), 1.0 + self.row_name_inches))
        )
        most_columns = min(int(spec.get("columns", "1" if self.named_rows else "3")), fitting_columns)
        # Four panels stand two by two rather than three and one.
        lines = math.ceil(len(self.facets) / most_columns)
        self.across_panels = most_columns if spec.get("row") else math.ceil(len(self.facets) / lines)
        self.figure = Figure(figsize=(width, 4), layout="constrained")
        self.notes = self.spec.get("note").splitlines()
        if ending := rows[0].get(spec.get("footnote")):
            self.notes.append(str(ending))
        self._title_lines = textwrap.wrap(spec.title, int(74 * width / style.WIDTH)) if layout.title else []
        self._xlabel_lines = textwrap.wrap(spec.get("xlabel"), int((width - 0.2) / TITLE_CHARACTER))
        if spec.get("boundnote") and any(self.value(row, "bound") for row in rows):
            self.notes.append(spec.get("boundnote"))
        self.most_rows = 1
        self.named_at_ends = False
        self.name_inches = 0.0
        self._legend: dict[str, Any] | None = None

    def value(self, row: Row, key: str) -> Any:
        """Return what a row has in the column that the header names by ``key``; None where it names none."""
        column = self.spec.get(key)
        return row[column] if column else None

    def series(self, row: Row) -> str:
        """Return the name of a row's series; empty where it has none."""
        return _name(self.value(row, "series"))

    def facet(self, row: Row) -> str:
        """Return the name of a row's panel; empty where it has none."""
        return _name(self.value(row, "facet"))

    def colour(self, row: Row) -> str:
        """Return the colour of a point: that of its series, or grey where it stands in the background by itself."""
        return style.BACKGROUND_GREY if self.value(row, "bound") else self.styles[self.series(row)].colour

    def row_name(self, row: Row) -> str:
        """Return the name of the named row that a row belongs to, wrapped where it would take too much of the sheet."""
        return _wrapped(str(self.value(row, "y")), int(NAME_SHARE * self.width / CHARACTER))

    def series_by_row(self, rows: Rows) -> dict[str, list[str]]:
        """Return the series that each named row has points of, in the order of the legend."""
        drawn = {(self.row_name(row), self.series(row)) for row in rows}
        return {name: [series for series in self.styles if (name, series) in drawn] for name, _ in drawn}

    def x_position(self, row: Row) -> Any:
        """Return a row's position on the horizontal axis."""
        value = self.value(row, "x")
        return self.categories.index(value) if self.spec.get("xscale") == "category" else value

    def categories_of(self, rows: Rows) -> list[Any]:
        """Return the different values of x: numbers sorted, words in the query's order."""
        values = dict.fromkeys(self.value(row, "x") for row in rows if self.value(row, "x") is not None)
        return list(values) if any(isinstance(value, str) for value in values) else sorted(values)

    def points_of(self, rows: Rows, name: str) -> list[Row]:
        """Return the rows of one series that have a y, from left to right."""
        drawn = (row for row in rows if self.series(row) == name and self.value(row, "y") is not None)
        return sorted(drawn, key=self.x_position)

    def height_of(self, axes: Axes, value: float) -> float:
        """Return the position of a value of y in a panel, from 0 at the bottom to 1 at the top."""
        return float(axes.transLimits.transform(axes.transScale.transform((axes.get_xlim()[0], value)))[1])

    def label_of(self, value: float, digits: int | None = None) -> str:
        """Return a value of y or of a cell as an axis shows it."""
        if self.spec.get("yscale") == "percent":
            return f"{100 * value:.{digits}f}" if digits is not None else style.percent(value)
        return style.number(value)

    def panels(self) -> Iterator[tuple[Axes, Rows]]:
        """Yield each facet's axes with its rows."""
        by_facet = {name: [row for row in self.rows if self.facet(row) == name] for name in self.facets}
        lines = self._panel_lines(by_facet)
        self.named_at_ends = self._fits_names_at_ends(by_facet.values())
        self.name_inches = self._width_of_names()
        heights = [self._height([by_facet[name] for name in line]) for line in lines]
        # A title of several lines takes from its panel's height.
        titles = sum(TITLE_LINE * max(self._title(name).count("\n") for name in line) for line in lines)
        self.height = sum(heights) + titles
        grid = self.figure.add_gridspec(len(lines), self.across_panels, height_ratios=heights)
        first_axes: Axes | None = None
        for row_number, line in enumerate(lines):
            self.most_rows = max(self._count_named_rows(by_facet[name]) for name in line)
            for column_number, name in enumerate(line):
                shared = {f"share{axis}": first_axes for axis in "xy" if self.spec.get(f"{axis}share") == "yes"}
                axes = self.figure.add_subplot(grid[row_number, column_number], **shared)
                first_axes = first_axes or axes
                axes.set_title(self._title(name), pad=4)
                yield axes, by_facet[name]

    def _fits_names_at_ends(self, panels: Collection[Rows]) -> bool:
        """Whether the series are named beside their lines rather than in a legend."""
        if self.spec.kind not in NAMED or "series" not in self.spec.values:
            return False
        panel_width = self.width / self.across_panels
        most_lines = max(len({self.series(row) for row in rows}) for rows in panels)
        room_for = int((self.panel_height - 0.55) * 72 / NAME_LINE) - len(self.spec.references)
        longest = max(map(len, self.styles)) * NAME_CHARACTER
        fits = longest <= NAME_SHARE * panel_width and panel_width >= NAMED_WIDTH
        return fits and most_lines <= min(MOST_NAMED, room_for)

    def _width_of_names(self) -> float:
        """Return the inches that the names beside a panel take from its width."""
        longest = max(map(len, self.styles)) if self.named_at_ends else 0
        levels = self.spec.references.values() if self.spec.kind in (*NAMED, "scatter") else ()
        return NAME_CHARACTER * max(longest, *map(len, levels), 0) + 0.1

    def _panel_lines(self, by_facet: Mapping[str, Rows]) -> list[list[str]]:
        """Arrange the facets in lines of panels; a new line begins where the width is full and where `row` changes."""
        groups: dict[Any, list[str]] = {}
        for name, rows in by_facet.items():
            groups.setdefault(self.value(rows[0], "row"), []).append(name)
        most = self.across_panels = min(self.across_panels, max(map(len, groups.values())))
        return [group[start : start + most] for group in groups.values() for start in range(0, len(group), most)]

    def _height(self, line: Sequence[Rows]) -> float:
        if self.named_rows:
            return FRAME + max(self._row_height(rows) * self._count_named_rows(rows) for rows in line)
        return self.panel_height

    def _row_height(self, rows: Rows) -> float:
        """Return the height of a named row: room for its name's lines and, in a forest, for a point of each series."""
        points = max(map(len, self.series_by_row(rows).values())) if self.spec.kind == "forest" else 1
        breaks = max(self.row_name(row).count("\n") for row in rows)
        return max(CELL + LEGEND_LINE * breaks, POINT * (points + 1))

    def _count_named_rows(self, rows: Rows) -> int:
        return len({self.value(row, "y") for row in rows})

    def _title(self, name: str) -> str:
        bar_width = 0.7 if self.spec.kind == "heatmap" and "text" not in self.spec.values else 0.0
        margin = max(0.5, self.row_name_inches + 0.2)
        width = max(8, int(((self.width - bar_width) / self.across_panels - margin) / TITLE_CHARACTER))
        return "\n".join(
            line for paragraph in name.splitlines() for line in textwrap.wrap(paragraph, width, break_long_words=False)
        )

    def legend(self, line: bool | None, levels: Sequence[tuple[str, str, Any]] = (), joined: bool = True) -> None:
        """Prepare one legend for all panels.

        A series gets a line (only its marker unless ``joined``), a patch (``line`` is False) or no entry (None). Each
        level (label, colour, dashes) gets a rule.
        """
        handles: list[Any] = []
        for series, series_style in self.styles.items():
            if line is None or not series:
                continue
            name = textwrap.fill(series, int((self.width - 0.2 - HANDLE) / CHARACTER))
            if line:
                dashes: Any = series_style.dashes if joined and series not in self.unjoined else "none"
                handles.append(
                    Line2D(
                        [], [], color=series_style.colour, linestyle=dashes, linewidth=1.2, label=name,
                        marker=series_style.marker, markersize=4, markeredgecolor="white", markeredgewidth=0.3,
                    )
                )  # fmt: skip
            else:
                handles.append(
                    Patch(
                        facecolor=series_style.colour,
                        hatch=series_style.hatch,
                        label=name,
                        edgecolor="white",
                        linewidth=0.3,
                    )
                )
        for label, colour, dashes in levels:
            handles.append(Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, label=label))
        widest = max((len(text) for handle in handles for text in handle.get_label().splitlines()), default=1)
        fitting = max(1, int((self.width - 0.2) / (widest * CHARACTER + HANDLE)))
        rows = -(-len(handles) // fitting)
        columns = max(1, -(-len(handles) // max(1, rows)))  # as many in each row
        self._legend = {"handles": handles, "ncols": columns}

    def fit(self) -> None:
        """Give the sheet the height that its content needs."""
        title = TITLE_LINE * len(self._title_lines) + 0.1
        self._bottom = 0.06 + NOTE_LINE * len(self._note_lines)
        lines = sum(handle.get_label().count("\n") + 1 for handle in self._legend["handles"]) if self._legend else 0
        rows = -(-lines // self._legend["ncols"]) if self._legend else 0
        self._legend_top = self._bottom + (LEGEND_LINE * rows + 0.06 if rows else 0.0)
        below = self._legend_top + TITLE_LINE * len(self._xlabel_lines)
        height = self.layout.height or title + self.height + 0.25 + below
        minimum = title + below + LOWEST * self.height
        if height < minimum:
            raise UserError(f"{self.spec.name}: {height:g} inches are too low", f"ask for {minimum + 0.05:.1f} or more")
        self.figure.set_size_inches(self.width, height)
        engine: Any = self.figure.get_layout_engine()
        margin = 0.015  # room for one more digit: ticks are chosen after the panels have their size
        panels = (margin, below / height, 1 - 2 * margin, (height - title - below) / height)
        engine.set(rect=panels, w_pad=0.03, h_pad=0.05)

    def close(self) -> None:
        """Fit the sheet, lay the panels out, and add title, legend and small print."""
        self.fit()
        self._settle()
        left, height, write = 0.06 / self.width, self.figure.get_figheight(), self.figure.text
        write(left, 1 - 0.06 / height, "\n".join(self._title_lines), fontsize=9.5, fontweight="bold", va="top")
        write(0.5, (self._legend_top + 0.05) / height, "\n".join(self._xlabel_lines), ha="center", va="bottom")
        if self._note_lines:
            write(left, 0.05 / height, "\n".join(self._note_lines), fontsize=6.5, color=style.GREY, va="bottom")
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
        if not self.layout.note:
            return []
        return [line for note in self.notes for line in textwrap.wrap(note, int(130 * self.width / style.WIDTH))]


def _name(name: Any) -> str:
    return "" if name is None else str(name)
