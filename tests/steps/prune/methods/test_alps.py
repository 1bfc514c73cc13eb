"""ALPS against ADMM and conjugate gradients as the paper writes them, with every matrix formed, in float64."""

import pytest
import torch

from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods import alps
from sparsebench.steps.prune.methods.alps import solve
from tests.steps.prune.methods.synthetic import activations, layer_error, layer_of, weights_of
from tests.steps.prune.methods.test_sparsegpt import chosen, lowest

QUOTAS = [
    *(Quota(sparsity, "layer") for sparsity in (0.1, 0.5, 0.7, 0.9)),
    Quota(0.7, "row"),
    Quota(0.5, "layer", "2:4"),
    Quota(0.5, "layer", "1:10"),
    Quota(0.6, "layer", "4x4"),
]


def projected(weights: torch.Tensor, quota: Quota) -> torch.Tensor:
    """The nearest matrix that fulfils the quota."""
    scores = weights**2
    if ":" in quota.pattern:
        keep, group = map(int, quota.pattern.split(":"))
        mask = torch.zeros(weights.shape, dtype=torch.bool)
        for start in range(0, weights.shape[1] // group * group, group):
            for row in range(len(weights)):
                part = slice(start, start + group)
                mask[row, part] = lowest(scores[row, part], 1 - keep / group)
        return weights.masked_fill(mask, 0)
    return weights.masked_fill(chosen(scores, quota), 0)


def conjugate_gradients(hessian: torch.Tensor, target: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """At most ten steps towards hessian·x = target on the support of ``start``, for one row."""
    support = start != 0
    matrix = hessian[support][:, support]
    found, residual = start[support].clone(), target[support] - matrix @ start[support]
    direction = residual.clone()
    for _ in range(10):
        if float(residual @ residual) == 0:
            break
        step = (residual @ residual) / (direction @ matrix @ direction)
        found = found + step * direction
        after = residual - step * (matrix @ direction)
        direction = after + (after @ after) / (residual @ residual) * direction
        residual = after
    whole = torch.zeros_like(start)
    whole[support] = found
    return whole


def reference(layer: Layer, quota: Quota) -> torch.Tensor:
    """Weights, float64: W, D and V by themselves, the inverse anew in each step."""
    assert layer.inputs is not None and layer.inputs.gram is not None
    gram = layer.inputs.gram.double()
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    root = damped.diagonal().sqrt()
    hessian = damped / root / root[:, None]
    dense = layer.weights.double() * root
    start = projected(dense, quota)
    stays = int((start != 0).sum())
    rho, moved, last = 0.1, False, start != 0
    sparse, dual = start, torch.zeros_like(dense)
    for step in range(1, 301):
        left = hessian + rho * torch.eye(len(gram), dtype=torch.float64)
        weights = torch.linalg.solve(left, (dense @ hessian - dual + rho * sparse).T).T
        sparse = projected(weights + dual / rho, quota)
        dual = dual + rho * (weights - sparse)
        if step % 3:
            continue
        change = int(((sparse != 0) != last).sum())
        last = sparse != 0
        if (moved and change == 0) or (moved and step > 30 and change < 3e-4 * stays):
            break
        if change >= 0.1 * stays:
            rho, moved = rho * 1.3, True
        elif change >= 0.005 * stays:
            rho, moved = rho * 1.2, True
        elif moved:
            rho = rho * 1.1
        else:
            rho = rho / 5
            if change:
                sparse, dual, last = start, torch.zeros_like(dense), start != 0
    found = torch.stack(
        [conjugate_gradients(hessian, want, have) for want, have in zip(dense @ hessian, sparse, strict=True)]
    )
    return found / root


@pytest.fixture(scope="module")
def read() -> torch.Tensor:
    return activations(50, 400)


def test_float64_equals_the_paper(read) -> None:
    layers = [layer_of(weights_of(rows, 50, rows), read, f"l{rows}") for rows in (24, 10)]
    inputs = layers[0].inputs
    assert inputs is not None and inputs.gram is not None
    before = inputs.gram.clone()
    found = solve([Layer(layer.name, layer.weights, 0, inputs) for layer in layers], QUOTAS, torch.float64)
    assert torch.equal(inputs.gram, before), "the gram is left for others"
    for layer, solutions in zip(layers, found, strict=True):
        for quota, solution in zip(QUOTAS, solutions, strict=True):
            expected = reference(layer, quota)
            assert torch.equal(solution.weights == 0, expected == 0), quota
            assert (solution.weights.double() - expected).norm() <= 1e-6 * expected.norm(), quota


@pytest.mark.parametrize("seed", range(4))
def test_float32_is_near_float64(seed: int) -> None:
    read = activations(64, 500, seed)
    layer = layer_of(weights_of(48, 64, seed), read)
    (exact,), (found,) = solve([layer], QUOTAS, torch.float64), solve([layer], QUOTAS)
    for quota, one, other in zip(QUOTAS, exact, found, strict=True):
        assert ((one.weights == 0) == (other.weights == 0)).double().mean() >= 0.999, quota
        error = layer_error(layer.weights, one.weights, read)
        assert layer_error(layer.weights, other.weights, read) == pytest.approx(error, rel=1e-3), quota


def test_a_search_that_does_not_settle_says_so(read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alps, "STEPS", 4)
    ((solution,),) = solve([layer_of(weights_of(16, 50), read)], [Quota(0.5, "layer")])
    assert solution.notes == ("the support still changed after 4 steps",)
    assert int((solution.weights == 0).sum()) == 400
