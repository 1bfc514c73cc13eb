"""Scores against their formulas, entry by entry."""

import math

import pytest
import torch

from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods import scores as methods
from tests.steps.prune.methods.synthetic import activations, layer_of, weights_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SPARSITIES = (0.0, 0.1, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_is_exact(dtype: torch.dtype) -> None:
    weights = weights_of(7, 9, dtype=dtype)
    found = methods.magnitude_scores(Layer("w", weights))
    assert found.dtype == dtype
    assert found.tolist() == [[abs(value) for value in row] for row in weights.tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_wanda_is_its_formula_and_its_masks_a_sort(dtype: torch.dtype) -> None:
    weights, read = weights_of(12, 40, dtype=dtype), activations(40, 100)
    layer = layer_of(weights, read)
    found = methods.wanda_scores(layer)
    norms = [math.sqrt(sum(value * value for value in column)) for column in read.T.tolist()]
    for row, scores in zip(weights.float().tolist(), found.tolist(), strict=True):
        assert scores == pytest.approx([abs(w) * norm for w, norm in zip(row, norms, strict=True)], rel=1e-6)
    assert layer.inputs is not None
    straight = weights.float().abs() * layer.inputs.squares.sqrt()
    quotas = [Quota(sparsity, "row") for sparsity in SPARSITIES]
    for quota, choice in zip(quotas, masks.choose(found, quotas), strict=True):
        order = torch.sort(straight, dim=1, stable=True)[1]
        expected = torch.zeros(12, 40, dtype=torch.bool).scatter_(1, order[:, : round(quota.sparsity * 40)], True)
        assert torch.equal(choice.mask, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ria_is_its_formula_and_its_masks_a_sort(dtype: torch.dtype) -> None:
    weights, read = weights_of(12, 40, dtype=dtype), activations(40, 100)
    layer = layer_of(weights, read)
    found = methods.ria_scores(layer)
    size = [[abs(value) for value in row] for row in weights.float().tolist()]
    columns = [sum(column) for column in zip(*size, strict=True)]
    norms = [math.sqrt(sum(value * value for value in column)) for column in read.T.tolist()]
    expected = [[(w / columns[j] + w / sum(row)) * norms[j] ** 0.5 for j, w in enumerate(row)] for row in size]
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-5)
    assert layer.inputs is not None
    big = weights.float().abs()
    straight = (big / big.sum(0) + big / big.sum(1, keepdim=True)) * layer.inputs.squares.sqrt() ** 0.5
    quotas = [Quota(sparsity, "layer") for sparsity in SPARSITIES]
    for quota, choice in zip(quotas, masks.choose(found, quotas), strict=True):
        order = torch.sort(straight.flatten(), stable=True)[1][: round(quota.sparsity * big.numel())]
        gone = torch.zeros(big.numel(), dtype=torch.bool)
        gone[order] = True
        assert torch.equal(choice.mask.flatten(), gone)


def test_rows_and_columns_of_zeros_share_nothing() -> None:
    weights = weights_of(6, 8)
    weights[2], weights[:, 5] = 0, 0
    found = methods.ria_scores(layer_of(weights, activations(8, 30)))
    assert bool(torch.isfinite(found).all())
    assert not found[2].any()
    assert not found[:, 5].any()
    assert not methods.ria_scores(layer_of(torch.zeros(3, 8), activations(8, 30))).any()


def test_random_scores_lie_where_the_weights_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "check_weights", lambda layers: None)
    assert methods.random_scores(Layer("w", torch.empty(2, 3, device="meta"))).device.type == "meta"
