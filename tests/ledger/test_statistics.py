"""Intervals and tests against independent references: scipy, scikit-learn, published examples, the slow obvious way."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Pairs

NO_LABELS = np.full(1, np.nan)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_scipy_s_binomial_test(gained: int, lost: int) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert statistics.mcnemar(gained, lost) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_holds_for_thousands_of_documents() -> None:
    assert 0 < statistics.mcnemar(4000, 6000) < 1e-80


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipy_s(counts: tuple[int, int]) -> None:
    from scipy.stats import binomtest

    wanted = binomtest(*counts).proportion_ci(method="wilson")
    assert statistics.wilson(*counts) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_newcombe_s_published_example() -> None:
    assert statistics.newcombe(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.parametrize("shares", [(0.5, 0.1, 0.2, 0.2), (0.6, 0.02, 0.08, 0.3), (0.1, 0.2, 0.2, 0.5)])
def test_newcombe_s_interval_covers_the_truth_in_95_of_100(shares: tuple[float, float, float, float]) -> None:
    tables = np.random.default_rng(5).multinomial(100, shares, size=1500)
    intervals = [statistics.newcombe(*map(int, table)) for table in tables]
    covered = np.mean([low <= shares[1] - shares[2] <= high for low, high in intervals])
    assert 0.935 <= covered <= 0.985


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_newcombe_holds_the_difference_and_mirrors(outcomes: list[tuple[bool, bool]]) -> None:
    both, gained, lost, neither = (
        sum(pair == wanted for pair in outcomes) for wanted in ((1, 1), (1, 0), (0, 1), (0, 0))
    )
    low, high = statistics.newcombe(both, gained, lost, neither)
    shift = (gained - lost) / len(outcomes)
    assert -1 - 1e-9 <= low <= shift + 1e-9
    assert shift - 1e-9 <= high <= 1 + 1e-9
    assert statistics.newcombe(both, lost, gained, neither) == pytest.approx((-high, -low), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_average_precision_of_a_resample_is_scikit_learn_s(data: st.DataObject) -> None:
    from sklearn.metrics import average_precision_score

    n = data.draw(st.integers(3, 30))
    values = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=n, max_size=n)))
    labels = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)))
    drawn = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
    found = statistics._statistic("ap", values, labels, np.bincount(drawn, minlength=n)[None].astype(float))[0]
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
    assert found.method == "bootstrap, 2000 resamples"
    for wrong, labels in ((float(np.exp((values / counts).mean())), counts), (score, np.full(80, np.nan))):
        assert statistics.interval("perplexity", wrong, values, labels).method == f"none: {statistics.UNEXPLAINED}"


@given(st.integers(2, 40), st.floats(0.5, 2.0))
@settings(deadline=None, max_examples=20)
def test_a_perplexity_s_difference_is_of_the_perplexities_and_lower_is_better(n: int, factor: float) -> None:
    dense, counts = windows(n, n)
    found = statistics.compare("perplexity", Pairs(dense * factor, dense, counts))
    mean = dense.sum() / counts.sum()
    assert found.difference == pytest.approx(np.exp(factor * mean) - np.exp(mean))
    assert found.higher_is_better is False
    assert found.low is not None and found.high is not None and found.p is not None
    assert found.low - 1e-9 <= found.difference <= found.high + 1e-9 or n < 10
    if abs(factor - 1) > 0.05:
        assert found.p < 0.01 and np.sign(found.low) == np.sign(found.high) == np.sign(factor - 1)
    assert (found.gained, found.lost) == (None, None)


def test_windows_of_few_tokens_are_not_taken_for_right_and_wrong() -> None:
    values, counts = np.array([0.0, 1.0, 1.0, 0.0]), np.ones(4)
    assert statistics.interval("perplexity", float(np.exp(0.5)), values, counts).method.startswith("bootstrap")
    assert statistics.compare("perplexity", Pairs(values, values, counts)).method.startswith("paired bootstrap")


def test_a_broken_model_s_perplexity_has_an_interval_without_warnings() -> None:
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
    assert statistics.rank_correlation(values, labels, weights) == pytest.approx(wanted, abs=1e-12)
    assert statistics.rank_correlation(np.ones(40), labels, weights) == pytest.approx(np.zeros(50))


def test_a_correlation_has_an_interval_and_is_compared_on_the_same_pairs() -> None:
    generator = np.random.default_rng(4)
    labels = generator.normal(size=300)
    dense, worse = labels + generator.normal(size=300), labels + generator.normal(scale=3, size=300)
    score = statistics.rank_correlation(dense, labels, np.ones((1, 300)))[0]
    around = statistics.interval("spearman", float(score), dense, labels)
    assert around.low is not None and around.high is not None and around.low < score < around.high
    found = statistics.compare("spearman", Pairs(worse, dense, labels))
    assert found.high is not None and found.high < 0 and found.p is not None and found.p < 0.01
    assert (
        found.higher_is_better
        and not statistics.compare("pseudo_perplexity", Pairs(dense, dense, labels)).higher_is_better
    )
