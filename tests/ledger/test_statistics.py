"""Intervals, comparisons and verdicts, against published examples, scipy, and the slow way."""

import math
import threading
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, logit
from scipy.stats import binomtest, spearmanr

from sparsebench.benchmarks.statistics import spearman
from sparsebench.ledger import statistics
from sparsebench.ledger.connect import interruptible
from sparsebench.ledger.statistics import Comparison, Pairs, proportions, resampling
from sparsebench.ledger.statistics.proportions import PairedCounts

NO_LABELS = np.full(1, np.nan)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_sign_flips_of_single_documents_are_scipy_s_binomial_test(gained: int, lost: int) -> None:
    wanted = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    found = proportions.sign_flip(np.repeat([1, -1], [gained, lost]))
    assert found == pytest.approx(wanted, rel=1e-9)
    assert (found == 1) == (abs(gained - lost) <= 1)


@pytest.mark.parametrize(("gained", "lost"), [(4000, 6000), (0, 1100), (0, 5000)])
def test_a_p_value_of_thousands_of_documents_is_small_and_not_0(gained: int, lost: int) -> None:
    for documents in (1, 2):
        assert 0 < proportions.sign_flip(documents * np.repeat([1, -1], [gained, lost])) < 1e-80


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipy_s(counts: tuple[int, int]) -> None:
    wanted = binomtest(*counts).proportion_ci(method="wilson")
    assert proportions.wilson(*counts) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    for n in (4 / 1.3, 5 / 1.0000001, 30.0):
        assert proportions.wilson(0.0, n)[0] == 0


def test_newcombe_s_published_example() -> None:
    assert proportions.newcombe(PairedCounts(36, 12, 2, 0)) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@pytest.mark.long
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
    found = resampling.POOLINGS["ranking"](values, labels, np.bincount(drawn, minlength=n)[None].astype(float))[0]
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


def test_rank_correlation_of_resamples_is_scipy_s() -> None:
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
    assert found.higher_is_better


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
    labels, clusters = np.full(400, np.nan), np.repeat(np.arange(200), 2)

    def twice(metric: str, factor: float, clusters: np.ndarray | None) -> Comparison:
        pairs = Pairs(np.repeat(variant * factor, 2), np.repeat(dense, 2), labels, clusters)
        return statistics.compare(metric, pairs, 0.5 if metric == "acc" else None)

    once, double = statistics.compare("acc", Pairs(variant, dense, labels[:200]), 0.5), twice("acc", 1, clusters)
    assert (once.clusters, double.clusters, double.n) == (200, 200, 400)
    assert double.p == pytest.approx(once.p) and double.difference == once.difference
    for name in ("low", "high", "detectable", "retained_low", "retained_high"):
        assert getattr(double, name) == pytest.approx(getattr(once, name), abs=0.01)
    alone = twice("acc", 1, None)
    assert alone.high - alone.low < 0.8 * (double.high - double.low)
    assert "200 clusters" in double.method and "McNemar" in alone.method
    widths = [found.high - found.low for found in (twice("f1", 0.9, clusters), twice("f1", 0.9, None))]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(2), rel=0.1)
    wide = statistics.interval("acc", float(dense.mean()), np.repeat(dense, 2), labels, clusters)
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
    # Clusters are numbered as they come, and only where some are shared.
    numbered = statistics.encode_clusters(["b", None, "a", "b", None])
    assert numbered is not None and numbered.tolist() == [0, 1, 2, 0, 3]
    assert statistics.encode_clusters(["a", None, "b"]) is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.none() | st.sampled_from([0.001, 0.01, 0.02, 0.5]) | st.floats(0, 1), max_size=8))
def test_holm_is_its_rule_written_out(ps: list[float | None]) -> None:
    """Step by step: the k-th smallest of m is held against 0.05 / (m - k + 1), and the first that fails stops all after it."""
    known = sorted(p for p in ps if p is not None)
    adjusted = [
        p for p, _ in statistics.holm_verdicts([replace(statistics.not_compared(""), p=p, difference=1.0) for p in ps])
    ]
    assert [a is None for a in adjusted] == [p is None for p in ps]
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(known) and known[rejected] * (len(known) - rejected) < level:
            rejected += 1
        assert sum(a is not None and a < level for a in adjusted) == rejected


@pytest.mark.parametrize(
    ("ps", "difference", "standing", "said"),
    [
        ((0.03, 0.04), -0.1, {"separable": False}, [(0.03, "worse"), (None, "invalid")]),
        ((0.04, 0.001), 0.1, {"at_chance": True}, [(0.04, "better"), (0.002, "better")]),
        ((0.04, 0.5), 0.1, {"at_chance": True}, [(0.08, "no difference detected"), (0.5, "at chance")]),
    ],
)
def test_an_invalid_task_counts_in_no_family_and_what_is_shown_to_be_better_is_not_at_chance(
    ps: tuple[float, float], difference: float, standing: dict[str, bool], said: list[tuple[float | None, str]]
) -> None:
    """The second of two tasks stands otherwise than the first."""
    found = [replace(statistics.not_compared(""), p=p, difference=difference) for p in ps]
    assert (
        statistics.holm_verdicts(found, [statistics.VerdictOverrides(), statistics.VerdictOverrides(**standing)])
        == said
    )


@pytest.mark.parametrize(
    ("p", "difference", "higher", "said"),
    [
        (0.049, 0.1, True, "better"), (0.049, 0.1, False, "worse"), (0.049, -0.1, True, "worse"), (0.049, -0.1, False, "better"),
        (0.05, 0.1, True, "no difference detected"), (0.01, 0.0, True, "no difference detected"), (None, 0.1, True, None),
    ],
)  # fmt: skip
def test_a_verdict_needs_a_p_value_below_5(p: float | None, difference: float, higher: bool, said: str | None) -> None:
    one = replace(statistics.not_compared("", higher), p=p, difference=difference)
    assert statistics.holm_verdicts([one]) == [(p, said)]


@pytest.mark.parametrize("n", [12, 60, 2000])
def test_the_bootstrap_agrees_with_the_t_test_on_normal_differences(n: int) -> None:
    generator = np.random.default_rng(n)
    dense = generator.normal(size=n)
    variant = dense + generator.normal(1.7 / math.sqrt(n), 1, size=n)
    found = statistics.compare("f1", Pairs(variant, dense, dense))
    wanted = stats.ttest_rel(variant, dense)
    around = wanted.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((around.low, around.high), abs=0.25 / math.sqrt(n))
    assert found.p == pytest.approx(wanted.pvalue, abs=0.02)


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
