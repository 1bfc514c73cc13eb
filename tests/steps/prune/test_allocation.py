"""Allocations: the whole keeps its sparsity, blocks stay within 0 and 1, more outliers keep more."""

from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError
from sparsebench.steps.prune.blockwise import count_outliers, owl_sparsities
from sparsebench.steps.prune.contract import Layer
from tests.steps.prune.methods.synthetic import activations, layer_of, weights_of

blocks = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=40)


@settings(max_examples=300, deadline=None)
@given(blocks, st.floats(0, 1), st.floats(0, 2))
@example([(0.0, 1)] * 10 + [(1.0, 33636355)], 1e-05, 1.0)
def test_owl_keeps_whole_bounds_and_order(drawn: list[tuple[float, int]], sparsity: float, spread: float) -> None:
    shares, sizes = [share for share, _ in drawn], [size for _, size in drawn]
    found = owl_sparsities(shares, sizes, sparsity, spread)
    assert all(0 <= value <= 1 for value in found)
    whole = sum(value * size for value, size in zip(found, sizes, strict=True))
    # As near as doubles come: a small sparsity is what is left of numbers as large as the spread.
    assert whole == pytest.approx(sparsity * sum(sizes), rel=1e-12, abs=1e-15 * (1 + 2 * spread) * sum(sizes))
    ordered = sorted(zip(shares, found, strict=True))
    assert all(later[1] <= earlier[1] + 1e-15 for earlier, later in pairwise(ordered))
    assert max(found) - min(found) <= 2 * spread + 1e-12


def test_owl_is_the_published_rule_where_blocks_are_alike() -> None:
    shares = [0.02, 0.05, 0.01, 0.03]
    moved = [(share - 0.01) / 0.04 * 0.16 for share in shares]
    expected = [0.7 + sum(moved) / 4 - value for value in moved]
    assert owl_sparsities(shares, [10] * 4, 0.7) == pytest.approx(expected, abs=1e-14)


def test_outliers_are_counted_over_the_whole_block() -> None:
    read = activations(48, 300)
    layers = [layer_of(weights_of(20, 48) ** 3, read), layer_of(weights_of(9, 48, 1) / 4, read)]
    scores = torch.cat([(layer.weights.abs() * read.norm(dim=0).float()).flatten() for layer in layers])
    outliers = count_outliers(layers, [3, 5])
    assert outliers == {limit: int((scores > limit * scores.mean()).sum()) for limit in (3, 5)}
    assert outliers[3] > outliers[5] > 0


def test_broken_weights_are_refused_by_name() -> None:
    weights = weights_of(4, 8)
    weights[1, 1] = float("inf")
    with pytest.raises(ModelError, match=r"layers\.2\.k"):
        count_outliers([Layer("layers.2.k", weights, 0, layer_of(weights, activations(8, 20)).inputs)], [5])
