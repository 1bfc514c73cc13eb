"""Student's t, so that few documents are not judged as if they were many."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_SERIES = 200
"""Degrees of freedom up to which the exact series is summed."""


def tail(t: float, df: int) -> float:
    """P(T > t) for ``t`` >= 0: the finite series of Abramowitz & Stegun 26.7.3-4, far out their 26.7.8."""
    if df > _SERIES:
        return NormalDist().cdf(-t * (1 - 1 / (4 * df)) / math.sqrt(1 + t * t / (2 * df)))
    theta = math.atan(t / math.sqrt(df))
    cosine, term, total = math.cos(theta) ** 2, 1.0, 0.0
    if df % 2:
        term = math.cos(theta)
        for k in range(2, df, 2):
            total += term
            term *= cosine * k / (k + 1)
        return max(0.0, 0.5 - (theta + math.sin(theta) * total) / math.pi)
    for k in range(1, df, 2):
        total += term
        term *= cosine * k / (k + 1)
    return max(0.0, (1 - math.sin(theta) * total) / 2)


@lru_cache(maxsize=256)
def quantile(share: float, df: int) -> float:
    """The t that a share of 0.5 to 1 of draws stays below."""
    low, high = 0.0, 1.0
    while tail(high, df) > 1 - share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, df) > 1 - share else (low, middle)
    return high
