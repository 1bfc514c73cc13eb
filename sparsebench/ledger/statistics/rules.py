"""The rules that SQL and Python share, asked of the ledger's own views: what each metric is, and how verdicts are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb

from sparsebench.ledger import sqlfiles
from sparsebench.ledger.connect import interruptible


@dataclass(frozen=True)
class Metric:
    """What the ledger's view ``metrics`` says of one metric. The defaults are those of a metric that it does not list.

    ``pooling`` says how outcomes make a score, and so what their labels are. For a ranking they are 1 and 0; for a
    correlation, what the values are correlated with. Per token, a label counts the tokens that an outcome's
    log-likelihood sums up. Per symbol, it counts the symbols of the right answer (for an F1, the entities that are
    there plus those that were found). For classes, a value is the number of the class chosen and its label that of the
    right one. ``guessed`` is the score of a model without skill, where every task has the same.
    """

    higher_is_better: bool = True
    scale: str = "unknown"
    collapsed_above: float | None = None
    pooling: str = "mean"
    guessed: float | None = None

    @classmethod
    @cache
    def named(cls, name: str) -> Metric:
        """Return the metric that results, such as ``scores.metric``, call ``name``."""
        rows = rows_of_views("SELECT * EXCLUDE (metric) FROM metrics WHERE metric = $name", name=name)
        return cls(*rows[0]) if rows else cls()


def rows_of_views(query: str, **values: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query on the views of metrics and verdicts, which need no ledger."""
    with interruptible(), duckdb.connect() as connection:
        connection.execute(sqlfiles.read("views/00_metrics") + sqlfiles.read("views/00_verdict"))
        return connection.execute(query, values).fetchall()
