"""Keys order like the scores they stand for."""

from __future__ import annotations

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.steps.prune.keys import keys, ordinals


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keys_keep_order_and_ties(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.0, 1e-7, 6e-5, 0.5, 0.5, 1.0, 65504.0]).to(dtype)
    found = keys(scores, "w")
    assert found.dtype == torch.int32
    assert torch.equal(found[1:] > found[:-1], scores[1:] > scores[:-1])
    assert torch.equal(ordinals(scores, "w"), found)


def test_doubles_are_ordered_finer_than_floats_are() -> None:
    scores = torch.tensor([1.0, 1.0 + 1e-12, 1e300, 0.0, 5e-324], dtype=torch.float64)
    assert torch.equal(torch.argsort(ordinals(scores, "w")), torch.argsort(scores))


def test_doubles_have_no_threshold_over_tensors() -> None:
    with pytest.raises(ModelError, match="tensor q: torch.float64"):
        keys(torch.ones(2, dtype=torch.float64), "q")


def test_integers_pass_whatever_their_layout() -> None:
    scores = torch.arange(6, dtype=torch.int32).view(2, 3).T
    assert keys(scores, "w").is_contiguous()
    assert torch.equal(keys(scores, "w"), scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf"), -0.5])
def test_what_cannot_be_ranked_is_refused(bad: float, dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match="tensor q: NaN or infinite"):
        ordinals(torch.tensor([1.0, bad], dtype=dtype), "q")
