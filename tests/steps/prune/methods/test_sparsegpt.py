"""SparseGPT against the paper's algorithm written column by column, in float64."""

import pytest
import torch

from sparsebench.errors import ModelError
from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods import sparsegpt
from sparsebench.steps.prune.methods.sparsegpt import solve
from tests.steps.prune.methods.synthetic import activations, inputs_of, layer_error, layer_of, weights_of
from tests.steps.test_factor import published

QUOTAS = [
    *(Quota(sparsity, "layer") for sparsity in (0.1, 0.5, 0.7, 0.9, 1.0)),
    *(Quota(sparsity, "row") for sparsity in (0.5, 0.9)),
    *(Quota(0.5, "layer", pattern) for pattern in ("2:4", "4:8", "1:10", "1:20", "1:100", "3:7", "1:150")),
    *(Quota(0.6, granularity, "4x4") for granularity in ("layer", "row")),
    Quota(0.5, "layer", "3x20"),
]
WIDTHS = {"1:10": 130, "1:20": 120, "1:100": 100, "3:7": 126, "1:150": 150, "3x20": 120}


def lowest(scores: torch.Tensor, share: float) -> torch.Tensor:
    """Mask of the round(share · n) lowest of all entries."""
    order = torch.argsort(scores.flatten(), stable=True)[: round(share * scores.numel())]
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order] = True
    return mask.view(scores.shape)


def chosen(scores: torch.Tensor, quota: Quota) -> torch.Tensor:
    """What goes in a block of columns, given w²/U_jj²."""
    groups = [slice(row, row + 1) for row in range(len(scores))] if quota.granularity == "row" else [slice(None)]
    if "x" not in quota.pattern:
        return torch.cat([lowest(scores[group], quota.sparsity) for group in groups])
    height, width = map(int, quota.pattern.split("x"))
    down, across = scores.shape[0] // height, scores.shape[1] // width
    sums = scores[: down * height, : across * width].reshape(down, height, across, width).sum((1, 3))
    groups = [slice(row, row + 1) for row in range(down)] if quota.granularity == "row" else [slice(None)]
    gone = torch.cat([lowest(sums[group], quota.sparsity) for group in groups])
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask[: down * height, : across * width] = torch.kron(gone, torch.ones(height, width)).bool()
    return mask


def reference(layer: Layer, quota: Quota) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, mask): one column after the other, every update at once, nothing shared."""
    assert layer.inputs is not None
    upper = published(layer.inputs)
    weights = layer.weights.double().clone()
    weights[:, layer.inputs.squares == 0] = 0
    mask = torch.zeros(weights.shape, dtype=torch.bool)
    columns, width = weights.shape[1], WIDTHS.get(quota.pattern, 128)
    group = int(quota.pattern.split(":")[1]) if ":" in quota.pattern else 0
    for j in range(columns):
        place = j % width
        if not group and place == 0:
            block = slice(j, min(j + width, columns))
            mask[:, block] = chosen((weights[:, block] / upper.diagonal()[block]) ** 2, quota)
        if group and j % group == 0 and j + group <= columns:
            block = slice(j, j + group)
            remove = (group - int(quota.pattern.split(":")[0])) / group
            scores = (weights[:, block] / upper.diagonal()[block]) ** 2
            mask[:, block] = torch.cat([lowest(row[None], remove) for row in scores])
        error = weights[:, j] * mask[:, j] / upper[j, j]
        weights[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        weights[:, j] = weights[:, j].masked_fill(mask[:, j], 0)
    return weights, mask


@pytest.fixture(scope="module")
def read() -> torch.Tensor:
    return activations(310, 900)


@pytest.fixture(scope="module")
def layers(read: torch.Tensor) -> list[Layer]:
    return [layer_of(weights_of(rows, 310, rows), read, f"l{rows}") for rows in (21, 8)]


@pytest.fixture(scope="module")
def references(layers: list[Layer]) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    return [[reference(layer, quota) for quota in QUOTAS] for layer in layers]


def shared(layers: list[Layer], read: torch.Tensor) -> list[Layer]:
    """The layers with one, fresh, object of statistics."""
    inputs = inputs_of(read)
    return [Layer(layer.name, layer.weights, 0, inputs) for layer in layers]


def test_float64_equals_the_paper(layers, references, read) -> None:
    """All layers and all quotas at once against each alone."""
    found = solve(shared(layers, read), QUOTAS, torch.float64)
    for expectations, solutions in zip(references, found, strict=True):
        for quota, (weights, mask), solution in zip(QUOTAS, expectations, solutions, strict=True):
            assert solution.weights.dtype == torch.float32
            assert torch.equal(solution.weights == 0, mask), quota
            difference = (solution.weights.double() - weights).norm()
            assert difference <= 1e-6 * weights.norm(), quota


def test_float32_is_near_the_paper(layers, references, read) -> None:
    found = solve(shared(layers, read), QUOTAS)
    for layer, expectations, solutions in zip(layers, references, found, strict=True):
        for quota, (weights, mask), solution in zip(QUOTAS, expectations, solutions, strict=True):
            same = ((solution.weights == 0) == mask).double().mean()
            assert same >= 0.999, quota
            error = layer_error(layer.weights, solution.weights, read)
            assert error == pytest.approx(layer_error(layer.weights, weights, read), rel=1e-3), quota


def test_small_stacks_give_the_same(layers, read, monkeypatch) -> None:
    whole = solve(shared(layers, read), QUOTAS, torch.float64)
    monkeypatch.setattr(sparsegpt, "STACK", 30 * 310 * 8)
    assert len(list(sparsegpt._stacks(layers, QUOTAS, 8))) > 15
    for before, after in zip(whole, solve(shared(layers, read), QUOTAS, torch.float64), strict=True):
        for one, other in zip(before, after, strict=True):
            assert torch.equal(one.weights == 0, other.weights == 0)
            assert torch.allclose(one.weights, other.weights, atol=1e-6)


def test_dead_inputs_lose_their_weights_and_it_is_said() -> None:
    read = activations(40, 200)
    read[:, [0, 17]] = 0
    layer = layer_of(weights_of(10, 40), read)
    ((solution,),) = solve([layer], [Quota(0.1, "layer")], torch.float64)
    assert not solution.weights[:, [0, 17]].any()
    assert int((solution.weights == 0).sum()) == 40, "they count towards the sparsity"
    assert solution.notes == ("inputs that are always zero lose their weights",)
    weights, mask = reference(layer_of(layer.weights, read), Quota(0.1, "layer"))
    assert torch.equal(solution.weights == 0, mask)
    assert torch.allclose(solution.weights.double(), weights, atol=1e-6)


def test_an_update_that_leaves_float16_is_refused_by_name() -> None:
    inputs = inputs_of(activations(2, 20))
    inputs.gram = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    layer = Layer("layers.5.up", torch.tensor([[6e4, 6.5e4]]).half(), 0, inputs)
    ((found,),) = solve([layer], [Quota(0.5, "layer")])
    assert isinstance(found, ModelError) and "layers.5.up: the updated weights exceed the range" in str(found)
