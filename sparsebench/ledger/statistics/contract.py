"""The data types of intervals, comparisons and verdicts, and the rules that SQL and Python share.

These are asked of the ledger's own views: what each metric is, and how verdicts are made.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from sparsebench.benchmarks.statistics import Floats
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.connect import interruptible

Integers = npt.NDArray[np.int64]
ValuesAndLabels = tuple[Floats, Floats]
UNEXPLAINED = "the score is not made of its outcomes"
Z95 = NormalDist().inv_cdf(0.975)
Z95_ONE_SIDED = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Interval:
    """A 95% interval. Where there is none, its ends are None and ``method`` gives the reason."""

    low: float | None
    high: float | None
    method: str


def count_clusters(n: int, clusters: Integers | None) -> int:
    """Return the number of clusters of ``n`` outcomes; ``n`` where each outcome is its own (``clusters`` is None)."""
    return n if clusters is None else int(clusters.max()) + 1


@dataclass(frozen=True)
class Pairs:
    """The outcomes (n,) of a variant and of the model it is compared with (``dense``), on the same documents.

    ``labels`` holds the gold labels, NaN where there are none. ``cluster_codes`` holds the number of each document's
    cluster, as ``encode_clusters`` gives it; None where every document is its own. ``variant_labels`` holds the variant's labels
    where they differ from the dense model's: the divisor of an F1 counts the entities that each model found.
    """

    variant: Floats
    dense: Floats
    labels: Floats
    cluster_codes: Integers | None = None
    variant_labels: Floats | None = None

    @property
    def cluster_count(self) -> int:
        """The number of clusters."""
        return count_clusters(len(self.variant), self.cluster_codes)

    @property
    def with_labels(self) -> list[ValuesAndLabels]:
        """The outcomes with their labels: the variant's, then the dense model's."""
        variant_labels = self.labels if self.variant_labels is None else self.variant_labels
        return [(self.variant, variant_labels), (self.dense, self.labels)]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variant minus dense over ``n`` shared documents in ``clusters`` contexts: 95% interval, two-sided p value.

    ``gained`` and ``lost`` count the documents that only the variant, or only the dense model, gets right (for 0/1
    outcomes; where lower is better, 0 is right). ``loss_at_most`` is the largest loss that the documents leave
    possible, in the metric's unit: the one-sided 95% limit. ``detectable`` is the smallest true difference that such
    documents show with a power of 80%; None where they show none. ``retained`` is (variant - chance) / (dense -
    chance), None where dense cannot be told from chance.
    """

    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    gained: int | None = None
    lost: int | None = None
    method: str
    higher_is_better: bool
    clusters: int = 0
    detectable: float | None = None
    loss_at_most: float | None = None
    retained: float | None = None
    retained_low: float | None = None
    retained_high: float | None = None


@dataclass(frozen=True)
class VerdictOverrides:
    """What overrides the test of a comparison.

    ``separable`` is False where the task does not tell the model from one without skill. ``collapsed`` is True where
    the variant has collapsed and the model it is compared with has not. ``at_chance`` is True where the interval of the
    variant's score reaches chance.
    """

    separable: bool | None = None
    collapsed: bool = False
    at_chance: bool = False


def not_compared(reason: str, higher_is_better: bool = True) -> Comparison:
    """Return a comparison that cannot be made, with the reason. It is recorded so that it is not tried again."""
    return Comparison(n=0, method=f"none: {reason}", higher_is_better=higher_is_better)


def encode_clusters(names: Iterable[str | None]) -> Integers | None:
    """Number the clusters named in order of appearance; a None among ``names`` is a cluster of one document.

    Returns None when no two documents share a cluster.
    """
    number_of: dict[str | int, int] = {}
    numbers = []
    for position, name in enumerate(names):
        numbers.append(number_of.setdefault(position if name is None else name, len(number_of)))
    return np.array(numbers, dtype=np.int64) if len(number_of) < len(numbers) else None


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
    with interruptible(), _views().cursor() as connection:
        return connection.execute(query, values).fetchall()


@cache
def _views() -> duckdb.DuckDBPyConnection:
    """Return a database in memory with these views; a cursor of it may be used in another thread."""
    connection = duckdb.connect()
    connection.execute(sqlfiles.read("views/00_metrics") + sqlfiles.read("views/00_verdict"))
    return connection
