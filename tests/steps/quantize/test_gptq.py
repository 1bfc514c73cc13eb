"""GPTQ and the joint sweep against the papers' loops, column by column in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sparsebench.errors import UnsupportedError
from sparsebench.steps.prune.contract import Layer, Quota
from sparsebench.steps.prune.methods.sparsegpt import block_width, solve
from sparsebench.steps.quantize.grid import Quantize, grid, nearest
from tests.steps.prune.methods.synthetic import activations, inputs_of, layer_error, layer_of, weights_of
from tests.steps.prune.methods.test_sparsegpt import chosen
from tests.steps.prune.test_factor import published

GPTQ = [
    Quantize("int8", rounding="gptq"),
    Quantize("int8", rounding="gptq", symmetric=False),
    *(Quantize("int4", group, "gptq", symmetric) for group in (32, 64, 48, 7, 200) for symmetric in (True, False)),
]
COLUMNS = 310


@pytest.fixture(scope="module")
def read() -> torch.Tensor:
    return activations(COLUMNS, 900)


def textbook(layer: Layer, quota: Quota) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights, mask): one column after the other, each update at once; a group's grid from its weights as they are then."""
    assert layer.inputs is not None and quota.quantize is not None
    upper, way = published(layer.inputs), quota.quantize
    weights, columns = layer.weights.double().clone(), layer.weights.shape[1]
    mask, width, places = weights == 0, block_width(quota.pattern, way), None
    weights[:, layer.inputs.squares == 0] = 0
    for j in range(columns):
        if quota.sparsity and j % width == 0:
            block = slice(j, min(j + width, columns))
            mask[:, block] = chosen((weights[:, block] / upper.diagonal()[block]) ** 2, quota)
        if j % (way.group or columns) == 0:
            ahead = slice(j, j + (way.group or columns))
            seen = weights[:, ahead].masked_fill(mask[:, ahead], 0) if way.group else weights[:, ahead]
            places = grid(seen, 1, way.scheme, layer.weights.dtype)
        assert places is not None
        values = (weights[:, j] / places.step).round().add(places.zero).clamp(places.low, places.high)
        kept = ((values - places.zero) * places.step).masked_fill(mask[:, j], 0)
        error = (weights[:, j] - kept) / upper[j, j]
        weights[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
        weights[:, j] = kept
    return weights, mask


@pytest.mark.parametrize("pruned", [False, True])
def test_gptq_is_the_textbooks(read: torch.Tensor, pruned: bool) -> None:
    weights = weights_of(13, COLUMNS)
    if pruned:
        weights[torch.rand(weights.shape, generator=torch.Generator().manual_seed(3)) < 0.5] = 0
    quotas = [Quota(0.0, "layer", quantize=way) for way in GPTQ]
    (solutions,) = solve([layer_of(weights, read)], quotas, torch.float64)
    for quota, solution in zip(quotas, solutions, strict=True):
        expected, _ = textbook(layer_of(weights, read), quota)
        assert solution.codes is not None
        assert torch.allclose(solution.codes.expanded(torch.float64), expected, atol=1e-6), quota.quantize
        assert not bool(solution.weights[weights == 0].any())
        assert solution.removed == int((weights == 0).sum())


@pytest.mark.parametrize("way", GPTQ)
def test_the_joint_sweep_is_the_papers(read: torch.Tensor, way: Quantize) -> None:
    weights = weights_of(13, COLUMNS)
    for granularity in ("layer", "row"):
        quota = Quota(0.5, granularity, quantize=way)
        ((solution,),) = solve([layer_of(weights, read)], [quota], torch.float64)
        expected, mask = textbook(layer_of(weights, read), quota)
        assert solution.codes is not None
        assert torch.allclose(solution.codes.expanded(torch.float64), expected, atol=1e-6)
        assert not bool(solution.weights[mask].any()) and solution.removed == int(mask.sum())


def test_one_stack_of_many_is_each_alone(read: torch.Tensor) -> None:
    inputs = inputs_of(read)
    layers = [Layer(f"l{rows}", weights_of(rows, COLUMNS, rows).bfloat16(), 0, inputs) for rows in (21, 8)]
    quotas = [Quota(0.5, "layer"), Quota(0.3, "row", quantize=GPTQ[0]), Quota(0.5, "layer", "2:4", GPTQ[4])]
    quotas += [Quota(0.0, "layer", quantize=way) for way in (*GPTQ[:4], replace(GPTQ[0], damping=0.1))]
    together = solve(layers, quotas)
    for row, layer in enumerate(layers):
        for column, quota in enumerate(quotas):
            ((alone,),) = solve([replace(layer, inputs=inputs_of(read))], [quota])
            found = together[row][column]
            assert (found.weights.float() - alone.weights.float()).norm() <= 1e-2 * alone.weights.float().norm(), quota
            assert found.removed == alone.removed


def test_n_of_m_is_kept_by_the_joint_sweep(read: torch.Tensor) -> None:
    ((found,),) = solve(
        [layer_of(weights_of(9, COLUMNS), read)], [Quota(0.5, "layer", "2:4", Quantize("int4", rounding="gptq"))]
    )
    groups = (found.weights[:, :308] == 0).unflatten(1, (-1, 4)).sum(2)
    assert bool((groups >= 2).all())
    assert found.removed == 9 * 77 * 2


def test_gptq_beats_rounding_and_the_joint_sweep_one_after_the_other(read: torch.Tensor) -> None:
    layer, way = layer_of(weights_of(32, COLUMNS), read), Quantize("int4", rounding="gptq")
    quotas = [Quota(0.0, "layer", quantize=way), Quota(0.5, "layer"), Quota(0.5, "layer", quantize=way)]
    ((gptq, pruned, joint),) = solve([layer], quotas)
    rounded = nearest(layer.weights, way.scheme).expanded(torch.float32)
    assert layer_error(layer.weights, gptq.weights, read) < 0.7 * layer_error(layer.weights, rounded, read)
    after = nearest(pruned.weights, way.scheme).expanded(torch.float32)
    assert layer_error(layer.weights, joint.weights, read) < layer_error(layer.weights, after, read)


def test_groups_that_cut_a_pattern_are_refused(read: torch.Tensor) -> None:
    with pytest.raises(UnsupportedError, match="1:10"):
        solve(
            [layer_of(weights_of(3, COLUMNS), read)], [Quota(0.9, "layer", "1:10", Quantize("int4", rounding="gptq"))]
        )


def test_dead_inputs_and_zero_rows() -> None:
    read = activations(40, 200)
    read[:, [0, 17]] = 0
    weights = weights_of(6, 40)
    weights[2] = 0
    for way in GPTQ:
        ((found,),) = solve([layer_of(weights, read)], [Quota(0.0, "layer", quantize=way)])
        assert not bool(found.weights[:, [0, 17]].any()) and not bool(found.weights[2].any())
        assert found.removed == 40, "what a dead input loses was not pruned"
