"""Turn a query's rows into what can be drawn: numbers where the header needs them, and nothing outside a scale."""

from __future__ import annotations

import datetime
import math
from decimal import Decimal
from typing import Any

from sparsebench.errors import UserError
from sparsebench.figures.spec import COLUMNS, KINDS, LONGEST, NAMED_ROWS, FigureSpec
from sparsebench.ledger.query import Table

_NUMERIC_KEYS = ("value", "low", "high", "xlow", "xhigh", "base", "place")
_NUMERIC_X = ("line", "curve", "scatter", "forest")
"""Kinds whose horizontal axis shows numbers unless its scale is `category`."""
MOST_ROWS, MOST_VALUES = 50_000, 300
"""The most rows of a figure, and the most different values of its `facet`, `row` or `series`."""
_ACCEPTED = {"log": "numbers above 0", "sparsity": "numbers from 0 to 1"}
"""What an axis of a scale has room for; all others take any number."""
_CATEGORY_TYPES = (str, bool, int, float, Decimal, datetime.date, datetime.time, type(None))


def drawable(spec: FigureSpec, table: Table) -> Table:
    """Return the rows that can be drawn: those with a value in every needed column, finite where a number is needed.

    Decimals, and integers from 2⁵³ on where a number is drawn, become floats. Raises UserError, naming file and column,
    for a list, an interval or the like, for text where a number is needed, and for a number outside the header's scale.
    """
    _refuse_many(spec, table)
    scales = _scales(spec)
    drawn_columns = {spec.values[key] for key in COLUMNS if key in spec.values} | {*spec.references, *scales}
    required_columns = [table.columns.index(spec.values[key]) for key in KINDS[spec.kind]]
    rows = (
        tuple(
            _drawable_value(value, spec, column, scales.get(column)) if column in drawn_columns else value
            for column, value in zip(table.columns, row, strict=True)
        )
        for row in table.rows
    )
    return Table(table.columns, tuple(row for row in rows if all(row[index] is not None for index in required_columns)))


def _refuse_many(spec: FigureSpec, table: Table) -> None:
    """Raise UserError for more rows or values than allowed: drawing them would take minutes and gigabytes."""
    if len(table.rows) > MOST_ROWS:
        raise UserError(f"{spec.path}: its query gives more than {MOST_ROWS:,} rows", "group them, or leave some out")
    for key in ("facet", "row", "series"):
        if spec.get(key) in table.columns:
            index = table.columns.index(spec.get(key))
            # Compared as text: a list has no hash.
            if len({str(row[index]) for row in table.rows}) > MOST_VALUES:
                raise UserError(f"{spec.path}: `{key}` has more than {MOST_VALUES:,} values", "leave some out")


def _scales(spec: FigureSpec) -> dict[str, str]:
    """Return the columns that must give numbers, each with the scale that it is drawn on."""
    scales = {spec.values[key]: "" for key in _NUMERIC_KEYS if key in spec.values}
    scales |= dict.fromkeys(spec.references, spec.get("xscale" if spec.kind == "forest" else "yscale"))
    if spec.kind == "heatmap" and spec.get("middle"):
        scales[spec.values["value"]] = "log"
    if spec.kind not in NAMED_ROWS:
        scales[spec.values["y"]] = spec.get("yscale")
    if spec.kind in _NUMERIC_X and spec.get("xscale") != "category":
        scales[spec.values["x"]] = spec.get("xscale")
    for axis, ends in (("y", ("low", "high")), ("x", ("xlow", "xhigh"))):
        if spec.get(f"{axis}scale") == "log":
            scales |= {spec.values[end]: "log" for end in ends if end in spec.values}
    return scales


def _drawable_value(value: Any, spec: FigureSpec, column: str, scale: str | None) -> Any:
    """Check and convert a value of a column; ``scale`` is None if it need not be a number."""
    if value is None:
        return None
    if scale is None:
        if isinstance(value, _CATEGORY_TYPES) and not (isinstance(value, str) and len(value) > LONGEST):
            return float(value) if isinstance(value, Decimal) else value
    elif isinstance(value, int | float | Decimal):
        number = _float(value)
        if not math.isfinite(number):
            return None
        if {"log": number > 0, "sparsity": 0 <= number <= 1}.get(scale, True):
            return value if isinstance(value, int) and abs(value) < 2**53 else number
    accepted = "numbers or short texts" if scale is None else _ACCEPTED.get(scale, "numbers")
    raise UserError(
        f"{spec.path}: column {column!r} gives {type(value).__name__} {str(value)[:40]}",
        f"it is drawn as {accepted}: leave such rows out, or convert them",
    )


def _float(value: int | float | Decimal) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
