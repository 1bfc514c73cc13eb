"""Medians with intervals, paired ratios, and when a warm-up has settled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from sparsebench.runtime.results import PhaseDifference, PhaseSummary, Sample, Side

RESAMPLES = 2000
P90_SAMPLES = 64


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the median of ``values``; one value is its own interval."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(np.median(data[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def steady(values: Sequence[float], window: int = 3, tolerance: float = 0.05) -> bool:
    """Whether the medians of the last two windows differ by at most ``tolerance`` of the smaller."""
    if len(values) < 2 * window:
        return False
    first, second = median(values[-2 * window : -window]), median(values[-window:])
    return abs(first - second) <= tolerance * min(first, second)


def summary(
    phase: str, side: Side, samples: Sequence[Sample], is_steady: bool, seed: int, energy: float | None = None
) -> PhaseSummary:
    """The summary of one phase of one side; ``samples`` must hold at least one; ``energy`` is in joules per step."""
    walls = sorted(sample.wall_s for sample in samples)
    middle = median(walls)
    low, high = median_interval(walls, seed)
    return PhaseSummary(
        phase=phase,
        side=side,
        median_s=middle,
        low_s=low,
        high_s=high,
        mad_s=median(abs(wall - middle) for wall in walls),
        n=len(walls),
        steady=is_steady,
        cpu_s=median(sample.cpu_s for sample in samples),
        p90_s=walls[math.ceil(0.9 * len(walls)) - 1] if len(walls) >= P90_SAMPLES else None,
        energy_j=energy,
    )


def paired_ratio(phase: str, dense: Sequence[Sample], variant: Sequence[Sample]) -> PhaseDifference:
    """Variant over dense from medians of blocks that ran next to each other.

    The ratio is the geometric mean over pairs, its interval Student's t on the logarithms: a bootstrap of a handful of
    pairs would be too narrow. Needs at least two pairs.
    """
    import numpy as np
    from scipy.special import stdtrit

    blocks = sorted({sample.block for sample in dense} & {sample.block for sample in variant})
    logs = np.array([math.log(_block(variant, block) / _block(dense, block)) for block in blocks])
    centre = float(logs.mean())
    half = float(stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return PhaseDifference(phase, math.exp(centre), math.exp(centre - half), math.exp(centre + half), len(logs))


def unpaired_ratio(phase: str, dense: Sequence[Sample], variant: Sequence[Sample], seed: int) -> PhaseDifference:
    """Ratio of medians of two groups that did not run together, with a percentile-bootstrap interval; pairs is 0."""
    import numpy as np

    generator = np.random.default_rng(seed)

    def medians(samples: Sequence[Sample]) -> np.ndarray:
        data = np.array([sample.wall_s for sample in samples])
        return np.median(data[generator.integers(0, len(data), size=(RESAMPLES, len(data)))], axis=1)

    low, high = np.quantile(medians(variant) / medians(dense), [0.025, 0.975])
    ratio = median(sample.wall_s for sample in variant) / median(sample.wall_s for sample in dense)
    return PhaseDifference(phase, ratio, float(low), float(high), 0)


def _block(samples: Sequence[Sample], block: int) -> float:
    return median(sample.wall_s for sample in samples if sample.block == block)
