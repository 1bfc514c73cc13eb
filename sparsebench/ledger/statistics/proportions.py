"""0/1 outcomes: exact paired tests, and intervals that hold near 0 and 1. Counts may be effective, so not integers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from sparsebench.benchmarks.statistics import Floats
from sparsebench.ledger.statistics.contract import Z95, Integers

_MAX_DISTANCE = 1e6
"""How far from the estimate the end of a ratio's interval is sought; beyond, the interval has no end."""


@dataclass(frozen=True)
class PairedCounts:
    """Counts of documents by which side is right; clustered documents count as fewer, independent ones."""

    both: float
    gained: float
    lost: float
    neither: float

    @property
    def n(self) -> float:
        """The number of all documents."""
        return self.both + self.gained + self.lost + self.neither

    def scaled(self, factor: float) -> PairedCounts:
        """Return the same shares for ``factor`` times as many documents."""
        return PairedCounts(self.both * factor, self.gained * factor, self.lost * factor, self.neither * factor)

    def correlation(self) -> float:
        """Return Newcombe's φ of the pairs, with his continuity correction, which is for positive correlation only."""
        margins = (self.both + self.gained) * (self.lost + self.neither)
        margins *= (self.both + self.lost) * (self.gained + self.neither)
        excess = self.both * self.neither - self.gained * self.lost
        corrected = max(0.0, excess - self.n / 2) if excess > 0 else excess
        return corrected / math.sqrt(margins) if margins else 0.0


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion (1927); ``n`` must be above 0."""
    centre = (successes + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(max(0.0, successes * (n - successes)) / n + z * z / 4)
    # Without a success the interval begins at exactly 0: rounding must not put it above a chance of 0.
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half)


def sign_flip(net: Integers) -> float:
    """Return the exact two-sided p value of swapping both sides of whole clusters; ``net`` is gained less lost in each.

    Convolution gives the distribution of the sum of ±|net| over all swaps. Where every cluster has one document, this
    is McNemar's test.
    """
    observed = abs(int(net.sum()))
    if observed <= 1:
        return 1.0  # the sums are all even or all odd, so none is nearer to 0
    sizes, counts = np.unique(np.abs(net[net != 0]), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spaced = np.zeros(size * count + 1)
        spaced[::size] = binomial(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spaced)
    total = len(chances) - 1
    as_extreme = np.abs(2 * np.arange(total + 1) - total) >= observed
    return float(np.clip(chances[as_extreme].sum(), sys.float_info.min, 1.0))  # a p value is never exactly 0


def binomial(k: Integers, n: int, share: float) -> Floats:
    """Return the probabilities of ``k`` hits in ``n`` trials, each a hit with probability ``share``."""
    log_ways = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.exp(log_ways + xlogy(k, share) + xlog1py(n - k, -share))


def newcombe(table: PairedCounts, z: float = Z95) -> tuple[float, float]:
    """Return Newcombe's interval (95% by default) of the difference of two paired proportions.

    The difference is (both + gained) / n - (both + lost) / n.

    Method 10 of Statistics in Medicine 17, 2635-2650 (1998): square-and-add with the correlation of the pairs.
    """
    (variant, variant_low, variant_high), (dense, dense_low, dense_high) = _shares_with_intervals(table, z)
    phi = table.correlation()
    difference = variant - dense
    down = _square_and_add(variant - variant_low, dense_high - dense, phi)
    up = _square_and_add(variant_high - variant, dense - dense_low, phi)
    return difference - down, difference + up


def retained(table: PairedCounts, chance: float) -> tuple[float | None, float | None]:
    """Return the 95% interval of (variant - chance) / (dense - chance).

    It holds the ratios r for which variant - r dense, both counted from chance, may be 0 by ``newcombe``'s
    square-and-add (MOVER: Zou & Donner, Statistics in Medicine 27, 1693-1702, 2008). Without clusters it holds 1
    exactly when the interval of the difference holds 0. An end is None where there is none. The dense share must be
    above ``chance``.
    """
    (variant, variant_low, variant_high), (dense, dense_low, dense_high) = _shares_with_intervals(table)
    phi = table.correlation()
    variant_gain, dense_gain = variant - chance, dense - chance

    def limit(ratio: float, upper: bool) -> float:
        # The end of r x dense that widens the limit. With r < 0 its ends swap, and the correlation changes its sign.
        variant_width = variant_high - variant if upper else variant - variant_low
        dense_width = (dense - dense_low) if upper == (ratio >= 0) else (dense_high - dense)
        root = _square_and_add(variant_width, abs(ratio) * dense_width, phi if ratio >= 0 else -phi)
        return variant_gain - ratio * dense_gain + (root if upper else -root)

    estimate = variant_gain / dense_gain
    return _end(limit, estimate, upper=False), _end(limit, estimate, upper=True)


def _end(limit: Callable[[float, bool], float], start: float, upper: bool) -> float | None:
    """Return the ratio r, from ``start`` outwards, where the limit of variant - r dense reaches 0; None if none does.

    Going down from the estimate the difference grows, until its lower limit is above 0; going up, the reverse.
    """
    direction = 1.0 if upper else -1.0
    step, near = 1e-3, start
    while (limit(start + direction * step, upper) > 0) == upper:
        near, step = start + direction * step, step * 2
        if step > _MAX_DISTANCE:
            return None
    far = start + direction * step
    for _ in range(60):
        middle = (near + far) / 2
        near, far = (middle, far) if (limit(middle, upper) > 0) == upper else (near, middle)
    return far


def _shares_with_intervals(
    table: PairedCounts, z: float = Z95
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return the share and both ends of its Wilson interval: the variant's, then the dense model's."""
    n = table.n
    variant, dense = (
        (successes / n, *wilson(successes, n, z)) for successes in (table.both + table.gained, table.both + table.lost)
    )
    return variant, dense


def _square_and_add(a: float, b: float, phi: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * phi * a * b + b * b))
