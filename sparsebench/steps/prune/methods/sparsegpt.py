"""SparseGPT (Frantar & Alistarh 2023, algorithm 1): prunes column by column; columns to the right compensate the error.

    H = 2/n · Σ x xᵀ + λI,   UᵀU = H⁻¹,   U upper triangular
    for every block of 128 columns:
        removed: the round(s · rows · 128) weights of smallest w² / U_jj² in the block
        for every column j of the block:
            e = w_j / U_jj where removed, 0 elsewhere
            W_:,j:  −=  e · U_j,j:                                    (columns right of the block: all at once, later)

N:M chooses the weights to remove at every M-th column, from the weights as updated so far. U depends on the inputs
alone, so layers that read the same input, and all sparsities, are stacked and swept together. The stack is Wᵀ, so that
a column is contiguous.

A quota that quantizes removes nothing. It rounds the weights of column j to the nearest values q of a grid, with e =
(w_j - q) / U_jj: GPTQ (Frantar et al. 2023, algorithm 1). Weights that were zero before stay zero. A group's grid is
made from its weights as updated when its first column is reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.quantized import Codes, Scheme, groups_of
from sparsebench.steps.factor import DAMPING, Factor, factorise
from sparsebench.steps.finite import check_range, check_weights
from sparsebench.steps.grid import grid_scales, grid_values
from sparsebench.steps.prune import masks
from sparsebench.steps.prune.contract import Layer, Quota, Solution

WIDTH = 128
"""The number of columns of a block, as published."""
STEP = 16
"""The number of columns that are updated one by one before a product updates the rest of their block."""
STACK = 256 << 20
"""The most bytes of a stack; a larger layer is a stack by itself."""


@dataclass(frozen=True)
class Unit:
    """One layer to prune to one quota, its first column in the stack, and the ``indices`` of the layer and of the quota."""

    layer: Layer
    quota: Quota
    start: int = 0
    indices: tuple[int, int] = (0, 0)

    @property
    def columns(self) -> slice:
        """The unit's columns of the stack: the layer's rows."""
        return slice(self.start, self.start + self.layer.weights.shape[0])


def solve(
    layers: Sequence[Layer], quotas: Sequence[Quota], dtype: torch.dtype = torch.float32
) -> list[list[Solution | ModelError]]:
    """Return a solution per quota for each of ``layers``, which read the same inputs; a float32 gram is used up.

    ``granularity: layer`` compares within the layer's block of columns, ``row`` within each row of the block. ``dtype``
    is that of the arithmetic. Raises ModelError, naming the tensor, for NaN and infinite numbers.
    """
    check_weights(layers)
    solutions: list[list[Solution | ModelError]] = [[Solution(layer.weights)] * len(quotas) for layer in layers]
    dampings = sorted({_damping(quota) for quota in quotas})
    for damping in dampings:
        inputs = layers[0].statistics()
        if damping != dampings[-1] and inputs.gram is not None:
            inputs = replace(inputs, gram=inputs.gram.clone())
        factor = factorise(inputs, layers[0].name, dtype, damping)
        for units in _stacks(layers, quotas, dtype.itemsize, damping):
            for unit, solution in zip(units, _sweep(units, factor, dtype), strict=True):
                layer_index, quota_index = unit.indices
                solutions[layer_index][quota_index] = solution
    return solutions


def _damping(quota: Quota) -> float:
    return getattr(quota.settings, "damping", DAMPING[0])


def block_width(pattern: str, group: int | None = None) -> int:
    """Return the columns of a block: the multiple nearest to WIDTH of the group size of the grid, or of the pattern."""
    together = group or (1 if pattern == "unstructured" else masks.pair(pattern)[1])
    return max(1, round(WIDTH / together)) * together


def _stacks(
    layers: Sequence[Layer], quotas: Sequence[Quota], itemsize: int, damping: float = DAMPING[0]
) -> Iterator[list[Unit]]:
    """Yield stacks of units with the same pattern and group size, for the quotas with this ``damping``.

    A quota that neither prunes nor rounds has no unit: the layer stays as it is.
    """
    quotas_of_stack: dict[tuple[object, ...], list[int]] = {}
    for quota_index, quota in enumerate(quotas):
        changes = quota.sparsity > 0 or masks.kind_of(quota.pattern) == "N:M" or quota.scheme
        if changes and _damping(quota) == damping:
            stack_key = (quota.pattern, quota.scheme, quota.keep_zeros)
            quotas_of_stack.setdefault(stack_key, []).append(quota_index)
    for quota_indices in quotas_of_stack.values():
        units: list[Unit] = []
        height = 0
        for (layer_index, layer), quota_index in product(enumerate(layers), quota_indices):
            rows, columns = layer.weights.shape
            if units and (height + rows) * columns * itemsize > STACK:
                yield units
                units, height = [], 0
            units.append(Unit(layer, quotas[quota_index], height, (layer_index, quota_index)))
            height += rows
        yield units


def _sweep(units: list[Unit], factor: Factor, dtype: torch.dtype) -> Iterator[Solution | ModelError]:
    """Run algorithm 1 over a stack of units with the same pattern and group size."""
    quota = units[0].quota
    scheme = quota.scheme
    inputs = len(factor.upper)
    width = block_width(quota.pattern, scheme.group if scheme else None)
    stack = torch.empty(inputs, units[-1].columns.stop, dtype=dtype, device=factor.upper.device)
    for unit in units:
        stack[:, unit.columns] = unit.layer.weights.T
    zeros = stack == 0 if scheme or quota.keep_zeros else None
    stack[factor.dead] = 0
    rounding = _Rounding(scheme, units, stack) if scheme else None
    for start in range(0, inputs, width):
        columns = slice(start, min(start + width, inputs))
        upper = factor.upper[columns, columns].contiguous()
        removed = _removal_mask(
            stack[columns], upper.diagonal()[:, None], units, None if zeros is None else zeros[columns]
        )
        errors = _sweep_block(stack[columns], upper, units, removed, rounding, start)
        stack[columns.stop :].addmm_(factor.upper[columns, columns.stop :].T, errors, alpha=-1)
    for unit in units:
        codes = rounding.codes(unit) if rounding else None
        try:
            yield _solution(unit, stack[:, unit.columns].T, factor, codes)
        except ModelError as error:  # weights beyond the range of the layer's dtype, for this quota only
            yield error


def _sweep_block(
    block: torch.Tensor,
    upper: torch.Tensor,
    units: list[Unit],
    removed: torch.Tensor,
    rounding: _Rounding | None,
    first: int,
) -> torch.Tensor:
    """Prune a block (width, rows) of the stack in place, and return the errors e (width, rows) for the columns after
    it.

    The block begins at column ``first``. ``removed`` is the mask of the weights to remove; for N:M it is filled in
    here.
    """
    pattern, width = units[0].quota.pattern, block.shape[0]
    group = masks.pair(pattern)[1] if masks.kind_of(pattern) == "N:M" else 0
    scales = upper.diagonal()[:, None]
    factors = removed.to(block.dtype).div_(scales)
    errors = torch.empty_like(block)
    for start, stop in _steps(width, group, rounding.group if rounding else None):
        for column in range(start, stop):
            if group and column % group == 0 and column + group <= width:
                members = slice(column, column + group)
                ratios = block[members] / scales[members]
                removed[members] |= _removal_mask_of_group(ratios, units[0], removed[members])
                factors[members] = removed[members].to(block.dtype).div_(scales[members])
            if rounding:
                rounded = rounding.rounded(first + column, block[column:], removed[column:])
                torch.div(block[column] - rounded, scales[column], out=errors[column])
                block[column] = rounded
            else:
                torch.mul(block[column], factors[column], out=errors[column])
            block[column + 1 : stop].addr_(upper[column, column + 1 : stop], errors[column], alpha=-1)
        block[stop:].addmm_(upper[start:stop, stop:].T, errors[start:stop], alpha=-1)
    block.masked_fill_(removed, 0)
    return errors


class _Rounding:
    """The scales of the grids of a stack of units, and the integer values of its columns."""

    def __init__(self, scheme: Scheme, units: list[Unit], stack: torch.Tensor) -> None:
        inputs, rows = stack.shape
        self.units, self.bits, self.group = units, scheme.bits, scheme.group
        self.values = torch.empty(inputs, rows, dtype=torch.int8, device=stack.device)
        self.scales = stack.new_empty(groups_of(inputs, self.group), rows)
        if self.group is None:
            self._set_scales(0, stack)

    def rounded(self, column: int, ahead: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        """Round column ``column``, the first of ``ahead``, with zeros where ``removed``; return the rounded weights."""
        number = column // self.group if self.group else 0
        if self.group and column % self.group == 0:
            self._set_scales(number, ahead[: self.group].masked_fill(removed[: self.group], 0))
        values = grid_values(ahead[0], self.scales[number], self.bits).masked_fill_(removed[0], 0)
        self.values[column] = values
        return values.mul_(self.scales[number])

    def _set_scales(self, number: int, weights: torch.Tensor) -> None:
        for unit in self.units:
            columns = unit.columns
            self.scales[number, columns] = grid_scales(weights[:, columns], 0, self.bits, unit.layer.weights.dtype)

    def codes(self, unit: Unit) -> Codes:
        """Return the unit's values (out, in) with its scales."""
        columns = unit.columns
        scales = self.scales[:, columns].T.to(unit.layer.weights.dtype).contiguous()
        return Codes(self.values[:, columns].T.contiguous(), scales, self.group)


def _removal_mask(
    block: torch.Tensor, scales: torch.Tensor, units: list[Unit], zeros: torch.Tensor | None
) -> torch.Tensor:
    """Return the mask (width, rows) of a block: each unit's lowest w² / U_jj², or its ``zeros`` if it quantizes.

    For N:M the mask has only the zeros to keep.
    """
    if units[0].quota.scheme:
        assert zeros is not None
        return zeros
    if masks.kind_of(units[0].quota.pattern) == "N:M":
        return torch.zeros_like(block, dtype=torch.bool) if zeros is None else zeros.clone()
    removed = torch.empty(block.shape, dtype=torch.bool, device=block.device)
    scores = (block / scales).square_().T.contiguous()
    for unit in units:
        before = None if zeros is None else ~zeros[:, unit.columns].T
        (choice,) = masks.choose(scores[unit.columns], [unit.quota], unit.layer.name, before)
        removed[:, unit.columns] = choice.mask.T
    return removed


def _removal_mask_of_group(ratios: torch.Tensor, unit: Unit, already_removed: torch.Tensor) -> torch.Tensor:
    """Return the mask (M, rows) of each row's M−N lowest w² / U_jj², the weights in ``already_removed`` first.

    ``ratios`` are w / U_jj. N and M are those of the unit's pattern.
    """
    n, m = masks.pair(unit.quota.pattern)
    scores = masks.ordinals(ratios.square_(), unit.layer.name)
    return masks.lowest_of_each(scores.masked_fill_(already_removed, -1), m - n)


def _steps(width: int, group: int, grid_group: int | None) -> Iterator[tuple[int, int]]:
    """Yield the bounds of the runs of columns, about STEP each, that are updated one by one.

    All columns of a group must be up to date when its first is reached. So a ``group`` of a pattern is within one run,
    or starts one; one of a grid, of ``grid_group`` columns, always starts one.
    """
    if grid_group:
        for left in range(0, width, grid_group):
            right = min(left + grid_group, width)
            yield from ((left + start, left + stop) for start, stop in _steps(right - left, group, None))
        return
    longest = STEP // group * group if 0 < group <= STEP else STEP
    start = 0
    while start < width:
        stop = min(start + longest, width)
        if group > STEP:
            stop = min(stop, (start // group + 1) * group)
        yield start, stop
        start = stop


def _solution(unit: Unit, weights: torch.Tensor, factor: Factor, codes: Codes | None) -> Solution:
    """Return the unit's weights (out, in), converted to the layer's dtype; weights that are zero stay zero."""
    layer = unit.layer
    dtype = layer.weights.dtype
    row_major = torch.contiguous_format
    result = codes.expanded(dtype) if codes else weights.to(dtype, copy=True, memory_format=row_major)
    check_range(result, layer.name)
    notes = list(factor.notes) + list(masks.notes(weights.shape, unit.quota.pattern))
    if bool(factor.dead.any()):
        notes.append("inputs that are always zero lose their weights")
    return Solution(result, tuple(notes), codes)
