import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsebench.benchmarks.contract import mean_stderr
from sparsebench.benchmarks.statistics import average_precision, pearson, pooled, ratio


@given(st.lists(st.integers(0, 1), min_size=2, max_size=60))
def test_stderr_of_outcomes_is_lm_evals_and_the_closed_form(values: list[int]):
    from lm_eval.api.metrics import mean_stderr as stock

    p, n = sum(values) / len(values), len(values)
    assert mean_stderr(values) == stock(values)
    assert mean_stderr(values) == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_the_standard_error_of_one_outcome_is_unknown():
    assert mean_stderr([1.0]) is None
    assert ratio([2.0], [4.0]) == (0.5, None)
    for metric in (average_precision, pearson):
        assert pooled(metric, np.array([0.5]), np.array([1.0]))[1] is None


def test_the_standard_error_is_unknown_where_no_draw_has_the_metric():
    for values in ([0.1, 0.2], [0.1, 0.2, 0.3]):
        assert pooled(average_precision, np.array(values), np.zeros(len(values)))[1] is None


def test_bootstrap_is_repeatable_and_near_the_spread_of_fresh_samples():
    generator = np.random.default_rng(1)

    def sample(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = generator.integers(0, 2, n)
        return labels + generator.normal(0, 1.5, n), labels

    spread = np.std([average_precision(*sample(300), np.ones((1, 300)))[0] for _ in range(400)], ddof=1)
    scores, labels = sample(300)
    found = pooled(average_precision, scores, labels)
    assert found == pooled(average_precision, scores, labels)
    assert found[1] == pytest.approx(spread, rel=0.25)
