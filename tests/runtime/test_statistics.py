"""Medians, intervals, ratios and steadiness, against the slow obvious way or a known truth."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.runtime.latency import median_interval, paired_ratio, steady, summary, unpaired_ratio
from sparsebench.runtime.results import Sample, Side

times = st.lists(st.floats(1e-4, 10), min_size=1, max_size=40)


def samples(side: Side, walls: list[float], block: int = 4) -> list[Sample]:
    return [Sample("decode", side, place // block, place % block, wall, wall) for place, wall in enumerate(walls)]


@given(times)
def test_the_interval_lies_within_the_values_and_around_the_median(values: list[float]) -> None:
    low, high = median_interval(values)
    assert min(values) <= low <= high <= max(values)
    if len(values) > 2:
        assert low <= median(values) <= high


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    generator = random.Random(1)
    covered = 0
    for seed in range(200):
        low, high = median_interval([generator.lognormvariate(0, 0.3) for _ in range(24)], seed)
        covered += low <= 1.0 <= high
    assert 180 <= covered <= 199


def test_summary_of_known_numbers() -> None:
    found = summary("decode", "dense", samples("dense", [1.0, 2.0, 3.0, 4.0, 100.0]), True, 0)
    assert (found.median_s, found.mad_s, found.n, found.p90_s, found.cpu_s) == (3.0, 1.0, 5, None, 3.0)


def test_the_90th_percentile_needs_64_samples() -> None:
    walls = [float(place) for place in range(1, 65)]
    assert summary("decode", "dense", samples("dense", walls[:63]), True, 0).p90_s is None
    assert summary("decode", "dense", samples("dense", walls), True, 0).p90_s == 58.0


def test_a_paired_ratio_ignores_a_drift_that_both_sides_share() -> None:
    drift = [1.0 + 0.2 * (place // 4) for place in range(24)]
    found = paired_ratio("decode", samples("dense", drift), samples("variant", [0.8 * wall for wall in drift]))
    assert found.ratio == pytest.approx(0.8)
    assert found.low == pytest.approx(0.8)
    assert found.high == pytest.approx(0.8)
    assert found.pairs == 6


def test_the_paired_interval_is_students_on_the_logarithms() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    ratios = [0.9, 1.0, 1.1, 1.3]
    dense = samples("dense", [2.0] * 4, block=1)
    variant = samples("variant", [2.0 * ratio for ratio in ratios], block=1)
    found = paired_ratio("decode", dense, variant)
    interval = scipy_stats.ttest_1samp([math.log(ratio) for ratio in ratios], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_an_unpaired_ratio_contains_the_truth_and_counts_no_pairs() -> None:
    generator = random.Random(2)
    dense = samples("dense", [generator.gauss(1, 0.05) for _ in range(24)])
    variant = samples("variant", [generator.gauss(0.7, 0.05) for _ in range(24)])
    found = unpaired_ratio("decode", dense, variant, 0)
    assert found.low <= 0.7 <= found.high < 0.8
    assert found.pairs == 0


def test_warm_up_is_steady_when_two_windows_agree() -> None:
    assert not steady([5, 1, 1, 1, 1])
    assert not steady([9, 9, 9, 1, 1, 1])
    assert steady([9, 9, 1.0, 1.01, 1.02, 1.0, 1.01, 1.03])
