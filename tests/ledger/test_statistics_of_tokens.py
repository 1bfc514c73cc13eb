"""Perplexities and error rates: intervals and comparisons of windows and symbols."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Pairs


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


def test_windows_of_few_tokens_and_of_a_collapsed_model_have_an_interval() -> None:
    values, counts = np.array([0.0, 1.0, 1.0, 0.0]), np.ones(4)
    assert statistics.interval("perplexity", float(np.exp(0.5)), values, counts).method.startswith("t of")
    assert statistics.compare("perplexity", Pairs(values, values, counts)).method.startswith("paired t")
    values, counts = np.array([708.0, 700.0, 7100.0]), np.array([1.0, 1.0, 10.0])
    score = float(np.exp(values.sum() / counts.sum()))
    found = statistics.interval("perplexity", score, values, counts)
    assert found.low is not None and found.high is not None
    assert found.low < score < found.high < np.inf


@pytest.mark.parametrize("n", [3, 8, 43])
def test_perplexities_are_compared_by_the_paired_t_test_of_log_losses(n: int) -> None:
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


@pytest.mark.long
@pytest.mark.parametrize("n", [4, 6, 8])
def test_few_windows_without_a_difference_raise_no_more_alarms_than_they_may(n: int) -> None:
    generator, alarms, trials = np.random.default_rng(7), 0, 300
    tokens = np.full(n, 1023.0)
    for _ in range(trials):
        sides = generator.normal(3.0, 0.3, n) + generator.normal(0.0, 0.05, (2, n))
        found = statistics.compare("perplexity", Pairs(sides[0] * tokens, sides[1] * tokens, tokens))
        alarms += found.p is not None and found.p < 0.05
    assert alarms <= 0.05 * trials + 3 * math.sqrt(0.05 * 0.95 * trials)
