"""Intervals and tests against independent references: scipy, scikit-learn, published examples, the slow obvious way."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import duckdb
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebench.benchmarks.statistics import spearman
from sparsebench.ledger import query, statistics
from sparsebench.ledger.connect import interruptible
from sparsebench.ledger.statistics import Pairs, proportions, resampling, sensitivity
from sparsebench.ledger.statistics.proportions import PairedCounts

NO_LABELS = np.full(1, np.nan)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipy_s_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert proportions.mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("n", [4 / 1.3, 5 / 1.0000001, 30.0])
def test_wilson_s_interval_of_no_success_begins_at_0(n: float) -> None:
    assert proportions.wilson(0.0, n)[0] == 0


def test_mcnemar_holds_for_thousands_of_documents() -> None:
    assert 0 < proportions.mcnemar(4000, 6000) < 1e-80


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipy_s(counts: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(*counts).proportion_ci(method="wilson")
    assert proportions.wilson(*counts) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_newcombe_s_published_example() -> None:
    assert proportions.newcombe(PairedCounts(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.2, 0.2), (0.6, 0.02, 0.08, 0.3), (0.1, 0.2, 0.2, 0.5)])
def test_newcombe_s_interval_covers_the_truth_in_95_of_100(shares: tuple[float, float, float, float]) -> None:
    tables = np.random.default_rng(5).multinomial(100, shares, size=1500)
    intervals = [proportions.newcombe(PairedCounts(*map(int, table))) for table in tables]
    covered = np.mean([low <= shares[1] - shares[2] <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.985


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_newcombe_holds_the_difference_and_mirrors(outcomes: list[tuple[bool, bool]]) -> None:
    both, gained, lost, neither = (
        sum(pair == wanted for pair in outcomes) for wanted in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    low, high = proportions.newcombe(PairedCounts(both, gained, lost, neither))
    shift = (gained - lost) / len(outcomes)
    assert -1 - 1e-9 <= low <= shift + 1e-9
    assert shift - 1e-9 <= high <= 1 + 1e-9
    assert proportions.newcombe(PairedCounts(both, lost, gained, neither)) == pytest.approx((-high, -low), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_average_precision_of_a_resample_is_scikit_learn_s(data: st.DataObject) -> None:
    from sklearn.metrics import average_precision_score

    n = data.draw(st.integers(3, 30))
    values = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=n, max_size=n)))
    labels = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)))
    drawn = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    found = resampling.statistic("ranking", values, labels, np.bincount(drawn, minlength=n)[None].astype(float))[0]
    if labels[drawn].any():
        assert found == pytest.approx(average_precision_score(labels[drawn], values[drawn]))
    else:
        assert math.isnan(found)


def test_a_bootstrap_interval_agrees_with_the_slow_way_and_repeats() -> None:
    generator = np.random.default_rng(1)
    values = generator.exponential(size=120)
    first = statistics.interval("f1", float(values.mean()), values, NO_LABELS)
    assert first == statistics.interval("f1", float(values.mean()), values, NO_LABELS)
    means = [generator.choice(values, 120).mean() for _ in range(4000)]
    assert (first.low, first.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.03)
    assert first.method.startswith("bootstrap")


def test_the_interval_of_an_average_precision_is_a_t_of_its_logit_with_a_jackknife_s_error() -> None:
    from scipy import stats
    from scipy.special import expit, logit
    from sklearn.metrics import average_precision_score

    generator = np.random.default_rng(4)
    labels = (generator.random(40) < 0.6).astype(float)
    values = labels + generator.normal(size=40)
    score = float(average_precision_score(labels, values))
    left = [average_precision_score(np.delete(labels, at), np.delete(values, at)) for at in range(40)]
    error = math.sqrt(39 / 40 * float(((left - np.mean(left)) ** 2).sum())) / (score * (1 - score))
    wanted = expit(logit(score) + np.array([-1, 1]) * stats.t.ppf(0.975, 39) * error)
    found = statistics.interval("ap", score, values, labels)
    assert (found.low, found.high) == pytest.approx(tuple(wanted))


def test_a_perfect_ranking_has_no_interval_and_nothing_is_retained_of_it() -> None:
    """Four pairs ranked without an error leave much else possible: no interval of no width stands for that."""
    labels = np.array([1.0, 1.0, 0.0, 0.0])
    found = statistics.interval("ap", 1.0, np.array([0.9, 0.8, 0.2, 0.1]), labels)
    assert (found.low, found.high) == (None, None) and found.method.startswith("none: ")
    wrong = statistics.interval("ap", 0.5, np.array([0.9, 0.8]), np.array([0.0, 1.0]))
    assert wrong.low is None, "of one true pair no part can be left out"
    compared = statistics.compare("ap", Pairs(np.array([0.9, 0.1, 0.5, 0.2]), labels, labels), 0.5)
    assert compared.difference is not None and compared.difference < 0 and compared.retained is None


def test_an_interval_needs_outcomes_that_make_the_score() -> None:
    values = np.array([0.0, 1.0, 1.0, 1.0])
    assert statistics.interval("acc", 0.75, values, NO_LABELS).method == "Wilson"
    for score, outcomes in ((0.7, values), (0.75, values[:0])):
        found = statistics.interval("acc", score, outcomes, NO_LABELS)
        assert (found.low, found.high) == (None, None)
        assert found.method.startswith("none")


def test_the_same_outcomes_are_no_difference() -> None:
    values = np.array([0.0, 1.0] * 30)
    found = statistics.compare("acc", Pairs(values, values, values))
    assert (found.difference, found.p, found.gained, found.lost) == (0.0, 1.0, 0, 0)
    graded = np.linspace(0, 1, 60)
    found = statistics.compare("f1", Pairs(graded, graded, graded))
    assert (found.difference, found.p) == (0.0, 1.0)


def test_pairing_sees_what_two_intervals_hide() -> None:
    generator = np.random.default_rng(0)
    dense = generator.normal(size=300)
    variant = dense - 0.1 + 0.05 * generator.normal(size=300)
    found = statistics.compare("f1", Pairs(variant, dense, dense))
    assert found.p is not None
    assert found.p < 0.01
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high < 0
    alone = statistics.interval("f1", float(variant.mean()), variant, NO_LABELS)
    assert alone.low is not None
    assert alone.high is not None
    assert alone.high - alone.low > 5 * (found.high - found.low)


def test_no_shared_document_is_said() -> None:
    empty = np.array([])
    found = statistics.compare("acc", Pairs(empty, empty, empty))
    assert found.n == 0
    assert found.method == "none: no document in common"
    assert found.p is None


def windows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Summed negative log-likelihoods of windows, and how many tokens each is of."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(200, 1024, size=n).astype(float)
    return counts * generator.normal(3.0, 0.3, size=n), counts


def test_perplexity_is_of_all_tokens_together_with_the_interval_of_many_draws() -> None:
    values, counts = windows(80, 2)
    score = float(np.exp(values.sum() / counts.sum()))
    found = statistics.interval("perplexity", score, values, counts)
    generator = np.random.default_rng(9)
    draws = [generator.integers(0, 80, 80) for _ in range(4000)]
    slow = [np.exp(values[draw].sum() / counts[draw].sum()) for draw in draws]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), rel=0.02)
    for wrong, labels in ((float(np.exp((values / counts).mean())), counts), (score, np.full(80, np.nan))):
        assert statistics.interval("perplexity", wrong, values, labels).method == f"none: {statistics.UNEXPLAINED}"


@given(st.integers(10, 40), st.floats(0.5, 2.0))
@settings(deadline=None, max_examples=20)
def test_a_perplexity_s_difference_is_of_the_perplexities_and_lower_is_better(n: int, factor: float) -> None:
    dense, counts = windows(n, n)
    found = statistics.compare("perplexity", Pairs(dense * factor, dense, counts))
    mean = dense.sum() / counts.sum()
    assert found.difference == pytest.approx(np.exp(factor * mean) - np.exp(mean))
    assert found.higher_is_better is False
    assert found.low is not None and found.high is not None and found.p is not None
    assert found.low - 1e-9 <= found.difference <= found.high + 1e-9
    if abs(factor - 1) > 0.05:
        assert found.p < 0.02 and np.sign(found.low) == np.sign(found.high) == np.sign(factor - 1)
    assert (found.gained, found.lost) == (None, None)


def test_an_error_rate_is_of_all_symbols_together_and_lower_is_better() -> None:
    generator = np.random.default_rng(5)
    lengths = generator.integers(2, 12, 400).astype(float)
    dense = generator.binomial(lengths.astype(int), 0.1).astype(float)
    worse = dense + generator.binomial(1, 0.2, 400)
    rate = dense.sum() / lengths.sum()
    found = statistics.interval("per", rate, dense, lengths)
    draws = generator.integers(0, 400, (3000, 400))
    low, high = np.quantile(dense[draws].sum(axis=1) / lengths[draws].sum(axis=1), [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low, abs=0.002), pytest.approx(high, abs=0.002))
    compared = statistics.compare("per", Pairs(worse, dense, lengths))
    assert compared.difference == pytest.approx((worse.sum() - dense.sum()) / lengths.sum())
    assert compared.higher_is_better is False and compared.p is not None and compared.p < 0.01
    assert compared.low is not None and compared.low > 0
    wrong = statistics.interval("per", float((dense / lengths).mean()), dense, lengths)
    assert wrong.method == f"none: {statistics.UNEXPLAINED}", "a mean of rates is another number"


def test_windows_of_few_tokens_are_not_taken_for_right_and_wrong() -> None:
    values, counts = np.array([0.0, 1.0, 1.0, 0.0]), np.ones(4)
    assert statistics.interval("perplexity", float(np.exp(0.5)), values, counts).method.startswith("t of")
    assert statistics.compare("perplexity", Pairs(values, values, counts)).method.startswith("paired t")


def test_a_collapsed_model_s_perplexity_has_an_interval_without_warnings() -> None:
    values, counts = np.array([708.0, 700.0, 7100.0]), np.array([1.0, 1.0, 10.0])
    score = float(np.exp(values.sum() / counts.sum()))
    found = statistics.interval("perplexity", score, values, counts)
    assert found.low is not None and found.high is not None
    assert found.low < score < found.high < np.inf


@pytest.mark.parametrize(
    ("metric", "better"), [("acc", True), ("ap", True), ("word_perplexity", False), ("perplexity", False)]
)
def test_which_way_is_better(metric: str, better: bool) -> None:
    values = np.array([0.2, 0.9, 0.4])
    assert statistics.compare(metric, Pairs(values, values, np.array([0.0, 1.0, 1.0]))).higher_is_better is better


def test_the_bootstrap_p_value_is_uniform_enough_without_a_difference() -> None:
    generator = np.random.default_rng(3)
    ps = []
    for _ in range(60):
        dense = generator.normal(size=80)
        ps.append(statistics.compare("f1", Pairs(dense + generator.normal(size=80), dense, dense)).p or 0.0)
    assert 0.25 < np.mean(ps) < 0.75
    assert np.mean(np.array(ps) < 0.05) < 0.17


def test_rank_correlation_of_resamples_is_scipy_s() -> None:
    from scipy.stats import spearmanr

    generator = np.random.default_rng(3)
    values = generator.normal(size=40).round(1)
    labels = (values + generator.normal(size=40)).round(0)
    draws = generator.integers(0, 40, size=(50, 40))
    weights = np.stack([np.bincount(draw, minlength=40) for draw in draws]).astype(float)
    wanted = [spearmanr(values[draw], labels[draw]).statistic for draw in draws]
    assert spearman(values, labels, weights) == pytest.approx(wanted, abs=1e-12)
    assert spearman(np.ones(40), labels, weights) == pytest.approx(np.zeros(50))


def test_a_correlation_has_an_interval_and_is_compared_on_the_same_pairs() -> None:
    generator = np.random.default_rng(4)
    labels = generator.normal(size=300)
    dense, worse = labels + generator.normal(size=300), labels + generator.normal(scale=3, size=300)
    score = spearman(dense, labels, np.ones((1, 300)))[0]
    around = statistics.interval("spearman", float(score), dense, labels)
    assert around.low is not None and around.high is not None and around.low < score < around.high
    found = statistics.compare("spearman", Pairs(worse, dense, labels))
    assert found.high is not None and found.high < 0 and found.p is not None and found.p < 0.01
    assert (
        found.higher_is_better
        and not statistics.compare("pseudo_perplexity", Pairs(dense, dense, labels)).higher_is_better
    )


@settings(deadline=None)
@given(st.lists(st.integers(-4, 4), max_size=12))
def test_the_sign_flip_test_is_all_swaps_counted_one_by_one(net: list[int]) -> None:
    sums = [0]
    for size in net:
        sums = [total + sign * abs(size) for total in sums for sign in (1, -1)]
    wanted = np.mean([abs(total) >= abs(sum(net)) for total in sums])
    assert proportions.sign_flip(np.array(net, dtype=int)) == pytest.approx(wanted)


def test_pairs_of_equal_answers_count_once() -> None:
    """The same outcomes twice, as clusters of two, say as much as they said once."""
    generator = np.random.default_rng(4)
    dense = (generator.random(200) < 0.7).astype(float)
    variant = np.where(generator.random(200) < 0.15, 1 - dense, dense)
    labels, twice = np.full(200, np.nan), np.repeat(np.arange(200), 2)
    once = statistics.compare("acc", Pairs(variant, dense, labels), 0.5)
    double = statistics.compare(
        "acc", Pairs(np.repeat(variant, 2), np.repeat(dense, 2), np.repeat(labels, 2), twice), 0.5
    )
    assert (once.clusters, double.clusters, double.n) == (200, 200, 400)
    assert double.p == pytest.approx(once.p) and double.difference == once.difference
    for name in ("low", "high", "detectable", "retained_low", "retained_high"):
        assert getattr(double, name) == pytest.approx(getattr(once, name), abs=0.01)
    alone = statistics.compare("acc", Pairs(np.repeat(variant, 2), np.repeat(dense, 2), np.repeat(labels, 2)), 0.5)
    assert alone.high - alone.low < 0.8 * (double.high - double.low)
    assert "200 clusters" in double.method and "McNemar" in alone.method
    graded = [statistics.compare("f1", Pairs(np.repeat(variant * 0.9, 2), np.repeat(dense, 2), np.repeat(labels, 2), c))
              for c in (None, twice)]  # fmt: skip
    assert (graded[1].high - graded[1].low) / (graded[0].high - graded[0].low) == pytest.approx(math.sqrt(2), rel=0.1)
    score = float(dense.mean())
    wide = statistics.interval("acc", score, np.repeat(dense, 2), np.repeat(labels, 2), twice)
    assert (wide.low, wide.high) == pytest.approx(proportions.wilson(dense.sum(), 200), abs=1e-3)


def test_documents_of_one_cluster_have_no_interval() -> None:
    dense, variant = np.tile([1.0, 0.0], 50), np.tile([1.0, 0.0, 0.0, 0.0], 25)
    labels, one = np.full(100, np.nan), np.zeros(100, dtype=np.int64)
    found = statistics.interval("acc", 0.5, dense, labels, one)
    assert (found.low, found.high) == (None, None) and found.method.startswith("none: ")
    pair = statistics.compare("acc", Pairs(variant, dense, labels, one), 0.25)
    assert (pair.n, pair.clusters, pair.p, pair.low) == (100, 1, None, None)
    alone = statistics.interval("acc", 1.0, np.ones(1), NO_LABELS)
    assert alone.low is not None, "a document of its own has one"


def test_clusters_are_numbered_as_they_come_and_only_where_some_are_shared() -> None:
    found = statistics.codes(["b", None, "a", "b", None])
    assert found is not None and found.tolist() == [0, 1, 2, 0, 3]
    assert statistics.codes(["a", None, "b"]) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.sampled_from([0.001, 0.01, 0.02, 0.5]) | st.floats(0, 1), max_size=8))
def test_holm_is_its_rule_written_out(ps: list[float | None]) -> None:
    """Step by step: the k-th smallest of m is held against 0.05 / (m - k + 1), and the first that fails stops all after it."""
    known = sorted(p for p in ps if p is not None)
    adjusted = [p for p, _ in statistics.judged([replace(statistics.none(""), p=p, difference=1.0) for p in ps])]
    assert [a is None for a in adjusted] == [p is None for p in ps]
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(known) and known[rejected] * (len(known) - rejected) < level:
            rejected += 1
        assert sum(a is not None and a < level for a in adjusted) == rejected


def test_an_invalid_task_counts_in_no_family() -> None:
    found = [replace(statistics.none(""), p=p, difference=-0.1) for p in (0.03, 0.04)]
    stood = [statistics.Standing(), statistics.Standing(separable=False)]
    assert statistics.judged(found, stood) == [(0.03, "worse"), (None, "invalid")]


def test_what_is_shown_to_be_better_is_not_at_chance() -> None:
    found = [replace(statistics.none(""), p=p, difference=0.1) for p in (0.001, 0.5)]
    stood = [statistics.Standing(at_chance=True)] * 2
    assert [verdict for _, verdict in statistics.judged(found, stood)] == ["better", "at chance"]


@pytest.mark.parametrize(
    ("p", "difference", "higher", "said"),
    [
        (0.049, 0.1, True, "better"), (0.049, 0.1, False, "worse"), (0.049, -0.1, True, "worse"), (0.049, -0.1, False, "better"),
        (0.05, 0.1, True, "no difference detected"), (0.01, 0.0, True, "no difference detected"), (None, 0.1, True, None),
    ],
)  # fmt: skip
def test_a_verdict_needs_a_p_value_below_5_percent(
    p: float | None, difference: float, higher: bool, said: str | None
) -> None:
    one = replace(statistics.none("", higher), p=p, difference=difference)
    assert statistics.judged([one]) == [(p, said)]


@pytest.mark.parametrize("n", [12, 60, 2000])
def test_the_bootstrap_agrees_with_the_t_test_on_normal_differences(n: int) -> None:
    from scipy import stats

    generator = np.random.default_rng(n)
    dense = generator.normal(size=n)
    variant = dense + generator.normal(1.7 / math.sqrt(n), 1, size=n)
    found = statistics.compare("f1", Pairs(variant, dense, dense))
    wanted = stats.ttest_rel(variant, dense)
    around = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((around.low, around.high), abs=0.25 / math.sqrt(n))
    assert found.p == pytest.approx(wanted.pvalue, abs=0.02)


@pytest.mark.parametrize("n", [3, 8, 43])
def test_perplexities_are_compared_by_the_paired_t_test_of_log_losses(n: int) -> None:
    from scipy import stats

    generator = np.random.default_rng(n)
    dense = generator.normal(3.0, 0.2, n)
    variant = dense + generator.normal(0.05, 0.1, n)
    tokens = np.full(n, 1023.0)
    found = statistics.compare("perplexity", Pairs(variant * tokens, dense * tokens, tokens))
    wanted = stats.ttest_rel(variant, dense)
    base = np.exp(dense.mean())
    ends = np.exp(wanted.confidence_interval(0.95))
    assert found.p == pytest.approx(wanted.pvalue, rel=1e-9)
    assert found.low is not None and found.high is not None and found.detectable is not None
    assert (1 + found.low / base, 1 + found.high / base) == pytest.approx(tuple(ends), rel=1e-9)
    noncentral = np.log1p(found.detectable / base) / stats.sem(variant - dense) * _c4(n)
    assert stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, noncentral) == pytest.approx(0.8, abs=1e-6)


def _c4(n: int) -> float:
    """What a sample's standard deviation is of the true one, on average."""
    return float(np.sqrt(2 / (n - 1)) * math.gamma(n / 2) / math.gamma((n - 1) / 2))


def test_two_windows_have_no_interval_and_few_are_marked() -> None:
    values, counts = windows(12, 1)
    for n, marked in ((2, "none"), (3, "few"), (7, "few"), (8, "8 windows"), (12, "12 windows")):
        score = float(np.exp(values[:n].sum() / counts[:n].sum()))
        around = statistics.interval("perplexity", score, values[:n], counts[:n])
        found = statistics.compare("perplexity", Pairs(values[:n] * 1.1, values[:n], counts[:n]))
        assert marked in around.method and marked in found.method
        assert (around.low is None) == (found.p is None) == (n == 2)


def test_windows_that_share_a_text_count_as_one() -> None:
    values, counts = windows(20, 3)
    twice = np.repeat(np.arange(20), 2)
    one = statistics.compare("perplexity", Pairs(values * 1.01, values, counts))
    doubled = Pairs(np.repeat(values * 1.01, 2), np.repeat(values, 2), np.repeat(counts, 2), twice)
    found = statistics.compare("perplexity", doubled)
    assert (found.low, found.high, found.p, found.clusters) == pytest.approx((one.low, one.high, one.p, 20))


@pytest.mark.parametrize("n", [4, 6, 8])
def test_few_windows_without_a_difference_raise_no_more_alarms_than_they_may(n: int) -> None:
    generator, alarms, trials = np.random.default_rng(7), 0, 300
    tokens = np.full(n, 1023.0)
    for _ in range(trials):
        sides = generator.normal(3.0, 0.3, n) + generator.normal(0.0, 0.05, (2, n))
        found = statistics.compare("perplexity", Pairs(sides[0] * tokens, sides[1] * tokens, tokens))
        alarms += found.p is not None and found.p < 0.05
    assert alarms <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)


SHARES = st.just(0.0) | st.floats(1e-9, 1)
"""scipy's binomial, which power is compared with, overflows for shares near the smallest float."""


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 120), SHARES, SHARES)
@example(67, 0.0, 0.0078125)  # half a document differs on average, and it takes six
def test_power_is_the_sum_over_all_tables(n: int, discordance: float, drop: float) -> None:
    from scipy import stats

    psi, wanted = max(discordance, drop), 0.0
    for m in range(n + 1):
        lost = np.arange(m + 1)
        p = np.minimum(1, 2 * np.minimum(stats.binom.cdf(lost, m, 0.5), stats.binom.sf(lost - 1, m, 0.5)))
        share = (1 + drop / psi) / 2 if psi else 0.5
        wanted += stats.binom.pmf(m, n, psi) * stats.binom.pmf(lost, m, share)[p < 0.05].sum()
    assert sensitivity.power(n, discordance, drop) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("n", "discordance"), [(8, 0.0), (100, 0.1), (1000, 0.1), (1838, 0.3), (10_042, 0.05)])
def test_a_detectable_drop_is_found_in_four_samples_of_five(n: int, discordance: float) -> None:
    drop = statistics.detectable(n, discordance)
    assert drop is not None
    generator, psi = np.random.default_rng(n), max(discordance, drop)
    found = 0
    for _ in range(2000):
        gained, lost, _ = generator.multinomial(n, [(psi - drop) / 2, (psi + drop) / 2, 1 - psi])
        found += proportions.mcnemar(gained, lost) < 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


def test_too_few_documents_detect_nothing() -> None:
    assert statistics.detectable(5) is None
    assert statistics.detectable(7) > 0.8  # type: ignore[operator]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=80), st.floats(0, 0.5))
@settings(deadline=None)
def test_retained_s_interval_holds_1_when_the_difference_s_holds_0(
    pairs: list[tuple[bool, bool]], chance: float
) -> None:
    variant, dense = np.array(pairs, dtype=float).T
    found = statistics.compare("acc", Pairs(variant, dense, np.full(len(pairs), np.nan)), chance)
    if found.retained is None:
        assert proportions.wilson(dense.sum(), len(pairs))[0] <= chance
        return
    assert found.retained == pytest.approx((variant.mean() - chance) / (dense.mean() - chance))
    low = -math.inf if found.retained_low is None else found.retained_low
    high = math.inf if found.retained_high is None else found.retained_high
    assert low <= found.retained + 1e-9 and found.retained <= high + 1e-9
    ends = (found.low, found.high)
    assert all(end is not None for end in ends)
    if min(abs(end) for end in ends if end is not None) > 1e-6:
        assert (low <= 1 <= high) == (found.low <= 0 <= found.high)  # type: ignore[operator]


@pytest.mark.parametrize("metric", ["wer", "ter", "brier_score", "nll", "loss", "bits_per_byte"])
def test_wrong_documents_are_compared_as_right_ones_are_the_other_way_round(metric: str) -> None:
    """30 more of 1,000 documents are wrong: the loss that they leave possible is more than 0.03, and none is gained."""
    dense = np.repeat([1.0, 0.0], [100, 900])
    worse, nothing = np.repeat([1.0, 0.0], [130, 870]), np.full(1000, np.nan)
    for variant, other in ((worse, dense), (dense, worse)):
        found = statistics.compare(metric, Pairs(variant, other, nothing), 1.0)
        wanted = statistics.compare("acc", Pairs(1 - variant, 1 - other, nothing), 0.0)
        assert (found.difference, found.low, found.high) == pytest.approx(
            (-wanted.difference, -wanted.high, -wanted.low)  # type: ignore[operator]
        )
        for name in ("p", "gained", "lost", "loss_at_most", "detectable", "retained", "retained_low", "retained_high"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name)), name
        assert statistics.judged([found])[0][1] == statistics.judged([wanted])[0][1]
    found = statistics.compare(metric, Pairs(worse, dense, nothing))
    assert statistics.judged([found])[0][1] == "worse"
    assert (found.gained, found.lost) == (0, 30)
    assert found.loss_at_most is not None and 0.03 < found.loss_at_most < 0.0417, "below the two-sided end"


@pytest.mark.parametrize(("metric", "sign"), [("acc", 1), ("f1", 1), ("wer", -1), ("per", -1), ("perplexity", -1)])
@pytest.mark.parametrize("binary", [True, False])
def test_the_loss_left_possible_lies_beyond_the_observed_one_whichever_way_is_better(
    metric: str, sign: int, binary: bool
) -> None:
    generator = np.random.default_rng(3)
    dense = (generator.random(400) < 0.5) * (1.0 if binary else 0.9)
    for more in (0.1, -0.1):
        moved = generator.random(400) < abs(more)
        variant = np.where(moved, dense.max() if more > 0 else 0.0, dense)
        found = statistics.compare(metric, Pairs(variant, dense, np.ones(400)))
        assert found.difference is not None and found.loss_at_most is not None
        assert found.low is not None and found.high is not None
        loss, worst = -sign * found.difference, max(-sign * found.low, -sign * found.high)
        assert (loss > 0) == (more * sign < 0)
        assert loss < found.loss_at_most < worst


@pytest.mark.parametrize(("chance", "shares"), [(0.25, (0.4, 0.05, 0.15, 0.4)), (0.0, (0.1, 0.1, 0.5, 0.3))])
def test_retained_s_interval_covers_the_truth_in_95_of_100(chance: float, shares: tuple[float, ...]) -> None:
    truth = (shares[0] + shares[1] - chance) / (shares[0] + shares[2] - chance)
    tables = np.random.default_rng(6).multinomial(200, shares, size=4000)
    ends = [proportions.retained(PairedCounts(*map(int, table)), chance) for table in tables]
    covered = np.mean([(low is None or low <= truth) and (high is None or truth <= high) for low, high in ends])
    assert 0.935 <= covered <= 0.965


def test_a_ranking_s_retained_is_above_the_share_of_true_pairs() -> None:
    generator = np.random.default_rng(8)
    labels = (generator.random(400) < 0.6).astype(float)
    dense = labels + generator.normal(size=400)
    variant = dense + generator.normal(size=400)
    found = statistics.compare("ap", Pairs(variant, dense, labels), float(labels.mean()))
    assert found.retained is not None and found.retained_low is not None and found.retained_high is not None
    assert found.retained_low < found.retained < found.retained_high < 1
    assert found.detectable is not None and 0 < found.detectable < 0.2


@pytest.mark.parametrize(("drop", "discordance"), [(0.02, 0.1), (0.05, 0.1), (0.1, 0.05), (0.01, 0.3)])
def test_the_documents_needed_are_connor_s(drop: float, discordance: float, ledger: Path) -> None:
    found = statistics.needed(drop, discordance)
    assert query.run(ledger, f"SELECT documents_needed({drop}, {discordance})").rows == ((found,),)
    psi, normal = max(drop, discordance), NormalDist()
    root = normal.inv_cdf(0.975) * math.sqrt(psi) + normal.inv_cdf(0.8) * math.sqrt(psi - drop**2)
    assert found == math.ceil((root / drop) ** 2)


def test_what_is_shown_not_to_be_lost_is_the_end_of_a_one_sided_interval() -> None:
    from scipy import stats

    generator = np.random.default_rng(2)
    dense, tokens = generator.normal(3.0, 0.2, 12), np.full(12, 1023.0)
    variant = dense + generator.normal(0.05, 0.02, 12)
    found = statistics.compare("perplexity", Pairs(variant * tokens, dense * tokens, tokens))
    end = stats.ttest_rel(variant, dense, alternative="less").confidence_interval(0.95).high
    assert found.loss_at_most == pytest.approx(np.exp(dense.mean()) * np.expm1(end), rel=1e-9)
    right = (generator.random(1000) < 0.7).astype(float)
    same = statistics.compare("acc", Pairs(right, right, np.full(1000, np.nan)))
    assert same.loss_at_most is not None and 0 < same.loss_at_most < -(same.low or 0)
    labels = generator.normal(size=300)
    ranked = labels + generator.normal(size=300)
    none = statistics.compare("spearman", Pairs(ranked, ranked, labels))
    lost = statistics.compare("spearman", Pairs(generator.normal(size=300), ranked, labels))
    assert none.loss_at_most == pytest.approx(0, abs=1e-9)
    assert lost.loss_at_most is not None and lost.difference is not None and lost.loss_at_most > -lost.difference


def test_a_loss_of_the_margin_is_called_less_than_the_margin_one_time_in_twenty() -> None:
    """The non-inferiority test's own false alarms: a true loss of exactly two points of a thousand documents."""
    generator, margin, called, trials = np.random.default_rng(5), 0.02, 0, 400
    for _ in range(trials):
        kinds = generator.choice(4, size=1000, p=[0.64, 0.06, 0.04, 0.26])  # both, lost, gained, neither
        pairs = Pairs(np.isin(kinds, [0, 2]) * 1.0, np.isin(kinds, [0, 1]) * 1.0, np.full(1000, np.nan))
        found = statistics.compare("acc", pairs)
        called += found.loss_at_most is not None and found.loss_at_most < margin
    assert called <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)
    assert called > 0


def test_ctrl_c_while_duckdb_answers_is_ctrl_c() -> None:
    done = threading.Event()

    def nag(connection: duckdb.DuckDBPyConnection) -> None:
        while not done.wait(0.1):  # an interrupt before the query has begun is lost
            connection.interrupt()

    with duckdb.connect() as connection:
        nagging = threading.Thread(target=nag, args=[connection])
        nagging.start()
        try:
            with pytest.raises(KeyboardInterrupt), interruptible():
                connection.execute(
                    "SELECT count(*) FROM range(1000000) a, range(100000) b WHERE a.range * b.range % 7 = 3"
                )
        finally:
            done.set()
            nagging.join()
    # What a handler's KeyboardInterrupt becomes on its way through DuckDB.
    with pytest.raises(KeyboardInterrupt), interruptible():
        raise RuntimeError("Query interrupted")
    with pytest.raises(RuntimeError, match="another"), interruptible():
        raise RuntimeError("another")
