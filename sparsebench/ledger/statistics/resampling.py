"""The bootstrap over documents, or over their clusters, for any metric that is one number of all documents together."""

from __future__ import annotations

import math
import sys
from statistics import NormalDist

import numpy as np
from scipy.special import expit, logit, stdtr, stdtrit

from sparsebench.benchmarks.statistics import Floats, PooledMetric, average_precision, macro_f1, pearson, spearman
from sparsebench.ledger.statistics.contract import Integers, ValuesAndLabels, count_clusters

RESAMPLES = 2000
CHUNK = 1 << 21
"""Numbers drawn at once, so that memory stays bounded."""
LOG_LARGEST = math.log(sys.float_info.max)
_NORMAL = NormalDist()


def _mean(values: Floats, _: Floats, weights: Floats) -> Floats:
    return weights @ values / weights.sum(axis=1)


def _per_token(values: Floats, labels: Floats, weights: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        # A collapsed model's perplexity may lie beyond a double: the largest double stands for it.
        mean_nll: Floats = np.minimum(weights @ values / (weights @ labels), LOG_LARGEST)
    return np.exp(mean_nll)


def _per_symbol(values: Floats, labels: Floats, weights: Floats) -> Floats:
    symbols = weights @ labels
    # A resample without a symbol has none wrong, and no entity right.
    return np.divide(weights @ values, symbols, out=np.zeros_like(symbols), where=symbols > 0)


POOLINGS: dict[str, PooledMetric] = {
    "mean": _mean,
    "per token": _per_token,
    "per symbol": _per_symbol,
    "ranking": average_precision,
    "correlation": spearman,
    "linear correlation": pearson,
    "classes": macro_f1,
}
"""How documents make a score (``Metric.pooling``)."""
WITHOUT_DRAWS = ("mean", "per token", "per symbol")
"""Those whose standard error has a formula."""


def score(pooling: str, values: Floats, labels: Floats) -> float:
    """Return the score of the documents themselves, each counted once."""
    return float(POOLINGS[pooling](values, labels, np.ones((1, len(values))))[0])


def resampled_scores(pooling: str, sides: list[ValuesAndLabels], clusters: Integers | None) -> Floats:
    """Return the score of each side (its values and labels) on the same resamples: (RESAMPLES, sides).

    The same numbers of documents and clusters draw the same resamples.
    """
    n = len(sides[0][0])
    units = count_clusters(n, clusters)
    generator = np.random.default_rng(0)
    rows = max(1, CHUNK // n)
    scores = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        draws = generator.integers(0, units, size=(size, units)) + np.arange(size)[:, None] * units
        weights = np.bincount(draws.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)
        if clusters is not None:
            weights = weights[:, clusters]
        scores.append(np.stack([POOLINGS[pooling](values, labels, weights) for values, labels in sides], axis=1))
    return np.concatenate(scores)


def percentile_interval(values: Floats, n: int, upper: float = 0.975) -> tuple[float, float]:
    """Return the interval (95% by default) of resamples of ``n`` documents or clusters: percentiles, wider for small n.

    Hesterberg's expanded percentile interval (The American Statistician 69, 371-386, 2015): the normal quantile is
    replaced by t(n - 1) times the root of n / (n - 1).
    """
    outer = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, upper))
    low, high = np.nanquantile(values, [outer, 1 - outer])
    return float(low), float(high)


def average_precision_interval(side: ValuesAndLabels, clusters: Integers | None) -> tuple[float, float] | None:
    """Return the 95% interval of an average precision: Student's t of its logit, with the jackknife's standard error.

    The jackknife leaves out one document or cluster at a time, or one of RESAMPLES groups where there are more. None at
    0 and 1, which have no logit, and where the score is the same whatever is left out. The bootstrap of a share is
    skewed near 1: its percentiles hold the truth in 91% of samples of 50 pairs, this in 93% (studies/power.py).
    """
    n, precision = len(side[0]), score("ranking", *side)
    group = (np.arange(n) if clusters is None else clusters) % RESAMPLES
    groups, rows = int(group.max()) + 1, max(1, CHUNK // n)
    left_out = np.concatenate([
        average_precision(*side, (group != np.arange(start, min(start + rows, groups))[:, None]).astype(np.float64))
        for start in range(0, groups, rows)
    ])  # fmt: skip
    error = math.sqrt((groups - 1) / groups * float(np.nansum((left_out - np.nanmean(left_out)) ** 2)))
    if not error or not 0 < precision < 1:
        return None
    margin = float(stdtrit(groups - 1, 0.975)) * error / (precision * (1 - precision))
    return float(expit(logit(precision) - margin)), float(expit(logit(precision) + margin))


def p_value(shifts: Floats, n: int) -> float:
    """Return the two-sided p value: twice the smaller share of ``shifts`` on a side of 0.

    It is expanded as in ``percentile_interval``. Where no resample crosses 0, the number of resamples would set the p
    value, and few documents could not bring it below 5%. Then the distance of 0 in standard deviations counts, where it
    is larger. For a mean, that is Student's paired t test.
    """
    crossing = min(int((shifts <= 0).sum()), int((shifts >= 0).sum()))
    share = (1 + crossing) / (1 + len(shifts))
    if share >= 0.5:
        return 1.0
    distance = -_NORMAL.inv_cdf(share)
    if not crossing:
        spread = float(np.nanstd(shifts))
        distance = max(distance, abs(float(np.nanmean(shifts))) / spread) if spread else math.inf
    return 2 * float(stdtr(n - 1, -distance / math.sqrt(n / (n - 1))))


def design_effect(values: Floats, clusters: Integers | None) -> float:
    """Return how many documents in clusters say as much as one on its own, at least 1.

    It is the variance of the mean over clusters (two or more) divided by that over documents. Few clusters make their
    variance uncertain: it is enlarged by (t(K - 1) / t(n - 1))², as Korn & Graubard do (Survey Methodology 24, 193-201, 1998).
    """
    if clusters is None:
        return 1.0
    n, centred = len(values), values - values.mean()
    sums = np.bincount(clusters, weights=centred)
    n_clusters = len(sums)
    document_variance = float((centred**2).sum()) * n / (n - 1)
    if not document_variance:
        return 1.0
    cluster_variance = float((sums**2).sum()) * n_clusters / (n_clusters - 1)
    correction = float(stdtrit(n_clusters - 1, 0.975) / stdtrit(n - 1, 0.975))
    return max(1.0, cluster_variance / document_variance * correction**2)
