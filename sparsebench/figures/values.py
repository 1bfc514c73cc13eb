"""Turn a query's rows into what can be drawn: numbers where the header needs them, and nothing outside a scale."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from sparsebench.errors import UserError
from sparsebench.figures.spec import COLUMNS, KINDS, LONGEST, NAMED_ROWS, FigureSpec
from sparsebench.ledger.query import Table

_ALWAYS = ("value", "low", "high", "xlow", "xhigh", "base", "place")
_ALONG = ("line", "curve", "scatter", "strip", "forest")
"""Kinds whose horizontal axis shows numbers unless its scale is `category`."""
ROWS, PANELS = 50_000, 300
"""The most rows of a figure, and the most different values of its `facet`, `row` or `series`."""
_WORDS = (str, bool, int, float, Decimal, datetime.date, datetime.time, type(None))


def fitting(spec: FigureSpec, table: Table) -> Table:
    """Return the rows that can be drawn: those with a value in every needed column, finite where a number is needed.

    Decimals, and integers from 2⁵³ on where a number is drawn, become floats. Raises UserError, naming file and column,
    for a list, an interval or the like, for text where a number is needed, and for a number outside the header's scale.
    """
    read: dict[int, Callable[[Any], Any]] = {}
    numbers = _numbers(spec)
    named = [spec.values[key] for key in COLUMNS if key in spec.values]
    for column in dict.fromkeys([*named, *spec.references, *numbers]):
        if column in table.columns:
            read[table.columns.index(column)] = _reader(spec, column, numbers.get(column))
    _refuse_many(spec, table)
    needed = [table.columns.index(spec.values[key]) for key in KINDS[spec.kind]]
    rows = (tuple(read[at](value) if at in read else value for at, value in enumerate(row)) for row in table.rows)
    return Table(table.columns, tuple(row for row in rows if all(row[place] is not None for place in needed)))


def _refuse_many(spec: FigureSpec, table: Table) -> None:
    """Raise UserError for more rows or values than allowed: drawing them would take minutes and gigabytes."""
    if len(table.rows) > ROWS:
        raise UserError(f"{spec.path}: its query gives more than {ROWS:,} rows", "group them, or leave some out")
    for key in ("facet", "row", "series"):
        if spec.get(key) in table.columns:
            at = table.columns.index(spec.get(key))
            # Compared as text: a list has no hash.
            if len({str(row[at]) for row in table.rows}) > PANELS:
                raise UserError(f"{spec.path}: `{key}` has more than {PANELS:,} values", "leave some out")


def _numbers(spec: FigureSpec) -> dict[str, str]:
    """Return the columns that must give numbers, each with the scale that it is drawn on."""
    found = {spec.values[key]: "" for key in _ALWAYS if key in spec.values} | dict.fromkeys(spec.references, "")
    if spec.kind == "heatmap" and "middle" in spec.values:
        found[spec.values["value"]] = "log"
    if spec.kind not in NAMED_ROWS:
        found[spec.values["y"]] = spec.get("yscale")
    if spec.kind in _ALONG and spec.get("xscale") != "category":
        found[spec.values["x"]] = spec.get("xscale")
    for axis, ends in (("y", ("low", "high")), ("x", ("xlow", "xhigh"))):
        if spec.get(f"{axis}scale") == "log":
            found |= {spec.values[end]: "log" for end in ends if end in spec.values}
    return found


def _reader(spec: FigureSpec, column: str, scale: str | None) -> Callable[[Any], Any]:
    """Return a function that checks and converts a column's values; ``scale`` is None if they need not be numbers."""

    def wrong(value: Any, what: str, hint: str) -> UserError:
        return UserError(f"{spec.path}: column {column!r} gives {what} ({str(value)[:40]})", hint)

    def read(value: Any) -> Any:
        if isinstance(value, str) and len(value) > LONGEST:
            raise wrong(value, f"a text of more than {LONGEST:,} characters", "shorten it, such as by left(…, 100)")
        if not isinstance(value, _WORDS):
            raise wrong(value, f"a {type(value).__name__}", "give numbers or text, such as by CAST(… AS VARCHAR)")
        if scale is None or value is None:
            return float(value) if isinstance(value, Decimal) else value
        if not isinstance(value, int | float | Decimal):
            raise wrong(value, "no number", "give a number there")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            return None
        if (scale == "log" and number <= 0) or (scale == "sparsity" and not 0 <= number <= 1):
            where = "above 0" if scale == "log" else "from 0 to 1"
            raise wrong(
                value,
                f"a value outside its {scale} axis",
                f"it must be {where}: leave such rows out, or take another scale",
            )
        return value if isinstance(value, int) and abs(value) < 2**53 else number

    return read
