"""Zeroing by bits: what stays is untouched to the bit, what goes is +0, and counts are right."""

import math

import pytest
import torch

from sparsebench.steps import zeroing
from sparsebench.steps.prune.keys import KeyThreshold, keys, narrow_keys, thresholds

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPE = (7, zeroing.PIECE // 3)
"""Of entries in several pieces, the last of which is shorter."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
def test_zeroed_is_masked_fill(dtype: torch.dtype, transposed: bool) -> None:
    weights = torch.randn(SHAPE).to(dtype)
    weights[0, 0], weights[1, 1] = -0.0, float("nan")
    mask = torch.rand(SHAPE) < 0.5
    mask[0, 0] = mask[1, 1] = False
    mask[2, 2] = True
    if transposed:
        weights, mask = weights.T, mask.T
    found = zeroing.zeroed(weights, mask)
    assert torch.equal(found.view(torch.uint8), weights.masked_fill(mask, 0).contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [0, 1, zeroing.PIECE + 5, math.prod(SHAPE) - 1, math.prod(SHAPE)])
def test_cut_removes_the_lowest_and_the_first_of_those_that_tie(dtype: torch.dtype, rank: int) -> None:
    weights = torch.randint(-3, 4, SHAPE).to(dtype)
    for ranked in (keys(weights.abs(), "w"), narrow_keys(weights.abs(), "w")):
        (limit,) = thresholds([[ranked], [ranked]], [rank])
        found, removed, spent = zeroing.zeroed_below(weights, ranked, limit)
        order = weights.abs().float().flatten().argsort(stable=True)[:rank]
        wanted = weights.flatten().clone()
        wanted[order] = 0
        assert torch.equal(found.flatten(), wanted)
        assert removed == rank
        assert spent == limit.ties


def test_ties_are_spent_only_as_far_as_there_are_any() -> None:
    ranked = torch.tensor([1, 2, 2, 3], dtype=torch.int32)
    _, removed, spent = zeroing.zeroed_below(torch.ones(4), ranked, KeyThreshold(2, 5))
    assert (removed, spent) == (3, 2)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64])
def test_zeros_of_either_sign_count(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0.0, -0.0, 1.0, -1.0, 2.0] * zeroing.PIECE).to(dtype)
    assert zeroing.zeros_in(tensor) == 2 * zeroing.PIECE
    assert zeroing.zeros_in(torch.empty(0, dtype=dtype)) == 0
