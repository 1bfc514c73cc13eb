"""What a sample can show: the power of the exact McNemar test, and the smallest difference that it finds."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

from sparsebench.ledger.statistics import student
from sparsebench.ledger.statistics.contract import Z95

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sparsebench.ledger.statistics.contract import Floats, Integers

ASSUMED = 0.1
"""The share of documents on which two models are taken to differ in being right, where nothing has been measured yet."""
WANTED = 0.8
LEVEL = 0.05
_WIDE = 6.0
"""Standard deviations after which a binomial's tail is left out."""
_RARE = 8
"""So many more, because that of a rare event is longer."""
_ROWS = 150
"""Of more numbers of discordant documents than this, every third, fifth, … is looked at."""
_CLOSE = 1e-3


@lru_cache(maxsize=4096)
def detectable(n: int, discordance: float = ASSUMED) -> float | None:
    """The smallest drop that ``n`` paired documents show with a power of 80%, two-sided 0.05; None where none is that large.

    ``discordance`` is the share of documents on which exactly one model is right; a larger drop needs as much.
    """
    if power(n, discordance, 1.0) < WANTED:
        return None
    low, high = 0.0, 1.0
    drop = _normal(n, discordance)
    # Newton's steps on the normal scale, where power is close to a line of slope √(n / ψ) in the drop; kept between what is
    # known to be too little and what is known to be enough.
    for _ in range(40):
        found = power(n, discordance, drop)
        low, high = (drop, high) if found < WANTED else (low, drop)
        if abs(found - WANTED) < _CLOSE:
            break
        slope = math.sqrt(n / max(discordance, drop))
        step = (_probit(WANTED) - _probit(found)) / slope
        drop = drop + step if low < drop + step < high else (low + high) / 2
    return drop


def needed(drop: float, discordance: float = ASSUMED) -> int:
    """Paired documents on which a true ``drop`` shows with a power of 80%, two-sided 0.05; the ledger's ``documents_needed``.

    Connor's formula (Biometrics 43, 207-211, 1987): the exact test takes a few more where they are few.
    """
    psi = max(discordance, drop)
    return math.ceil(((Z95 * math.sqrt(psi) + _probit(WANTED) * math.sqrt(psi - drop * drop)) / drop) ** 2)


def power(n: int, discordance: float, drop: float) -> float:
    """The chance that the exact McNemar test finds (p < 0.05) a true ``drop`` in ``n`` documents.

    The number of discordant documents is binomial (n, ψ), of which a share (1 + drop / ψ) / 2 is lost; ψ is
    ``discordance``, or ``drop`` where that is more.
    """
    import numpy as np

    psi = min(1.0, max(discordance, drop))
    if n < 1 or not psi:
        return 0.0
    spread = _WIDE * math.sqrt(n * psi * (1 - psi)) + _RARE
    counts = np.arange(max(0, math.floor(n * psi - spread)), min(n, math.ceil(n * psi + spread)) + 1)
    counts = counts[:: len(counts) // _ROWS | 1]
    weights = np.exp(_log_binomial(np.full_like(counts, n), counts, psi))
    share = (1 + drop / psi) / 2
    critical = _critical(counts)
    found = _tail(counts, critical, share) + _tail(counts, critical, 1 - share)
    return float((weights * found).sum() / weights.sum())


def of_interval(low: float, high: float, n: int) -> float:
    """The difference found with a power of 80%, from the width of the 95% interval of ``n`` documents or clusters."""
    beyond = student.quantile(0.975, n - 1)
    return (high - low) / 2 * (beyond + student.quantile(WANTED, n - 1)) / beyond


def _normal(n: int, psi: float) -> float:
    """Connor's approximation (Biometrics 43, 207-211, 1987), solved for the drop: where the search begins."""
    beta = _probit(WANTED)
    drop = (Z95 + beta) * math.sqrt(psi / n)
    for _ in range(5):
        drop = (Z95 * math.sqrt(psi) + beta * math.sqrt(max(0.0, psi - drop * drop))) / math.sqrt(n)
    return min(1.0, max(drop, 1 / n))


def _probit(share: float) -> float:
    return NormalDist().inv_cdf(min(max(share, 1e-9), 1 - 1e-9))


def _critical(counts: Integers) -> Integers:
    """Of each number of discordant documents, the least that must be lost for p < 0.05; more than there are where none does."""
    import numpy as np

    # From half of them up, far enough that the tail there is below any level that matters.
    width = int(_WIDE / 2 * math.sqrt(counts.max(initial=1))) + 2
    starts = counts // 2
    lost = starts[:, None] + np.arange(width + 1)
    chances = np.exp(_log_binomial(counts[:, None], lost, 0.5))
    tails = np.cumsum(chances[:, ::-1], axis=1)[:, ::-1]
    return starts + (2 * tails >= LEVEL).sum(axis=1)


def _tail(counts: Integers, least: Integers, share: float) -> Floats:
    """P(at least ``least`` of ``counts``), each (m,), for a binomial of this share."""
    import numpy as np

    if share <= 0:
        return np.where(least <= 0, 1.0, 0.0)
    top = np.minimum(counts, np.ceil(counts * share + _WIDE * np.sqrt(counts * share * (1 - share)) + 1).astype(int))
    width = int(max(0, (top - least).max(initial=0))) + 1
    chances = np.exp(_log_binomial(counts[:, None], least[:, None] + np.arange(width), share))
    total: Floats = chances.sum(axis=1)
    return total


def _log_binomial(n: Integers, k: npt.NDArray[np.int64], share: float) -> Floats:
    """The logarithm of the binomial probability of ``k`` of ``n``; minus infinity where k is above n."""
    import numpy as np

    inside = k <= n
    k = np.where(inside, k, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        hits = np.where(k > 0, k * np.log(share), 0.0)
        misses = np.where(n - k > 0, (n - k) * np.log1p(-share), 0.0) if share < 1 else np.where(n > k, -np.inf, 0.0)
    logs = _log_factorials(int(n.max(initial=0)))
    return np.where(inside, logs[n] - logs[k] - logs[np.where(inside, n - k, 0)] + hits + misses, -np.inf)


@lru_cache(maxsize=64)
def _log_factorials(n: int) -> Floats:
    """ln 0! to ln n!, (n + 1,)."""
    import numpy as np

    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
