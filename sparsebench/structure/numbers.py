"""Statistics of one tensor: counts, moments and a histogram, in bounded memory.

16-bit floats are counted by bit pattern: a tensor of any size becomes 65,536 counts in one pass, from which everything
else follows exactly. Wider floats are read three times, in blocks that fit the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sparsebench.errors import ModelError

BLOCK = 1 << 17
"""The number of weights in a block: 512 KiB of float32, which stays in the second-level cache."""
BINS_PER_OCTAVE = 3
LOWEST, HIGHEST = -16, 6
EDGES: tuple[float, ...] = tuple(
    LOWEST + step / BINS_PER_OCTAVE for step in range((HIGHEST - LOWEST) * BINS_PER_OCTAVE + 1)
)
"""The histogram's bin edges, as log2(|w| / rms): 66 bins, three to an octave, from 2^-16 to 2^6."""

_WIDE = {"F32": np.float32, "F64": np.float64}

AnyFloats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TensorStatistics:
    """Counts and moments of one tensor.

    ``zeros`` counts +0 and -0. ``below_absolute`` and ``below_relative`` count the weights with |w| < t and |w| < t ·
    rms, exact zeros always included, so that an all-zero tensor is not "far from zero". ``histogram`` counts the
    nonzero weights: below 2^-16 rms, in the bins between EDGES, and from 2^6 rms on. ``std`` is the population's.
    ``kurtosis`` is the excess (0 for a normal distribution, population moments), None where all weights are equal or
    their variance is too small or too large to square. All counts are exact.
    """

    count: int
    zeros: int
    below_absolute: tuple[int, ...]
    below_relative: tuple[int, ...]
    mean: float
    std: float
    rms: float
    kurtosis: float | None
    min: float
    max: float
    histogram: tuple[int, ...]


def tensor_statistics(
    bits: npt.NDArray[np.uint8], dtype: str, absolute: Sequence[float], relative: Sequence[float]
) -> TensorStatistics:
    """Return the statistics of a non-empty tensor, given as its bytes, of safetensors dtype BF16, F16, F32 or F64.

    ``absolute`` are thresholds on |w|, ``relative`` on |w| in units of the tensor's root mean square.
    Raises ModelError (without the tensor's name) when a weight is NaN or infinite.
    """
    if dtype in _WIDE:
        return _from_blocks(bits.view(_WIDE[dtype]), absolute, relative)
    return _from_patterns(bits.view(np.uint16), dtype, absolute, relative)


def _from_patterns(
    patterns: npt.NDArray[np.uint16], dtype: str, absolute: Sequence[float], relative: Sequence[float]
) -> TensorStatistics:
    pattern_counts = np.zeros(1 << 16, np.int64)
    for start in range(0, patterns.size, BLOCK):
        pattern_counts += np.bincount(patterns[start : start + BLOCK], minlength=1 << 16)
    present = np.flatnonzero(pattern_counts)
    values = _decode(present.astype(np.uint16), dtype)
    counts = pattern_counts[present]
    if not np.isfinite(values).all():
        raise _not_finite(int(counts[~np.isfinite(values)].sum()))
    order = np.argsort(np.abs(values), kind="stable")
    magnitudes = np.abs(values)[order]
    cumulative = np.concatenate([[0], np.cumsum(counts[order])])

    def below(thresholds: Doubles) -> npt.NDArray[np.int64]:
        return cumulative[np.searchsorted(magnitudes, thresholds, side="left")]

    frequencies = counts.astype(np.float64)
    mean = float(frequencies @ values) / patterns.size
    square = float(frequencies @ (values * values)) / patterns.size
    squared_deviations = (values - mean) ** 2
    second = float(frequencies @ squared_deviations) / patterns.size
    fourth = float(frequencies @ (squared_deviations * squared_deviations)) / patterns.size
    moments = _Moments(mean, square, second, fourth)
    return _assemble(patterns.size, moments, (values.min(), values.max()), below, absolute, relative)


def _from_blocks(weights: AnyFloats, absolute: Sequence[float], relative: Sequence[float]) -> TensorStatistics:
    total = square = second = fourth = 0.0
    lowest, highest, finite = np.inf, -np.inf, True
    for block in _blocks(weights):
        finite &= bool(np.isfinite(block).all())  # the min and max below would lose a NaN
        doubles = block.astype(np.float64)
        total += float(doubles.sum())
        square += float(doubles @ doubles)
        lowest, highest = min(lowest, float(block.min())), max(highest, float(block.max()))
    if not finite:
        raise _not_finite(int(np.count_nonzero(~np.isfinite(weights))))
    mean = total / weights.size
    with np.errstate(over="ignore"):  # of float64: without finite fourth powers there is no kurtosis
        for block in _blocks(weights):
            doubles = block.astype(np.float64)
            doubles -= mean
            doubles *= doubles
            second += float(doubles.sum())
            fourth += float(doubles @ doubles)

    def below(thresholds: Doubles) -> npt.NDArray[np.int64]:
        limits = _round_up(thresholds, weights.dtype)
        counts = np.zeros(len(limits), np.int64)
        for block in _blocks(weights):
            magnitudes = np.abs(block)
            counts += [np.count_nonzero(magnitudes < limit) for limit in limits]
        return counts

    moments = _Moments(mean, square / weights.size, second / weights.size, fourth / weights.size)
    return _assemble(weights.size, moments, (lowest, highest), below, absolute, relative)


class _Moments(NamedTuple):
    """Means over a tensor's weights: of their values, of their squares, and of the second and fourth powers of their
    distances from the mean."""

    mean: float
    square: float
    second: float
    fourth: float


def _assemble(
    count: int,
    moments: _Moments,
    extremes: tuple[float, float],
    below: Callable[[Doubles], npt.NDArray[np.int64]],
    absolute: Sequence[float],
    relative: Sequence[float],
) -> TensorStatistics:
    """Return a tensor's statistics; ``below`` counts the weights with |w| less than each of some thresholds."""
    rms = moments.square**0.5
    # Equal weights have no variance: a computed one is the rounding error of their mean.
    variance = moments.second if extremes[0] < extremes[1] else 0.0
    smallest = np.nextafter(0.0, 1.0)  # |w| below it means w == 0
    edges = rms * np.exp2(np.array(EDGES))
    thresholds = np.concatenate([[smallest], absolute, np.array(relative) * rms, edges])
    zeros, *below_counts = map(int, below(np.maximum(thresholds, smallest)))
    at_edges = below_counts[len(absolute) + len(relative) :]
    squared = variance * variance  # `variance**2` would raise OverflowError where this is infinite
    return TensorStatistics(
        count=count,
        zeros=zeros,
        below_absolute=tuple(below_counts[: len(absolute)]),
        below_relative=tuple(below_counts[len(absolute) : len(absolute) + len(relative)]),
        mean=moments.mean,
        std=variance**0.5,
        rms=rms,
        kurtosis=moments.fourth / squared - 3 if squared and moments.fourth < np.inf else None,
        min=float(extremes[0]),
        max=float(extremes[1]),
        histogram=tuple(np.diff([zeros, *at_edges, count]).tolist()),
    )


def _blocks(weights: AnyFloats) -> Iterator[AnyFloats]:
    for start in range(0, weights.size, BLOCK):
        yield weights[start : start + BLOCK]


def _round_up(thresholds: Doubles, dtype: np.dtype) -> AnyFloats:
    """Return the smallest numbers of ``dtype`` that are at least the thresholds: comparisons with them are exact."""
    rounded: AnyFloats = thresholds.astype(dtype)
    return np.where(rounded < thresholds, np.nextafter(rounded, np.array(np.inf, dtype)), rounded)


def _decode(patterns: npt.NDArray[np.uint16], dtype: str) -> Doubles:
    if dtype == "BF16":
        return (patterns.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return patterns.view(np.float16).astype(np.float64)


def _not_finite(count: int) -> ModelError:
    return ModelError(f"{count} weights are NaN or infinite", "fetch or convert the checkpoint again")
