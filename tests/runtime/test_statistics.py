"""Medians, intervals, ratios and steadiness, against the slow obvious way or a known truth."""

import math
import random
from statistics import fmean, median, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sparsebench.runtime.intervals import (
    differences,
    disagreement_notes,
    last_windows_agree,
    paired_ratio,
    summaries,
    summary,
    unpaired_ratio,
)
from sparsebench.runtime.results import Side, TimingSample

times = st.lists(st.floats(1e-4, 10), min_size=1, max_size=40)


def samples(side: Side, walls: list[float], block: int = 4, process: int = 0) -> list[TimingSample]:
    return [
        TimingSample("decode", side, place // block, place % block, wall, wall, process)
        for place, wall in enumerate(walls)
    ]


def several(side: Side, processes: list[list[float]], block: int = 2) -> list[TimingSample]:
    return [one for number, walls in enumerate(processes) for one in samples(side, walls, block, number)]


@given(times)
def test_the_interval_lies_around_what_is_shown(walls: list[float]) -> None:
    found = summary("decode", "dense", samples("dense", walls), 1)
    assert found.low_s <= found.median_s <= found.high_s
    assert min(walls) * (1 - 1e-9) <= found.median_s <= max(walls) * (1 + 1e-9)


def test_one_step_is_its_own_interval() -> None:
    found = summary("load", "dense", [TimingSample("load", "dense", 0, 0, 2.0, 1.0)], 0)
    assert (found.low_s, found.median_s, found.high_s) == pytest.approx((2.0, 2.0, 2.0))
    assert not found.steady


def test_processes_count_once_each_however_many_steps_they_took() -> None:
    walls = [[1.0, 1.1, 0.9], [1.2] * 9, [0.8, 0.85, 0.9]]
    found = summary("decode", "dense", several("dense", walls), 3)
    logs = [math.log(median(one)) for one in walls]
    interval = stats.ttest_1samp(logs, 0).confidence_interval(0.95)
    assert found.median_s == pytest.approx(math.exp(fmean(logs)))
    assert (found.low_s, found.high_s) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))
    assert found.n == 15


def test_an_interval_of_processes_covers_the_true_ratio_as_often_as_it_says_and_one_of_steps_does_not() -> None:
    """Processes differ by 5%, their steps by 1%: what the steps of one say is far too sure of itself."""
    generator = random.Random(1)
    covered = {"processes": 0, "one": 0}
    for _ in range(300):
        places = [generator.gauss(0, 0.05) for _ in range(5)]
        dense = several("dense", [[math.exp(generator.gauss(0, 0.01)) for _ in range(6)] for _ in places])
        variant = several("variant", [[math.exp(generator.gauss(at, 0.01)) for _ in range(6)] for at in places])
        found = paired_ratio("decode", dense, variant)
        covered["processes"] += found.low <= 1 <= found.high
        first = paired_ratio("decode", *([one for one in side if one.process == 0] for side in (dense, variant)))
        covered["one"] += first.low <= 1 <= first.high
    assert 275 <= covered["processes"] <= 295
    assert covered["one"] < 150


def test_summary_of_known_numbers() -> None:
    found = summary("decode", "dense", samples("dense", [1.0, 2.0, 3.0, 4.0, 100.0], 5), 1)
    assert (found.mad_s, found.n, found.p90_s, found.cpu_s) == (1.0, 5, None, 3.0)
    assert found.median_s == pytest.approx(3.0)


def test_the_90th_percentile_needs_64_samples() -> None:
    walls = [float(place) for place in range(1, 65)]
    assert summary("decode", "dense", samples("dense", walls[:63]), 1).p90_s is None
    assert summary("decode", "dense", samples("dense", walls), 1).p90_s == 58.0


def test_a_paired_ratio_ignores_a_drift_that_both_sides_share() -> None:
    drift = [1.0 + 0.2 * (place // 4) for place in range(24)]
    found = paired_ratio("decode", samples("dense", drift), samples("variant", [0.8 * wall for wall in drift]))
    assert (found.ratio, found.low, found.high) == pytest.approx((0.8, 0.8, 0.8))
    assert (found.pairs, found.processes, found.within_sd, found.between_sd) == (6, 1, None, None)


def test_the_interval_of_one_process_is_students_on_the_logarithms_of_its_pairs() -> None:
    ratios = [0.9, 1.0, 1.1, 1.3]
    dense = samples("dense", [2.0] * 4, block=1)
    variant = samples("variant", [2.0 * ratio for ratio in ratios], block=1)
    found = paired_ratio("decode", dense, variant)
    interval = stats.ttest_1samp([math.log(ratio) for ratio in ratios], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


def test_one_disturbed_pair_of_a_process_changes_nothing() -> None:
    dense = several("dense", [[1.0] * 3] * 4, block=1)
    calm = paired_ratio("decode", dense, several("variant", [[0.5, 0.5, 0.5]] * 4, block=1))
    disturbed = paired_ratio("decode", dense, several("variant", [[0.5, 9.0, 0.5], *[[0.5] * 3] * 3], block=1))
    assert disturbed.ratio == calm.ratio == pytest.approx(0.5)


def test_what_differs_within_and_between_processes_is_told_apart() -> None:
    generator = random.Random(3)
    places = [generator.gauss(0, 0.04) for _ in range(200)]
    dense = several("dense", [[1.0] * 6 for _ in places], block=1)
    variant = several("variant", [[math.exp(generator.gauss(at, 0.02)) for _ in range(6)] for at in places], block=1)
    found = paired_ratio("decode", dense, variant)
    assert found.within_sd == pytest.approx(0.02, rel=0.1)
    assert found.between_sd == pytest.approx(stdev(places), rel=0.1)
    assert (found.pairs, found.processes) == (1200, 200)


def test_an_unpaired_ratio_contains_the_truth_and_counts_no_pairs() -> None:
    generator = random.Random(2)
    dense = several("dense", [[generator.gauss(1, 0.05) for _ in range(6)] for _ in range(5)])
    variant = several("variant", [[generator.gauss(0.7, 0.05) for _ in range(6)] for _ in range(5)])
    found = unpaired_ratio("decode", dense, variant)
    assert found.low <= 0.7 <= found.high < 0.8
    assert (found.pairs, found.processes) == (0, 5)
    same = unpaired_ratio("decode", several("dense", [[2.0] * 4] * 3), several("variant", [[1.0] * 4] * 3))
    assert (same.ratio, same.low, same.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_phase_is_steady_where_most_processes_settled_and_its_halves_agree() -> None:
    flat, falling = [[1.0] * 6] * 3, [[1.0] * 3 + [0.9] * 3] * 3
    noisy = [[1.0, 1.1, 1.2, 1.1, 0.9, 1.0], [0.9, 1.0, 0.9, 1.0, 1.1, 1.2], [1.1, 1.0, 0.9, 1.0, 1.2, 0.9]]
    assert summary("decode", "dense", several("dense", flat), 3).steady
    assert not summary("decode", "dense", several("dense", flat), 1).steady, "two of three processes did not settle"
    assert not summary("decode", "dense", several("dense", noisy), 3).steady, "nobody can tell"
    assert not summary("decode", "dense", several("dense", falling), 3).steady
    assert summary("decode", "dense", several("dense", [[1.0]] * 3), 0).steady, "one step tells of no change"
    assert not summary("load", "dense", several("dense", [[1.0]] * 3), 0).steady
    alone = several("dense", [[1.0] * 6])
    assert (summary("decode", "dense", alone, 0).steady, summary("decode", "dense", alone, 1).steady) == (False, True)


def test_medians_that_say_something_else_than_pairs_are_noted() -> None:
    # A quarter of the pairs is three times as slow on both sides, but the variant's median lies among them.
    dense = [1.0] * 6 + [3.0] * 5
    variant = [1.0] * 5 + [3.0] * 6
    calm = [*samples("dense", [1.0] * 8, 1), *samples("variant", [0.5] * 8, 1)]
    assert not [*disagreement_notes(summaries(calm, {}), differences(calm, True))]
    processes = [*several("dense", [dense] * 4, 1), *several("variant", [variant] * 4, 1)]
    (note,) = disagreement_notes(summaries(processes, {}), differences(processes, True))
    assert "in decode" in note and "0.333 by medians and 1.000 by pairs" in note
    assert differences(processes, True)[0].pairs == 4 * 11


def test_warm_up_is_steady_when_two_windows_agree() -> None:
    assert not last_windows_agree([5, 1, 1, 1, 1])
    assert not last_windows_agree([9, 9, 9, 1, 1, 1])
    assert last_windows_agree([9, 9, 1.0, 1.01, 1.02, 1.0, 1.01, 1.03])
