"""Masks against the slow, obvious way: sort (score, position), remove the first round(s·n)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError
from sparsebench.sparsify import masks
from sparsebench.sparsify.keys import keys, thresholds

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPARSITIES = [0.0, 0.1, 0.5, 0.9, 0.99, 1.0]


def obvious(values: list[float], remove: int) -> list[bool]:
    """The reference: a Python sort by (value, position)."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    gone = set(order[:remove])
    return [place in gone for place in range(len(values))]


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    seed, levels = draw(st.integers(0, 10_000)), draw(st.sampled_from([2, 5, 1000]))
    generator = torch.Generator().manual_seed(seed)
    # Few levels make many ties, as 4-bit and 16-bit weights do.
    drawn = torch.randint(-levels, levels + 1, (rows, columns), generator=generator) / levels
    return drawn.to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_layer_and_row_masks_equal_a_sort(weights: torch.Tensor) -> None:
    scores = keys(weights.abs(), "w")
    flat = weights.abs().float().flatten().tolist()
    for sparsity, mask in zip(SPARSITIES, masks.by_layer(scores, SPARSITIES), strict=True):
        assert mask.flatten().tolist() == obvious(flat, round(sparsity * len(flat)))
    for sparsity, mask in zip(SPARSITIES, masks.by_row(scores, SPARSITIES), strict=True):
        for row, values in zip(mask.tolist(), weights.abs().float().tolist(), strict=True):
            assert row == obvious(values, round(sparsity * len(values)))


@settings(max_examples=40, deadline=None)
@given(matrices(), st.sampled_from(["2:4", "1:4", "1:10"]))
def test_pattern_keeps_n_of_every_m(weights: torch.Tensor, pattern: str) -> None:
    keep, group = map(int, pattern.split(":"))
    mask = masks.by_pattern(keys(weights.abs(), "w"), pattern)
    whole = weights.shape[1] // group * group
    for row, values in zip(mask.tolist(), weights.abs().float().tolist(), strict=True):
        for start in range(0, whole, group):
            assert row[start : start + group] == obvious(values[start : start + group], group - keep)
        assert not any(row[whole:]), "columns beyond the last whole group must stay"


@settings(max_examples=40, deadline=None)
@given(st.lists(matrices(), min_size=1, max_size=4), st.floats(0, 1))
def test_one_threshold_over_several_tensors(tensors: list[torch.Tensor], sparsity: float) -> None:
    scores = [keys(tensor.abs(), "w") for tensor in tensors]
    flat = [value for tensor in tensors for value in tensor.abs().float().flatten().tolist()]
    remove = masks.count(sparsity, len(flat))
    (limit,) = thresholds([scores, scores], [remove])
    below = sum(int((score < limit.key).sum()) for score in scores)
    equal = sum(int((score == limit.key).sum()) for score in scores)
    assert below + limit.ties == remove
    assert limit.ties <= equal
    assert sorted(flat)[:below] == sorted(value for value, gone in zip(flat, obvious(flat, below), strict=True) if gone)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_weights_are_refused_by_name(bad: float) -> None:
    with pytest.raises(ModelError, match="model.layers.0.q"):
        keys(torch.tensor([1.0, bad]).abs(), "model.layers.0.q")


def test_agrees_with_torch_where_there_are_no_ties() -> None:
    from torch.nn.utils import prune

    weights = torch.randn(64, 48, generator=torch.Generator().manual_seed(1))
    layer = torch.nn.Linear(48, 64)
    layer.weight.data = weights
    prune.l1_unstructured(layer, "weight", amount=0.73)
    (mask,) = masks.by_layer(keys(weights.abs(), "w"), [0.73])
    assert torch.equal(~mask, layer.weight_mask.bool())
