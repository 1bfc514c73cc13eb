"""Standard errors, average precision and rank correlation; the ledger's intervals use the same functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sparsebench.benchmarks.contract import mean_stderr

Floats = npt.NDArray[np.float64]
PooledMetric = Callable[[Floats, Floats, Floats], Floats]
"""A metric of values and labels (n,), for each row of weights (r, n): how often each document was drawn."""

RESAMPLES = 1000
CHUNK = 1 << 21
SEED = 0


def ratio(values: Sequence[float], lengths: Sequence[float]) -> tuple[float, float | None]:
    """Return Σ values / Σ lengths over all documents, and its standard error by the delta method; None for one document."""
    total = math.fsum(lengths)
    rate = math.fsum(values) / total
    residuals = [value - rate * length for value, length in zip(values, lengths, strict=True)]
    error = mean_stderr(residuals)
    return rate, None if error is None else error * len(residuals) / total


def average_precision(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Return the average precision of ``values`` for ``labels`` (n,), 0 or 1, for each row of ``weights`` (r, n).

    A weight is how often a document was drawn. As in scikit-learn it is the sum over thresholds of (recall step) x
    precision; equal values share a threshold. NaN without positives.
    """
    order = np.argsort(-values, kind="stable")
    last = np.append(np.diff(values[order]) != 0, True)
    drawn = weights[:, order]
    hits = np.cumsum(drawn * labels[order], axis=1)[:, last]
    seen = np.cumsum(drawn, axis=1)[:, last]
    steps = np.diff(hits, axis=1, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A threshold up to which nothing was drawn has no recall step either.
        precision = np.where(seen > 0, hits / seen, 0.0)
        result: Floats = (steps * precision).sum(axis=1) / hits[:, -1]
    return result


def spearman(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Return Spearman's correlation of ``values`` and ``labels`` (n,) for each row of ``weights`` (r, n).

    A weight is how often a document was drawn. Ties share their mean rank. The result is 0 if all values drawn, or all
    labels drawn, are equal: they rank nothing.
    """
    return _correlation(_centred_ranks(values, weights), _centred_ranks(labels, weights), weights)


def pearson(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Return Pearson's correlation of ``values`` and ``labels`` (n,) for each row of ``weights`` (r, n).

    A weight is how often a document was drawn. The result is 0 if all values drawn, or all labels drawn, are equal.
    """
    total = weights.sum(axis=1, keepdims=True)
    # From the first one on, so that equal values have a mean of exactly 0.
    centred = [numbers - weights @ numbers[:, None] / total for numbers in (values - values[0], labels - labels[0])]
    return _correlation(centred[0], centred[1], weights)


def macro_f1(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Return the mean F1 of the classes that occur, as scikit-learn's, for each row of ``weights`` (r, n).

    ``values`` (n,) are the numbers of the classes chosen, ``labels`` (n,) those of the right ones. A weight is how often
    a document was drawn. A class counts where it was drawn as a choice or as a label; a negative number is no class.
    """
    classes = np.unique(np.concatenate([values, labels]))
    classes = classes[classes >= 0]
    predicted, labelled = (numbers[:, None] == classes for numbers in (values, labels))
    sizes = weights @ (predicted.astype(float) + labelled)
    with np.errstate(invalid="ignore"):
        f1 = 2 * (weights @ (predicted & labelled)) / sizes
    return np.nanmean(f1, axis=1)


def _correlation(values: Floats, labels: Floats, weights: Floats) -> Floats:
    """Return the correlation of centred values and labels, each (r, n), and 0 where one of them does not vary."""
    products = (weights * values * labels).sum(axis=1)
    spread = np.sqrt((weights * values**2).sum(axis=1) * (weights * labels**2).sum(axis=1))
    return np.divide(products, spread, out=np.zeros_like(products), where=spread > 0)


def _centred_ranks(numbers: Floats, weights: Floats) -> Floats:
    """Return the rank of each document among those drawn, minus the mean rank."""
    _, group, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    drawn = weights[:, np.argsort(group, kind="stable")]
    cumulative = np.cumsum(drawn, axis=1)[:, np.cumsum(sizes) - 1]
    group_weights = np.diff(cumulative, axis=1, prepend=0.0)
    # Ranks r+1 … r+k have the mean r + (k+1)/2; all n of them (n+1)/2.
    return (cumulative - group_weights / 2 - cumulative[:, -1:] / 2)[:, group]


def pooled(metric: PooledMetric, values: Floats, labels: Floats) -> tuple[float, float | None]:
    """Return a metric of all documents (n,) together, and its standard error from RESAMPLES bootstrap draws.

    The standard error is None for one document, and where not two draws have the metric.
    """
    n = len(values)
    score = float(metric(values, labels, np.ones((1, n)))[0])
    if n < 2:
        return score, None
    generator = np.random.default_rng(SEED)
    # Drawn piece by piece, which bounds the memory, they are the same.
    pieces = np.array_split(range(RESAMPLES), min(RESAMPLES, 1 + RESAMPLES * n // CHUNK))
    draws = (generator.integers(n, size=(len(piece), n)) for piece in pieces)
    weights = (np.stack([np.bincount(draw, minlength=n).astype(np.float64) for draw in part]) for part in draws)
    resampled = np.concatenate([metric(values, labels, draw_weights) for draw_weights in weights])
    if np.isfinite(resampled).sum() < 2:
        return score, None
    return score, float(np.nanstd(resampled, ddof=1))
