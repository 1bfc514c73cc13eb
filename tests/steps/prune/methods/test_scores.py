"""Scores against their formulas, entry by entry."""

import math

import pytest
import torch

from sparsebench.steps.prune.contract import Layer
from sparsebench.steps.prune.methods import scores as methods
from tests.steps.prune.methods.synthetic import activations, layer_of, weights_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_is_exact(dtype: torch.dtype) -> None:
    weights = weights_of(7, 9, dtype=dtype)
    found = methods.magnitude_scores(Layer("w", weights))
    assert found.dtype == dtype
    assert found.tolist() == [[abs(value) for value in row] for row in weights.tolist()]


@pytest.mark.parametrize("dtype", DTYPES)
def test_wanda_and_ria_are_their_formulas(dtype: torch.dtype) -> None:
    layer = layer_of(weights_of(12, 40, dtype=dtype), read := activations(40, 100))
    size = [[abs(value) for value in row] for row in layer.weights.float().tolist()]
    columns = [sum(column) for column in zip(*size, strict=True)]
    norms = [math.sqrt(sum(value * value for value in column)) for column in read.T.tolist()]
    wanda = [[w * norm for w, norm in zip(row, norms, strict=True)] for row in size]
    ria = [[(w / columns[j] + w / sum(row)) * norms[j] ** 0.5 for j, w in enumerate(row)] for row in size]
    assert torch.allclose(methods.wanda_scores(layer), torch.tensor(wanda), rtol=1e-6)
    assert torch.allclose(methods.ria_scores(layer), torch.tensor(ria), rtol=1e-5)


def test_rows_and_columns_of_zeros_share_nothing() -> None:
    weights = weights_of(6, 8)
    weights[2], weights[:, 5] = 0, 0
    found = methods.ria_scores(layer_of(weights, activations(8, 30)))
    assert bool(torch.isfinite(found).all())
    assert not found[2].any()
    assert not found[:, 5].any()
    assert not methods.ria_scores(layer_of(torch.zeros(3, 8), activations(8, 30))).any()
