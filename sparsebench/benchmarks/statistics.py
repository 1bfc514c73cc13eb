"""Standard errors, average precision and rank correlation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
SEED = 0


def mean_stderr(values: Sequence[float]) -> float:
    """The standard error of the mean, as lm-eval's: for 0/1 values sqrt(p(1-p)/(n-1)); 0 for a single value."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = sum(values) / n
    # In lm-eval's order of operations, so that the digits agree.
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1)) / math.sqrt(n)


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Σ (R_k − R_{k−1}) P_k over the distinct thresholds, highest score first; nan without a positive.

    ``scores`` and ``labels`` (0 or 1) have shape (n,). Equal scores share a threshold, as in
    sklearn.metrics.average_precision_score, which MTEB's pair classification reports.
    """
    import numpy as np

    positives = labels.sum()
    if not positives:
        return math.nan
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(labels[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    return float((np.diff(hits[last], prepend=0) * (hits[last] / (last + 1))).sum() / positives)


def spearman(scores: np.ndarray, labels: np.ndarray) -> float:
    """Spearman's rank correlation of two columns (n,), ties at their mean rank; 0 where either is constant."""
    import numpy as np
    from scipy.stats import rankdata

    if np.ptp(scores) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(scores), rankdata(labels))[0, 1])


def bootstrap_stderr(
    statistic: Callable[[np.ndarray, np.ndarray], float], scores: np.ndarray, labels: np.ndarray
) -> float:
    """The bootstrap standard error over documents: RESAMPLES draws with replacement from a generator seeded SEED."""
    import numpy as np

    generator = np.random.default_rng(SEED)
    draws = generator.integers(len(scores), size=(RESAMPLES, len(scores)))
    values = [statistic(scores[draw], labels[draw]) for draw in draws]
    return float(np.nanstd(values, ddof=1))
