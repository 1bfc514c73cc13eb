"""Perplexity: its logarithm is a mean of log-losses over windows of text, judged by Student's t.

A window's outcome is the sum of -ln p over its tokens. The mean is taken over all tokens, and its standard error comes
from how windows differ from it (a ratio estimator; for windows of one length, the usual standard error).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import gammaln, nctdtrinc, stdtr, stdtrit

from sparsebench.benchmarks.statistics import Floats
from sparsebench.ledger.statistics.contract import Comparison, Integers, Interval, Pairs, count_clusters, not_compared
from sparsebench.ledger.statistics.resampling import LOG_LARGEST
from sparsebench.ledger.statistics.sensitivity import WANTED

FEWEST_WINDOWS = 3
"""The fewest windows that give an interval: two say next to nothing of how much windows vary."""
FEW_WINDOWS = 8
"""With fewer windows an interval is marked ``(few)``: it assumes that windows are alike, which so few cannot show."""


@dataclass(frozen=True)
class Mean:
    """A mean log-loss per token, with its standard error, over ``n`` windows (or clusters of windows)."""

    value: float
    error: float
    n: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval by Student's t."""
        margin = _quantile(0.975, self.n) * self.error
        return self.value - margin, self.value + margin

    @property
    def p(self) -> float:
        """The two-sided p value against 0. Where all windows agree, it is 1 for a mean of 0, and 0 for any other."""
        if not self.error:
            return float(self.value == 0)
        return 2 * float(stdtr(self.n - 1, -abs(self.value) / self.error))

    @property
    def detectable(self) -> float:
        """The rise that ``n`` windows show with 80% power (noncentral t), the error's small-sample bias removed."""
        freedom = self.n - 1
        bias = math.sqrt(2 / freedom) * math.exp(gammaln((freedom + 1) / 2) - gammaln(freedom / 2))
        return float(nctdtrinc(freedom, 1 - WANTED, _quantile(0.975, self.n))) * self.error / bias


def mean(losses: Floats, tokens: Floats, clusters: Integers | None = None) -> Mean:
    """Return the mean of ``losses`` (n,), each the sum over that window's ``tokens`` (n,), for two windows or more."""
    value = losses.sum() / tokens.sum()
    residuals = losses - value * tokens
    if clusters is not None:
        residuals = np.bincount(clusters, weights=residuals)
    n = len(residuals)
    return Mean(float(value), float(math.sqrt(n / (n - 1) * float(residuals @ residuals)) / tokens.sum()), n)


def interval(losses: Floats, tokens: Floats, clusters: Integers | None) -> Interval:
    """Return the 95% interval of a perplexity."""
    n_windows = count_clusters(len(losses), clusters)
    if n_windows < FEWEST_WINDOWS:
        return Interval(None, None, f"none: {_too_few(n_windows)}")
    low, high = mean(losses, tokens, clusters).interval
    return Interval(_capped_exp(low), _capped_exp(high), f"t of log-losses, {_described(n_windows)}")


def compare(pairs: Pairs, chance: float | None = None) -> Comparison:
    """Compare two perplexities on the same windows: the ratio's interval, as a difference from the dense perplexity.

    ``detectable`` is in the same unit; divided by the dense perplexity it is a share. ``chance`` is a perplexity
    without skill; the share retained is computed from logarithms.
    """
    n_windows = pairs.cluster_count
    if n_windows < FEWEST_WINDOWS:
        too_few = not_compared(_too_few(n_windows), higher_is_better=False)
        return replace(too_few, n=len(pairs.variant), clusters=n_windows)
    dense = _capped_exp(float(pairs.dense.sum() / pairs.labels.sum()))
    shift = mean(pairs.variant - pairs.dense, pairs.labels, pairs.cluster_codes)
    low, high = shift.interval
    return Comparison(
        n=len(pairs.variant),
        difference=_capped_exp(math.log(dense) + shift.value) - dense,
        low=_capped_exp(math.log(dense) + low) - dense,
        high=_capped_exp(math.log(dense) + high) - dense,
        p=shift.p,
        method=f"paired t of log-losses, {_described(n_windows)}",
        higher_is_better=False,
        clusters=n_windows,
        detectable=_capped_exp(math.log(dense) + shift.detectable) - dense,
        loss_at_most=_capped_exp(math.log(dense) + shift.value + _quantile(0.95, n_windows) * shift.error) - dense,
        **_retained(pairs, chance),
    )


def _retained(pairs: Pairs, chance: float | None) -> dict[str, Any]:
    """Return the share left of dense's gain in log-loss over ``chance``, with Fieller's interval of a ratio of means.

    It holds each ratio r for which the mean of variant - r dense, both from chance, may be 0 by Student's t (Fieller,
    J. of the Royal Statistical Society B 16, 175-185, 1954). Empty where dense cannot be told from chance: the interval
    has no ends then.
    """
    if chance is None or chance <= 0:
        return {}
    tokens, clusters = pairs.labels, pairs.cluster_codes
    floor = math.log(chance) * tokens
    gain, dense_gain, sum_of_gains = (
        mean(losses, tokens, clusters)
        for losses in (floor - pairs.variant, floor - pairs.dense, 2 * floor - pairs.variant - pairs.dense)
    )
    if dense_gain.interval[0] <= 0:
        return {}
    squared = _quantile(0.975, gain.n) ** 2
    shared = (sum_of_gains.error**2 - gain.error**2 - dense_gain.error**2) / 2
    top, middle, base = (
        gain.value**2 - squared * gain.error**2,
        gain.value * dense_gain.value - squared * shared,
        dense_gain.value**2 - squared * dense_gain.error**2,
    )
    root = math.sqrt(max(0.0, middle**2 - top * base))
    return {
        "retained": gain.value / dense_gain.value,
        "retained_low": (middle - root) / base,
        "retained_high": (middle + root) / base,
    }


def _described(n_windows: int) -> str:
    return f"{n_windows} windows{' (few)' if n_windows < FEW_WINDOWS else ''}"


def _too_few(n_windows: int) -> str:
    return f"too few windows ({n_windows}) to show how much they vary"


def _quantile(share: float, n: int) -> float:
    return float(stdtrit(n - 1, share))


def _capped_exp(value: float) -> float:
    """Return exp(``value``), at most the largest double: a collapsed model's perplexity may lie beyond it."""
    return math.exp(min(value, LOG_LARGEST))
