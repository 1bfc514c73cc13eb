"""Whole rows and columns as zeros: the same as ``ln_structured`` and ``random_structured`` of torch.nn.utils.prune."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.steps.prune.contract import Quota
from sparsebench.steps.prune.masks import choose
from sparsebench.steps.prune.settings import Magnitude
from tests.steps.trim.tiny import step_of

ORDERS = [1, 2, float("inf")]


def torch_mask(weights: torch.Tensor, amount: float, n: float, dim: int, before: torch.Tensor | None = None) -> Any:
    """What torch removes, True."""
    module = torch.nn.Linear(*reversed(weights.shape), bias=False)
    module.weight = torch.nn.Parameter(weights.clone())
    if before is not None:
        prune.custom_from_mask(module, "weight", before)
    prune.ln_structured(module, "weight", amount, n, dim)
    return module.weight_mask == 0


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (64, 64), (1, 5), (5, 1)])
@pytest.mark.parametrize("n", ORDERS)
def test_rows_and_columns_are_those_of_ln_structured_to_the_bit(shape: tuple[int, int], n: float) -> None:
    """At every amount, also where a share of the rows is half of one: 0.5 of 7 and 0.1 of 5 round to the even number."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    for dim, pattern in enumerate(("rows", "columns")):
        for amount in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
            norm = "inf" if n == float("inf") else int(n)
            (choice,) = choose(
                weights.abs(),
                [Quota(amount, "layer", pattern, settings=Magnitude(sparsity=amount, norm=norm, pattern=pattern))],
            )
            assert torch.equal(choice.mask, torch_mask(weights, amount, n, dim)), (pattern, amount)


@pytest.mark.parametrize("pattern", ["rows", "columns"])
def test_float64_weights_are_ranked_in_their_own_precision(pattern: str) -> None:
    weights = 1 + torch.rand(20, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1e-10
    (choice,) = choose(
        weights.abs(), [Quota(0.5, "layer", pattern, settings=Magnitude(sparsity=0.5, norm=2, pattern=pattern))]
    )
    assert torch.equal(choice.mask, torch_mask(weights, 0.5, 2, ("rows", "columns").index(pattern)))


@pytest.mark.parametrize("pattern", ["rows", "columns"])
def test_what_is_gone_already_is_not_counted_again_as_in_torch_s_container(pattern: str) -> None:
    dim = ("rows", "columns").index(pattern)
    weights = torch.randn(10, 12, generator=torch.Generator().manual_seed(4))
    before = torch.ones_like(weights)
    before.index_fill_(dim, torch.tensor([0, 3, 4]), 0)
    kept = weights * before
    (choice,) = choose(
        kept.abs(),
        [Quota(0.5, "layer", pattern, keep_zeros=True, settings=Magnitude(sparsity=0.5, norm=2, pattern=pattern))],
        "w",
        kept,
    )
    assert torch.equal(choice.mask, torch_mask(weights, 0.5, 2, dim, before))


@pytest.mark.parametrize("pattern", ["rows", "columns"])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_whole_rows_or_columns_of_a_model_go(method: str, pattern: str, tiny_bert: Path, tmp_path: Path) -> None:
    """As many as `random_structured` takes, and the rest to the bit; a seed and a name decide which."""
    dim = ("rows", "columns").index(pattern)
    step_of("prune", method, tiny_bert, tmp_path / "out", "encoder", pattern=pattern, sparsity=0.3)
    before, after = Checkpoint(tiny_bert), Checkpoint(tmp_path / "out")
    places = parts(before, "encoder")
    drawn = set()
    for name in before.tensors:
        old, new = before.load(name), after.load(name)
        if not places[name].prunable:
            assert torch.equal(old, new)
            continue
        gone = (new == 0).all(1 - dim)
        assert int(gone.sum()) == round(0.3 * old.shape[dim])
        assert torch.equal(new, old * ~gone.unsqueeze(1 - dim))
        drawn.add(tuple(gone.nonzero().flatten().tolist()))
        if method == "magnitude":
            assert torch.equal(gone, torch_mask(old, 0.3, 2, dim).all(1 - dim))
    assert len(drawn) > 1
