"""The rows that a query gives, and how they are shown: as tables in templates, the report's first also in a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench.escape import visible
from sparsebench.ledger import query
from sparsebench.report.lookup import query_named
from sparsebench.report.words import DASH, format_cell, sparsity

ResultRow = Mapping[str, Any]
SETTINGS = frozenset(("engine", "ranks × threads", "number format", "workload", "weights", "seed", "measured as"))
"""Columns that a table of at least MANY rows leaves out where all rows have the same value."""
MANY = 4
STEPS = 4
"""The most sparsities that a shortened matrix shows."""
WIDEST = 24
"""The most characters of a cell in a right-aligned column: a page does not break these."""

_NUMBER = re.compile(rf"(\*\*)?[−+±<>×]?\d|(\*\*)?collapsed \(|{DASH}$|$")


@dataclass(frozen=True)
class QueryResult:
    """The rows of one query, and its name; false without rows."""

    name: str
    rows: tuple[ResultRow, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ResultRow]:
        return iter(self.rows)

    def where(self, **equal: Any) -> QueryResult:
        """Return the rows in which these columns have these values."""
        return self._of(row for row in self.rows if all(row[name] == value for name, value in equal.items()))

    def without(self, **equal: Any) -> QueryResult:
        """Return the rows that ``where`` leaves out."""
        return self._of(row for row in self.rows if any(row[name] != value for name, value in equal.items()))

    def among(self, column: str, *values: Any) -> QueryResult:
        """Return the rows in which the column has one of these values."""
        return self._of(row for row in self.rows if row[column] in values)

    def first(self, **equal: Any) -> QueryResult:
        """Return all rows, those in which these columns have these values before the others."""
        return self._of([*self.where(**equal), *self.without(**equal)])

    def with_random_weights(self, wanted: bool) -> QueryResult:
        """Return the rows with random weights, or all others if not ``wanted``: the two never share a table."""
        return self._of(row for row in self.rows if (row["weights"] == "random") == wanted)

    def groups(self, *columns: str) -> list[tuple[ResultRow, QueryResult]]:
        """Return each group of rows that agree in ``columns`` after its first row, in order of first appearance."""
        groups: dict[tuple[Any, ...], list[ResultRow]] = {}
        for row in self.rows:
            groups.setdefault(tuple(row[name] for name in columns), []).append(row)
        return [(rows[0], self._of(rows)) for rows in groups.values()]

    def head_per_group(self, count: int, *columns: str) -> QueryResult:
        """Return the first ``count`` rows of each group of rows that agree in ``columns``."""
        return self._of(row for _, group in self.groups(*columns) for row in group.rows[:count])

    def sweeps(self, count: int, *columns: str) -> QueryResult:
        """Return the longest sweeps: of each group of rows that agree in ``columns``, those of ``count`` labels.

        Only STEPS sparsities are kept, evenly chosen of those that most of these labels have. Rows whose sparsity is
        unknown, as that of masks from a file is until the variant is made, are left out.
        """
        longest: list[ResultRow] = []
        for _, group in self.without(sparsity=None).groups(*columns):
            labels = [rows for _, rows in group.groups("label")]
            for rows in sorted(labels, key=lambda rows: -len(rows.values("sparsity")))[:count]:
                longest += rows.rows
        counts = Counter(row["sparsity"] for row in longest)
        sparsities = sorted(sparsity for sparsity, count in counts.items() if 2 * count > max(counts.values()))
        if len(sparsities) > STEPS:
            sparsities = [sparsities[round(step * (len(sparsities) - 1) / (STEPS - 1))] for step in range(STEPS)]
        return self._of(row for row in longest if row["sparsity"] in sparsities)

    def values(self, column: str) -> list[Any]:
        """Return the different values of a column, sorted, without NULL."""
        return sorted({row[column] for row in self.rows if row[column] is not None})

    def table(self, columns: Mapping[str, str]) -> str:
        """Return a pipe table; ``columns`` maps each heading to the pattern of its cells (see ``words.format_cell``).

        A column without any value is left out. So is one of SETTINGS that has the same value in MANY rows or more; the
        value then stands below the table.
        """
        cells_by_head = {head: [format_cell(pattern, row) for row in self.rows] for head, pattern in columns.items()}
        non_empty = {head: cells for head, cells in cells_by_head.items() if set(cells) != {DASH}}
        alike = [head for head, cells in non_empty.items() if head in SETTINGS and len(set(cells)) == 1]
        constant = alike if len(self) >= MANY else []
        varying = {head: cells for head, cells in non_empty.items() if head not in constant}
        table = pipe_table(list(varying), list(zip(*varying.values(), strict=True)))
        if constant:
            table += "\n\nIn every row " + "; ".join(f"{head}: {non_empty[head][0]}" for head in constant) + "."
        return table

    def matrix(self, row_pattern: str, pattern: str, heading: str = "") -> str:
        """Return a pipe table: a row per ``row_pattern``, a column per sparsity, cells ``pattern``; "/" joins several.

        A row without any value, or whose sparsity is unknown, is left out; without rows the result is empty.
        """
        lines: dict[str, dict[float, dict[str, None]]] = {}
        for row in self.without(sparsity=None):
            text = format_cell(pattern, row)
            if text != DASH:
                lines.setdefault(format_cell(row_pattern, row), {}).setdefault(row["sparsity"], {})[text] = None
        if not lines:
            return ""
        steps = sorted({step for line in lines.values() for step in line})
        body = [[name, *(" / ".join(line.get(step, {})) for step in steps)] for name, line in lines.items()]
        return pipe_table([heading, *map(sparsity, steps)], body)

    def _of(self, rows: Iterable[ResultRow]) -> QueryResult:
        return replace(self, rows=tuple(rows))


def pipe_table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a GitHub pipe table; columns of numbers, with few words beside them, are right-aligned."""
    right_aligned = [
        all(_NUMBER.match(line[column]) and len(line[column]) <= WIDEST for line in lines)
        for column in range(len(heads))
    ]
    escaped = [[re.sub(r"\s*\n\s*", " ", text).replace("|", "\\|") for text in line] for line in (heads, *lines)]
    rule = ["--:" if numeric else "---" for numeric in right_aligned]
    return "\n".join("| " + " | ".join(line) + " |" for line in (escaped[0], rule, *escaped[1:]))


COLUMNS: Mapping[str, str] = {
    "skill": "{retained:pct0}",
    "perplexity": "×{ratio:.3f}",
    "file": "{share:pct0}",
    "a token": "×{token:.2f}",
    "a request": "×{request:.2f}",
}
"""Each column's heading, with the pattern of its cells (see ``words.format_cell``)."""
NOTE = "Of dense: skill and perplexity kept, bytes of the packed file, speed. –: not measured, or no gain shown."


def answer_table(ledger: Path, manifests: Sequence[str] = (), models: Sequence[str] = ()) -> str:
    """Return the smallest file of each kind that passes the quality gate, model by model, as lines of text.

    It is empty where nothing passes. ``manifests`` and ``models`` limit it to these experiments and models (default:
    all). Raises LedgerError where there is no ledger.
    """
    rows = query.run(ledger, query_named("decision", manifests)).dicts()
    rows = [row for row in rows if (row["model"] in models if models else row["first"])]
    if not rows:
        return ""
    name_width = max(len(visible(row[name])) for row in rows for name in ("model", "recipe")) + 2
    lines = []
    for row, variants in QueryResult("decision", tuple(rows)).groups("model"):
        lines.append(visible(row["model"]).ljust(name_width) + "".join(f"  {head}" for head in COLUMNS))
        for variant in variants:
            cells = "".join(f"  {format_cell(pattern, variant):>{len(head)}}" for head, pattern in COLUMNS.items())
            lines.append(f"  {visible(variant['recipe'])}".ljust(name_width) + cells)
    return "\n".join([*lines, NOTE]) + "\n"
