"""What a sample can show: power, detectable drops, the loss left possible, what is retained."""

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from sparsebench.ledger import query, statistics
from sparsebench.ledger.statistics import Pairs, proportions, sensitivity
from sparsebench.ledger.statistics.proportions import PairedCounts


def test_a_perfect_ranking_has_no_interval_and_nothing_is_retained_of_it() -> None:
    """Four pairs ranked without an error leave much else possible: no interval of no width stands for that."""
    labels = np.array([1.0, 1.0, 0.0, 0.0])
    found = statistics.interval("ap", 1.0, np.array([0.9, 0.8, 0.2, 0.1]), labels)
    assert (found.low, found.high) == (None, None) and found.method.startswith("none: ")
    wrong = statistics.interval("ap", 0.5, np.array([0.9, 0.8]), np.array([0.0, 1.0]))
    assert wrong.low is None, "of one true pair no part can be left out"
    compared = statistics.compare("ap", Pairs(np.array([0.9, 0.1, 0.5, 0.2]), labels, labels), 0.5)
    assert compared.difference is not None and compared.difference < 0 and compared.retained is None


SHARES = st.just(0.0) | st.floats(1e-9, 1)
"""scipy's binomial, which power is compared with, overflows for shares near the smallest float."""


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 120), SHARES, SHARES)
@example(67, 0.0, 0.0078125)  # half a document differs on average, and it takes six
def test_power_is_the_sum_over_all_tables(n: int, discordance: float, drop: float) -> None:
    psi, wanted = max(discordance, drop), 0.0
    for m in range(n + 1):
        lost = np.arange(m + 1)
        p = np.minimum(1, 2 * np.minimum(stats.binom.cdf(lost, m, 0.5), stats.binom.sf(lost - 1, m, 0.5)))
        share = (1 + drop / psi) / 2 if psi else 0.5
        wanted += stats.binom.pmf(m, n, psi) * stats.binom.pmf(lost, m, share)[p < 0.05].sum()
    assert sensitivity.power(n, discordance, drop) == pytest.approx(wanted, abs=1e-6)


def test_five_documents_detect_nothing_and_seven_a_large_drop() -> None:
    assert statistics.detectable(5) is None and statistics.detectable(7) > 0.8


@pytest.mark.long
@pytest.mark.parametrize(("n", "discordance"), [(8, 0.0), (100, 0.1), (1000, 0.1), (1838, 0.3), (10_042, 0.05)])
def test_a_detectable_drop_is_found_in_four_samples_of_five(n: int, discordance: float) -> None:
    drop = statistics.detectable(n, discordance)
    assert drop is not None
    generator, psi = np.random.default_rng(n), max(discordance, drop)
    found = 0
    for _ in range(2000):
        gained, lost, _ = generator.multinomial(n, [(psi - drop) / 2, (psi + drop) / 2, 1 - psi])
        found += proportions.sign_flip(np.repeat([1, -1], [gained, lost])) < 0.05
    assert found / 2000 == pytest.approx(0.8, abs=0.03)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=5, max_size=80), st.floats(0, 0.5))
@settings(deadline=None)
def test_retained_s_interval_holds_1_when_a_difference_s_holds_0(pairs: list[tuple[bool, bool]], chance: float) -> None:
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
        assert (low <= 1 <= high) == (found.low <= 0 <= found.high)


@pytest.mark.parametrize("metric", ["wer", "ter", "brier_score", "nll", "loss", "bits_per_byte"])
def test_wrong_documents_are_compared_as_right_ones_are_the_other_way_round(metric: str) -> None:
    """30 more of 1,000 documents are wrong: the loss that they leave possible is more than 0.03, and none is gained."""
    dense = np.repeat([1.0, 0.0], [100, 900])
    worse, nothing = np.repeat([1.0, 0.0], [130, 870]), np.full(1000, np.nan)
    for variant, other in ((worse, dense), (dense, worse)):
        found = statistics.compare(metric, Pairs(variant, other, nothing), 1.0)
        wanted = statistics.compare("acc", Pairs(1 - variant, 1 - other, nothing), 0.0)
        assert (found.difference, found.low, found.high) == pytest.approx(
            (-wanted.difference, -wanted.high, -wanted.low)
        )
        for name in ("p", "gained", "lost", "loss_at_most", "detectable", "retained", "retained_low", "retained_high"):
            assert getattr(found, name) == pytest.approx(getattr(wanted, name)), name
        assert statistics.holm_verdicts([found])[0][1] == statistics.holm_verdicts([wanted])[0][1]
    found = statistics.compare(metric, Pairs(worse, dense, nothing))
    assert statistics.holm_verdicts([found])[0][1] == "worse"
    assert (found.gained, found.lost) == (0, 30)
    assert found.loss_at_most is not None and 0.03 < found.loss_at_most < 0.0417, "below the two-sided end"


@pytest.mark.parametrize(("metric", "sign"), [("acc", 1), ("f1", 1), ("wer", -1), ("per", -1), ("perplexity", -1)])
@pytest.mark.parametrize("binary", [True, False])
def test_the_loss_left_possible_lies_beyond_the_observed_one(metric: str, sign: int, binary: bool) -> None:
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


@pytest.mark.long
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
    found = statistics.documents_needed(drop, discordance)
    assert query.run(ledger, f"SELECT documents_needed({drop}, {discordance})").rows == ((found,),)
    psi, normal = max(drop, discordance), NormalDist()
    root = normal.inv_cdf(0.975) * math.sqrt(psi) + normal.inv_cdf(0.8) * math.sqrt(psi - drop**2)
    assert found == math.ceil((root / drop) ** 2)


def test_what_is_shown_not_to_be_lost_is_the_end_of_a_one_sided_interval() -> None:
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


@pytest.mark.long
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
