"""What passes in and out of a comparison."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from sparsebench.ledger import sqlfiles
from sparsebench.ledger.connect import interruptible

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]
    Integers = npt.NDArray[np.int64]
    ValuesAndLabels = tuple[Floats, Floats]

UNEXPLAINED = "the score is not made of its outcomes"
Z95 = NormalDist().inv_cdf(0.975)
Z95_ONE_SIDED = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True)
class Metric:
    """What the ledger's view ``metrics`` says of one; the defaults are those of a metric that it does not know.

    ``pooling`` says what the labels of outcomes are. A ranking's are 1 and 0, a correlation's what its values are correlated
    with; per token they count the tokens that an outcome's log-likelihood sums up, per symbol those of the right
    answer (of an F1 the entities that are there and those that were found). ``guessed`` is what a model without skill gets in
    every task, where that is so.
    """

    higher_is_better: bool = True
    scale: str = "unknown"
    smallest: float | None = None
    collapsed_above: float | None = None
    pooling: str = "mean"
    guessed: float | None = None

    @classmethod
    @cache
    def named(cls, name: str) -> Metric:
        """The metric that results, such as ``scores.metric``, call by this name."""
        found = ask("SELECT * EXCLUDE (metric) FROM metrics WHERE metric = $name", name=name)
        return cls(*found[0]) if found else cls()


@dataclass(frozen=True)
class Interval:
    """A 95% interval; None and the reason in ``method`` where there is none."""

    low: float | None
    high: float | None
    method: str


def count_clusters(n: int, clusters: Integers | None) -> int:
    """How many clusters ``n`` outcomes are in: as many as there are outcomes where each is its own."""
    return n if clusters is None else int(clusters.max()) + 1


@dataclass(frozen=True)
class Pairs:
    """The outcomes (n,) of a variant and of what it is held against (``dense``) on the same documents.

    ``label`` has the gold labels, NaN where there are none; ``cluster`` the number of each document's cluster, as
    ``codes`` gives it, None where every document is its own. ``variant_label`` has the variant's labels where they are not the
    dense model's: what an F1 divides by holds what each has found.
    """

    variant: Floats
    dense: Floats
    label: Floats
    cluster: Integers | None = None
    variant_label: Floats | None = None

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return count_clusters(len(self.variant), self.cluster)

    @property
    def sides(self) -> list[ValuesAndLabels]:
        """The variant's outcomes with their labels, and the dense model's."""
        own = self.label if self.variant_label is None else self.variant_label
        return [(self.variant, own), (self.dense, self.label)]


@dataclass(frozen=True)
class Comparison:
    """Variant minus dense over ``n`` shared documents in ``clusters`` contexts: 95% interval, two-sided p value.

    ``gained`` and ``lost`` count the documents that only the variant, or only the dense model, gets right (0/1 outcomes; of an
    error 0 is right).
    ``loss_at_most`` is the largest loss that the documents leave possible, in the metric's unit: the one-sided 95% limit.
    ``detectable`` is the smallest true difference that such documents show in four samples of five; None where none
    would be. ``retained`` is (variant - chance) / (dense - chance), None where dense cannot be told from chance.
    """

    n: int
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    gained: int | None
    lost: int | None
    method: str
    higher_is_better: bool
    clusters: int = 0
    detectable: float | None = None
    loss_at_most: float | None = None
    retained: float | None = None
    retained_low: float | None = None
    retained_high: float | None = None


@dataclass(frozen=True)
class Standing:
    """What overrides the test of a comparison: ``separable`` is False where the task does not tell the model from one without
    skill, ``collapsed`` is True where the variant has and what it is held against has not, ``at_chance`` where the interval of
    the variant's score reaches chance.
    """

    separable: bool | None = None
    collapsed: bool = False
    at_chance: bool = False


def ask(query: str, **values: object) -> list[tuple[Any, ...]]:
    """Rows of a query of what the ledger's views say of metrics and verdicts: rules that SQL and Python both need stand there."""
    import duckdb

    with interruptible(), duckdb.connect() as connection:
        connection.execute(sqlfiles.read("views/00_metrics") + sqlfiles.read("views/00_verdict"))
        return connection.execute(query, values).fetchall()


def none(reason: str, higher_is_better: bool = True) -> Comparison:
    """The comparison that cannot be made, recorded so that it is not tried again."""
    return Comparison(0, None, None, None, None, None, None, f"none: {reason}", higher_is_better)


def unexplained(metric: str) -> Comparison:
    """The comparison of scores that their documents do not explain."""
    return none(UNEXPLAINED, Metric.named(metric).higher_is_better)


def codes(names: Iterable[str | None]) -> Integers | None:
    """Numbers for the clusters named, in order of appearance; None when no two documents share one."""
    import numpy as np

    known: dict[str | tuple[int], int] = {}
    found = [known.setdefault((place,) if name is None else name, len(known)) for place, name in enumerate(names)]
    return np.array(found, dtype=np.int64) if len(known) < len(found) else None
