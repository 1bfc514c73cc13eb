"""The factor against the published way, the inverse and its Cholesky factor, in float64."""

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.models.replay.gather import InputStatistics
from sparsebench.steps import factor
from sparsebench.steps.factor import factorise
from tests.steps.prune.methods.synthetic import activations, inputs_of


def published(inputs: InputStatistics, damping: float = 0.01) -> torch.Tensor:
    """U, as METHODS has it."""
    assert inputs.gram is not None
    hessian = 2 / inputs.tokens * inputs.gram.double()
    for column in range(len(hessian)):
        if hessian[column, column] == 0:
            hessian[column, column] = 1
    hessian += damping * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    return torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)


@pytest.mark.parametrize("columns", [1, 2, 17, 300])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_equals_inverse_then_cholesky(columns: int, dtype: torch.dtype, close: float, monkeypatch) -> None:
    monkeypatch.setattr(factor, "CHUNK", 50)
    inputs = inputs_of(activations(columns, 700))
    expected = published(inputs)
    found = factorise(inputs, "q", dtype)
    assert found.upper.dtype == dtype
    assert torch.equal(found.upper, found.upper.triu())
    assert float((found.upper.double() - expected).norm() / expected.norm()) < close
    assert found.notes == ()


def test_dead_inputs_are_told_apart() -> None:
    read = activations(24, 200)
    read[:, [3, 20]] = 0
    inputs = inputs_of(read)
    expected = published(inputs)
    found = factorise(inputs, "q", torch.float64)
    assert found.dead.nonzero().flatten().tolist() == [3, 20]
    assert torch.allclose(found.upper, expected, rtol=1e-9)


def test_no_input_at_all() -> None:
    found = factorise(InputStatistics(5, torch.zeros(4), torch.zeros(4, 4)), "q")
    assert bool(found.dead.all())
    assert torch.allclose(found.upper, torch.eye(4) / 1.01**0.5)


@pytest.mark.parametrize(("negative", "needed"), [(0.05, 0.1), (0.5, 1.0), (5.0, 10.0)])
def test_damping_is_raised_until_cholesky_holds_and_said(negative: float, needed: float) -> None:
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(20, 20, generator=generator, dtype=torch.float64))[0]
    values = torch.rand(20, generator=generator, dtype=torch.float64) * 2 + 0.1
    # One negative direction, of ``negative`` mean diagonals.
    values[0] = -negative * values[1:].sum() / (20 + negative)
    gram = (basis * values) @ basis.T
    inputs = InputStatistics(2, gram.diagonal().float(), gram.float())
    expected = published(inputs, needed)
    found = factorise(inputs, "q")
    assert found.notes == (f"damping raised to {needed:g}",)
    assert torch.allclose(found.upper.double(), expected, atol=1e-4)


@pytest.mark.parametrize(("first", "last"), [(0.01, 10), (20.0, 20)])
def test_a_hopeless_matrix_is_refused_by_name_with_the_last_damping(first: float, last: float) -> None:
    gram = torch.full((3, 3), 100.0)
    gram.fill_diagonal_(1)
    with pytest.raises(ModelError, match=rf"layers\.3\.mlp.*not positive definite, damped by {last:g}"):
        factorise(InputStatistics(1, gram.diagonal(), gram), "layers.3.mlp", first=first)
