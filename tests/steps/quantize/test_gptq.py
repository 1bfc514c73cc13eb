"""GPTQ against the paper's loop, column by column in float64."""

from dataclasses import replace

import pytest
import torch

from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods.sparsegpt import solve
from sparsebench.steps.quantize.settings import Int4, Int8
from tests.steps.prune.methods.synthetic import activations, inputs_of, layer_of, weights_of
from tests.steps.test_factor import published

GPTQ = [Int8(rounding="gptq"), *(Int4(group=group, rounding="gptq") for group in (32, 64, 48, 7, 200))]
COLUMNS = 310


@pytest.fixture(scope="module")
def read() -> torch.Tensor:
    return activations(COLUMNS, 900)


def rounds(way: Int8) -> Quota:
    return Quota(0.0, "layer", settings=way, scheme=way.scheme)


def textbook(layer: Layer, way: Int8) -> torch.Tensor:
    """One column after the other, each update at once; a group's step from its weights as they are then."""
    assert layer.inputs is not None
    upper, half = published(layer.inputs), 8 if way.scheme.bits == 4 else 128
    weights, columns = layer.weights.double().clone(), layer.weights.shape[1]
    zeros, steps = weights == 0, torch.empty(0)
    weights[:, layer.inputs.squares == 0] = 0
    for j in range(columns):
        if j % (way.scheme.group or columns) == 0:
            ahead = slice(j, j + (way.scheme.group or columns))
            seen = weights[:, ahead].masked_fill(zeros[:, ahead], 0) if way.scheme.group else weights[:, ahead]
            steps = (seen.abs().amax(1) / (half - 0.5)).float().double()
            steps[steps == 0] = 1
        kept = (weights[:, j] / steps).round().clamp(-half, half - 1) * steps
        kept[zeros[:, j]] = 0
        error = (weights[:, j] - kept) / upper[j, j]
        weights[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        weights[:, j] = kept
    return weights


@pytest.mark.parametrize("pruned", [False, True])
def test_gptq_is_the_textbooks(read: torch.Tensor, pruned: bool) -> None:
    weights = weights_of(13, COLUMNS)
    if pruned:
        weights[torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) < 0.5] = 0
        weights[2] = 0
        read = read.clone()
        read[:, [0, 17]] = 0  # inputs that are always zero
    quotas = [rounds(way) for way in GPTQ]
    (solutions,) = solve([layer_of(weights, read)], quotas, torch.float64)
    for quota, solution in zip(quotas, solutions, strict=True):
        assert solution.codes is not None and quota.scheme is not None
        expected = textbook(layer_of(weights, read), quota.settings)
        assert torch.allclose(solution.codes.expanded(torch.float64), expected, atol=1e-6), quota.settings
        assert not bool(solution.weights[weights == 0].any()) and not (pruned and solution.weights[:, [0, 17]].any())


def test_one_stack_of_many_is_each_alone(read: torch.Tensor) -> None:
    inputs = inputs_of(read)
    layers = [Layer(f"l{rows}", weights_of(rows, COLUMNS, rows).bfloat16(), 0, inputs) for rows in (21, 8)]
    quotas = [Quota(0.5, "layer"), Quota(0.5, "layer", "2:4")]
    quotas += [rounds(way) for way in (*GPTQ[:4], Int8(rounding="gptq", damping=0.1))]
    together = solve(layers, quotas)
    for row, layer in enumerate(layers):
        for column, quota in enumerate(quotas):
            ((alone,),) = solve([replace(layer, inputs=inputs_of(read))], [quota])
            found = together[row][column]
            assert (found.weights.float() - alone.weights.float()).norm() <= 1e-2 * alone.weights.float().norm(), quota
