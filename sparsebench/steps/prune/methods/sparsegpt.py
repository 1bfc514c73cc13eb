"""SparseGPT (Frantar & Alistarh 2023, algorithm 1): prune column by column, let the columns to the right make up for it.

    H = 2/n · Σ x xᵀ + λI,   UᵀU = H⁻¹,   U upper triangular
    for every block of 128 columns:
        removed: the round(s · rows · 128) weights of smallest w² / U_jj² in the block
        for every column j of the block:
            e = w_j / U_jj where removed, 0 elsewhere
            W_:,j:  −=  e · U_j,j:                                    (columns right of the block: all at once, later)

N:M chooses at every M-th column, from the weights as updated so far. U depends on the inputs alone: layers that read the
same and all sparsities are stacked and swept together. The stack is Wᵀ, so that a column is contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.factor import Factor, check_finite, check_weights, factorise

if TYPE_CHECKING:
    import torch

WIDTH = 128
"""Columns of a block, as published."""
STEP = 16
"""Columns that are updated one by one before the rest of their block is, by a product."""
STACK = 256 << 20
"""Bytes of the stack; a layer larger than that goes alone."""


@dataclass(frozen=True)
class Unit:
    """One layer to prune to one quota, and where it lies in the stack."""

    layer: Layer
    quota: Quota
    start: int = 0

    @property
    def columns(self) -> slice:
        """The unit's columns of the stack: the layer's rows."""
        return slice(self.start, self.start + self.layer.weights.shape[0])


def solve(layers: Sequence[Layer], quotas: Sequence[Quota], dtype: torch.dtype | None = None) -> list[list[Solution]]:
    """For each of ``layers``, which read the same inputs, a solution per quota; uses up the gram.

    ``granularity: layer`` compares within the layer's block of columns, ``row`` within each row of it. ``dtype`` is that
    of the arithmetic (default float32). Raises ModelError, naming the tensor, for NaN and infinite numbers.
    """
    import torch

    dtype = dtype or torch.float32
    check_weights(layers)
    if layers[0].inputs is None:
        raise ValueError(f"{layers[0].name}: no statistics of what it reads")
    factor = factorise(layers[0].inputs, layers[0].name, dtype)
    found = [[Solution(layer.weights)] * len(quotas) for layer in layers]
    for places, units in _stacks(layers, quotas, dtype.itemsize):
        for (row, column), solution in zip(places, _sweep(units, factor, dtype), strict=True):
            found[row][column] = solution
    return found


def block_width(pattern: str) -> int:
    """Columns of a block: 128, or the multiple nearest to it of what the pattern keeps together."""
    if pattern == "unstructured":
        return WIDTH
    group = masks.pair(pattern)[1]
    return max(1, round(WIDTH / group)) * group


def _stacks(
    layers: Sequence[Layer], quotas: Sequence[Quota], itemsize: int
) -> Iterator[tuple[list[tuple[int, int]], list[Unit]]]:
    """Units of one pattern that fit into a stack together, with their places in the answer.

    Where nothing is to go there is no unit: the layer stays as it is.
    """
    wanted_at: dict[str, list[int]] = {}
    for column, quota in enumerate(quotas):
        if quota.sparsity > 0 or masks.kind_of(quota.pattern) == "N:M":
            wanted_at.setdefault(quota.pattern, []).append(column)
    for wanted in wanted_at.values():
        places: list[tuple[int, int]] = []
        units: list[Unit] = []
        height = 0
        for row, layer in enumerate(layers):
            for column in wanted:
                rows, inputs = layer.weights.shape
                if units and (height + rows) * inputs * itemsize > STACK:
                    yield places, units
                    places, units, height = [], [], 0
                places.append((row, column))
                units.append(Unit(layer, quotas[column], height))
                height += rows
        if units:
            yield places, units


def _sweep(units: list[Unit], factor: Factor, dtype: torch.dtype) -> Iterator[Solution]:
    """Algorithm 1 over a stack of units of one pattern."""
    import torch

    inputs, width = len(factor.upper), block_width(units[0].quota.pattern)
    stack = torch.empty(inputs, units[-1].columns.stop, dtype=dtype)
    for unit in units:
        stack[:, unit.columns] = unit.layer.weights.T
    stack[factor.dead] = 0
    for start in range(0, inputs, width):
        stop = min(start + width, inputs)
        errors = _prune_block(stack[start:stop], factor.upper[start:stop, start:stop].contiguous(), units)
        stack[stop:].addmm_(factor.upper[start:stop, stop:].T, errors, alpha=-1)
    for unit in units:
        yield _solution(unit, stack[:, unit.columns].T, factor)


def _prune_block(block: torch.Tensor, upper: torch.Tensor, units: list[Unit]) -> torch.Tensor:
    """Prunes a block (width, rows) of the stack in place; the errors e (width, rows) are for what lies right of it."""
    import torch

    pattern, width = units[0].quota.pattern, block.shape[0]
    group = masks.pair(pattern)[1] if masks.kind_of(pattern) == "N:M" else 0
    scale = upper.diagonal()[:, None]
    removed = torch.zeros(block.shape, dtype=torch.bool) if group else _removed(block, scale, units)
    factors = torch.zeros_like(block) if group else removed.to(block.dtype).div_(scale)
    errors = torch.empty_like(block)
    for start, stop in _steps(width, group):
        for column in range(start, stop):
            if group and column % group == 0 and column + group <= width:
                here = slice(column, column + group)
                removed[here] = _removed_of_group(block[here] / scale[here], units[0])
                factors[here] = removed[here].to(block.dtype).div_(scale[here])
            torch.mul(block[column], factors[column], out=errors[column])
            block[column + 1 : stop].addr_(upper[column, column + 1 : stop], errors[column], alpha=-1)
        block[stop:].addmm_(upper[start:stop, stop:].T, errors[start:stop], alpha=-1)
    block.masked_fill_(removed, 0)
    return errors


def _removed(block: torch.Tensor, scale: torch.Tensor, units: list[Unit]) -> torch.Tensor:
    """Mask (width, rows) of the block: for each unit the lowest w² / U_jj²."""
    import torch

    removed = torch.empty(block.shape, dtype=torch.bool)
    scores = (block / scale).square_().T.contiguous()
    for unit in units:
        (choice,) = masks.choose(scores[unit.columns], [unit.quota], unit.layer.name)
        removed[:, unit.columns] = choice.mask.T
    return removed


def _removed_of_group(ratios: torch.Tensor, unit: Unit) -> torch.Tensor:
    """Mask (M, rows) of the M−N lowest w² / U_jj² of each row, given w / U_jj; ``unit`` tells N and M."""
    keep, group = masks.pair(unit.quota.pattern)
    return masks.lowest_of_each(masks.ordinals(ratios.square_(), unit.layer.name), group - keep)


def _steps(width: int, group: int) -> Iterator[tuple[int, int]]:
    """Bounds of the runs of columns that are updated one by one: about STEP, and a group starts within one or with one.

    All columns of a group are up to date when its first is reached: either it lies in one run, or it starts one.
    """
    longest = STEP // group * group if 0 < group <= STEP else STEP
    start = 0
    while start < width:
        stop = min(start + longest, width)
        if group > STEP:
            stop = min(stop, (start // group + 1) * group)
        yield start, stop
        start = stop


def _solution(unit: Unit, weights: torch.Tensor, factor: Factor) -> Solution:
    """The unit's weights (out, in) in the layer's dtype. What was set to zero in float32 stays zero."""
    import torch

    layer = unit.layer
    found = torch.empty(weights.shape, dtype=layer.weights.dtype).copy_(weights)
    check_finite(
        found, layer.name, "the updated weights do not fit its precision", "convert the checkpoint to bfloat16"
    )
    said = list(factor.notes) + list(masks.notes(weights.shape, unit.quota.pattern))
    if bool(factor.dead.any()):
        said.append("inputs that are always zero lose their weights")
    return Solution(found, tuple(said))
