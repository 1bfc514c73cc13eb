"""How sure a score is, and whether a variant differs from its dense model on the same documents.

0/1 outcomes: Wilson's interval for a score; for a difference the exact McNemar test and Newcombe's interval for paired
proportions (square-and-add with the correlation of the pairs, method 10 of Statistics in Medicine 17, 2635-2650, 1998).
All else (average precision, rank correlation, perplexity, graded outcomes): a seeded percentile bootstrap over documents
(perplexity: windows of text), both sides resampled together.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
CHUNK = 1 << 21
"""Numbers drawn at once: the bootstrap's memory is bounded."""
LARGEST = math.log(sys.float_info.max)
UNEXPLAINED = "the score is not made of its outcomes"
Z95 = NormalDist().inv_cdf(0.975)
LOWER_IS_BETTER = frozenset(
    {
        "perplexity",
        "pseudo_perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
        "nll",
        "loss",
        "brier_score",
        "wer",
        "per",
        "ter",
    }
)
RANKING = frozenset({"ap"})
CORRELATION = frozenset({"spearman"})
PER_TOKEN = frozenset({"perplexity", "pseudo_perplexity"})
POOLED = RANKING | CORRELATION | PER_TOKEN
"""Metrics of all documents together; every other score is the mean of its outcomes.

A ranking's labels are 1 and 0, a correlation's what its values are correlated with; those of a metric per token are how many
tokens an outcome's log-likelihood sums up.
"""


@dataclass(frozen=True)
class Interval:
    """A 95% interval; None and the reason in ``method`` where there is none."""

    low: float | None
    high: float | None
    method: str


@dataclass(frozen=True)
class Pairs:
    """The outcomes of variant and dense on the same documents, and the gold labels (NaN where there are none)."""

    variant: Floats
    dense: Floats
    label: Floats


@dataclass(frozen=True)
class Comparison:
    """Variant minus dense over ``n`` shared documents, with a 95% interval and a two-sided p value.

    ``gained`` and ``lost`` count the documents that only the variant, or only the dense model, gets right (0/1 outcomes).
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


def interval(metric: str, score: float, values: Floats, labels: Floats, seed: int = 0) -> Interval:
    """The 95% interval of ``score`` from its outcomes ``values`` (n,) and, for pooled metrics, ``labels`` (n,)."""
    if not _explains(metric, score, values, labels):
        return Interval(None, None, f"none: {UNEXPLAINED}")
    if metric not in POOLED and _binary(values):
        return Interval(*wilson(int(values.sum()), len(values)), "Wilson")
    low, high = _quantiles(_resampled(metric, [values], labels, seed)[:, 0])
    return Interval(low, high, f"bootstrap, {RESAMPLES} resamples")


def compare(metric: str, pairs: Pairs, seed: int = 0) -> Comparison:
    """Compare a variant with its dense model by outcomes that ``metric`` is made of (``interval`` says whether it is)."""
    n = len(pairs.variant)
    better = metric not in LOWER_IS_BETTER
    sides = pairs.variant, pairs.dense
    if not n:
        return none("no document in common", better)
    if metric not in POOLED and _binary(pairs.variant) and _binary(pairs.dense):
        gained = int((pairs.variant > pairs.dense).sum())
        lost = int((pairs.variant < pairs.dense).sum())
        both = int((pairs.variant * pairs.dense).sum())
        low, high = newcombe(both, gained, lost, n - both - gained - lost)
        p = mcnemar(gained, lost)
        return Comparison(
            n, (gained - lost) / n, low, high, p, gained, lost, "McNemar exact, Newcombe interval", better
        )
    drawn = _resampled(metric, list(sides), pairs.label, seed)
    shifts = drawn[:, 0] - drawn[:, 1]
    low, high = _quantiles(shifts)
    p = min(1.0, 2 * (1 + min(int((shifts <= 0).sum()), int((shifts >= 0).sum()))) / (1 + RESAMPLES))
    difference = _value(metric, pairs.variant, pairs.label) - _value(metric, pairs.dense, pairs.label)
    return Comparison(n, difference, low, high, p, None, None, f"paired bootstrap, {RESAMPLES} resamples", better)


def none(reason: str, higher_is_better: bool = True) -> Comparison:
    """The comparison that cannot be made, recorded so that it is not tried again."""
    return Comparison(0, None, None, None, None, None, None, f"none: {reason}", higher_is_better)


def wilson(successes: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927); ``n`` is at least 1."""
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(successes * (n - successes) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(gained: int, lost: int) -> float:
    """The exact two-sided p value of McNemar's test: a binomial test of the discordant pairs at one half."""
    total = gained + lost
    term = tail = 1
    for k in range(min(gained, lost)):
        term = term * (total - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**total)


def newcombe(both: int, gained: int, lost: int, neither: int) -> tuple[float, float]:
    """Newcombe's 95% interval of the difference (both + gained) / n - (both + lost) / n between paired proportions."""
    n = both + gained + lost + neither
    first, second = (both + gained) / n, (both + lost) / n
    low_1, high_1 = wilson(both + gained, n)
    low_2, high_2 = wilson(both + lost, n)
    margins = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess = both * neither - gained * lost
    # The continuity correction applies to positive correlation only.
    excess_corrected = max(0.0, excess - n / 2) if excess > 0 else float(excess)
    phi = excess_corrected / math.sqrt(margins) if margins else 0.0

    def root(a: float, b: float) -> float:
        return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))

    shift = first - second
    return shift - root(first - low_1, high_2 - second), shift + root(high_1 - first, second - low_2)


def average_precision(
    order: npt.NDArray[np.intp], last: npt.NDArray[np.bool_], labels: Floats, weights: Floats
) -> Floats:
    """Average precision of each row of ``weights`` (r, n): how often each document was drawn.

    ``order`` sorts documents from the highest value down, ``last`` marks the end of each run of equal values in that
    order, so that ties share a threshold. The sum over thresholds of (recall step) x precision, as in scikit-learn; NaN
    without positives.
    """
    import numpy as np

    drawn = weights[:, order]
    hits = np.cumsum(drawn * labels[order], axis=1)[:, last]
    seen = np.cumsum(drawn, axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A threshold before which nothing was drawn has no step either.
        precision = np.where(seen > 0, hits / seen, 0.0)
        result: Floats = (steps * precision).sum(axis=1) / hits[:, -1]
    return result


def rank_correlation(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Spearman's correlation of ``values`` and ``labels`` (n,) in each row of ``weights`` (r, n): how often each was drawn.

    Ties share their mean rank. 0 where all values, or all labels, that were drawn are the same: they rank nothing.
    """
    import numpy as np

    sides = [_centred_ranks(side, weights) for side in (values, labels)]
    products = (weights * sides[0] * sides[1]).sum(axis=1)
    spread = np.sqrt(np.prod([(weights * side**2).sum(axis=1) for side in sides], axis=0))
    result: Floats = np.divide(products, spread, out=np.zeros_like(products), where=spread > 0)
    return result


def _centred_ranks(side: Floats, weights: Floats) -> Floats:
    """The rank of each document among those drawn, less the mean rank."""
    import numpy as np

    _, group, sizes = np.unique(side, return_inverse=True, return_counts=True)
    drawn = weights[:, np.argsort(group, kind="stable")]
    upto = np.cumsum(drawn, axis=1)[:, np.cumsum(sizes) - 1]
    each = np.diff(upto, axis=1, prepend=0.0)
    # Ranks r+1 … r+k have the mean r + (k+1)/2; all n of them (n+1)/2.
    ranks: Floats = (upto - each / 2 - upto[:, -1:] / 2)[:, group]
    return ranks


def _statistic(metric: str, values: Floats, labels: Floats, weights: Floats) -> Floats:
    import numpy as np

    if metric in PER_TOKEN:
        with np.errstate(invalid="ignore", divide="ignore"):
            # A broken model's resample may lie beyond a double: the largest double stands for it.
            mean_nll: Floats = np.minimum(weights @ values / (weights @ labels), LARGEST)
        return np.exp(mean_nll)
    if metric in CORRELATION:
        return rank_correlation(values, labels, weights)
    if metric not in RANKING:
        mean: Floats = weights @ values / len(values)
        return mean
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    return average_precision(order, last, labels, weights)


def _value(metric: str, values: Floats, labels: Floats) -> float:
    import numpy as np

    return float(_statistic(metric, values, labels, np.ones((1, len(values))))[0])


def _resampled(metric: str, sides: list[Floats], labels: Floats, seed: int) -> Floats:
    """The metric of every side on the same resamples of the documents: (RESAMPLES, sides)."""
    import numpy as np

    n = len(sides[0])
    generator = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    found = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        draws = generator.integers(0, n, size=(size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(draws.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
        found.append(np.stack([_statistic(metric, values, labels, weights) for values in sides], axis=1))
    return np.concatenate(found)


def _quantiles(values: Floats) -> tuple[float, float]:
    import numpy as np

    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _binary(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _explains(metric: str, score: float, values: Floats, labels: Floats) -> bool:
    """Whether ``score`` is what its outcomes give: a metric that this module does not know gets no interval."""
    if not len(values):
        return False
    found = _value(metric, values, labels)
    return bool(abs(found - score) <= 1e-6 * max(1.0, abs(score)))
