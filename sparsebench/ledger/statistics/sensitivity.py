"""What a sample can show: the power of the exact McNemar test, and the smallest difference that it finds."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from scipy.special import bdtrc, bdtrik, stdtrit

from sparsebench.ledger.statistics.contract import Z95, rows_of_views
from sparsebench.ledger.statistics.proportions import binomial

ASSUMED = 0.1
"""The share of documents on which exactly one of two models is assumed to be right, before anything is measured."""
WANTED = 0.8
"""The power at which a difference counts as detectable."""
LEVEL = 0.05
_WIDE = 6.0
"""Standard deviations beyond which a binomial's tail is left out."""
_RARE = 8
"""Counts added to that width, because the tail of a rare event is longer."""
_ROWS = 150
"""From twice as many possible numbers of discordant documents on, only every third, fifth, … is evaluated."""
_CLOSE = 1e-3


@lru_cache(maxsize=4096)
def detectable(n: int, discordance: float = ASSUMED) -> float | None:
    """Return the smallest drop that ``n`` paired documents show with 80% power, two-sided 0.05; None if there is none.

    ``discordance`` is the share of documents on which exactly one model is right; it is at least the drop.
    """
    if power(n, discordance, 1.0) < WANTED:
        return None
    low, high = 0.0, 1.0
    drop = _normal(n, discordance)
    # Newton's steps on the normal scale, where power is close to a line of slope √(n / ψ) in the drop; kept between a
    # drop known to be too small and one known to be enough.
    for _ in range(40):
        reached = power(n, discordance, drop)
        low, high = (drop, high) if reached < WANTED else (low, drop)
        if abs(reached - WANTED) < _CLOSE:
            break
        slope = math.sqrt(n / max(discordance, drop))
        step = (_probit(WANTED) - _probit(reached)) / slope
        drop = drop + step if low < drop + step < high else (low + high) / 2
    return drop


def documents_needed(drop: float, discordance: float = ASSUMED) -> int:
    """Return how many paired documents show a true ``drop`` with 80% power, two-sided 0.05 (Connor's approximation)."""
    return int(rows_of_views("SELECT documents_needed($drop, $discordance)", drop=drop, discordance=discordance)[0][0])


def power(n: int, discordance: float, drop: float) -> float:
    """Return the probability that the exact McNemar test finds (p < 0.05) a true ``drop`` in ``n`` documents.

    The number of discordant documents is binomial (n, ψ), and a share (1 + drop / ψ) / 2 of them is lost; ψ is the
    larger of ``discordance`` and ``drop``.
    """
    psi = min(1.0, max(discordance, drop))
    if n < 1 or not psi:
        return 0.0
    spread = _WIDE * math.sqrt(n * psi * (1 - psi)) + _RARE
    counts = np.arange(max(0, math.floor(n * psi - spread)), min(n, math.ceil(n * psi + spread)) + 1)
    counts = counts[:: len(counts) // _ROWS | 1]
    weights = binomial(counts, n, psi)
    share = (1 + drop / psi) / 2
    # The most that may be lost without p < 0.05.
    most_lost = np.where(counts > 0, np.ceil(bdtrik(1 - LEVEL / 2, counts, 0.5)), 0)
    rejected = bdtrc(most_lost, counts, share) + bdtrc(most_lost, counts, 1 - share)
    return float((weights * rejected).sum() / weights.sum())


def detectable_from_interval(low: float, high: float, n: int) -> float:
    """Return the difference reached with 80% power, from the width of the 95% interval of ``n`` documents or clusters."""
    beyond, reached = stdtrit(n - 1, [1 - LEVEL / 2, WANTED])
    return float((high - low) / 2 * (beyond + reached) / beyond)


def _normal(n: int, psi: float) -> float:
    """Return where the search begins: Connor's approximation (Biometrics 43, 207-211, 1987), solved for the drop."""
    beta = _probit(WANTED)
    drop = (Z95 + beta) * math.sqrt(psi / n)
    for _ in range(5):
        drop = (Z95 * math.sqrt(psi) + beta * math.sqrt(max(0.0, psi - drop * drop))) / math.sqrt(n)
    return min(1.0, max(drop, 1 / n))


def _probit(share: float) -> float:
    return NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9))
