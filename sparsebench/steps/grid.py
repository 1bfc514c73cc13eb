"""The grids that weights are rounded to.

    scale = max|w| / ((2ᵇ - 1) / 2),    value = round(w / scale), clamped to -2ᵇ⁻¹ … 2ᵇ⁻¹ - 1

A weight of zero stays exactly zero. The scale is first rounded to the checkpoint's precision, in which it is stored.
With ``scale: search`` it is the one with the least squared error of several (``searched_scales``).
"""

from __future__ import annotations

import torch

from sparsebench.models.files.quantized import Codes, Scheme, groups_of

CHUNK = 1 << 23
"""The number of weights rounded at once."""
SHARES = tuple(0.6 + 0.05 * number for number in range(12))
"""The shares of the range's scale that a search tries; below 1 the largest weights are clamped."""


def grid_scales(weights: torch.Tensor, dim: int, bits: int, stored: torch.dtype) -> torch.Tensor:
    """Return the scale of float32 or float64 weights that share one along ``dim``, exact in the dtype ``stored``."""
    span = (1 << bits) - 1
    largest = torch.maximum(weights.amax(dim), -weights.amin(dim))
    # A scale that is too small for the dtype is raised to the smallest number that it still represents to within a
    # percent (in float16 a subnormal number). Where all weights are zero, any scale will do.
    smallest_scale = 2.0**-18 if stored == torch.float16 else torch.finfo(stored).tiny
    scales = (largest * (2 / span)).clamp_(min=smallest_scale).to(stored).to(weights.dtype)
    return scales.masked_fill_(largest == 0, 1)


def searched_scales(weights: torch.Tensor, dim: int, bits: int, stored: torch.dtype) -> torch.Tensor:
    """Return ``grid_scales``, or another scale where it rounds the weights along ``dim`` with a smaller squared error.

    Tried are SHARES of that scale, of both signs: the grid reaches further below zero than above.
    """
    best = grid_scales(weights, dim, bits, stored)
    range_scales, least_error = best, _squared_error(weights, best.unsqueeze(dim), bits).sum(dim)
    for share in (sign * share for share in SHARES for sign in (1, -1)):
        scales = (range_scales * share).to(stored).to(weights.dtype)
        error = _squared_error(weights, scales.unsqueeze(dim), bits).sum(dim)
        best, least_error = torch.where(error < least_error, scales, best), torch.minimum(error, least_error)
    return best


def _squared_error(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    return grid_values(weights, scales, bits).mul_(scales).sub_(weights).square_()


def grid_values(weights: torch.Tensor, scales: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the nearest grid values of weights, whole numbers in floating point; ``scales`` broadcast against them."""
    half = 1 << (bits - 1)
    return (weights / scales).round_().clamp_(-half, half - 1)


def nearest(weights: torch.Tensor, scheme: Scheme, search: bool = False) -> Codes:
    """Round each weight of a matrix (out, in) to the nearest value of its grid, some million weights at a time.

    With ``search`` the scales are those of ``searched_scales``.
    """
    rows, columns = weights.shape
    groups, width = groups_of(columns, scheme.group), min(scheme.group or columns, columns)
    device, scales_of = weights.device, searched_scales if search else grid_scales
    values = torch.empty(rows, columns, dtype=torch.int8, device=device)
    scales = torch.empty(rows, groups, dtype=weights.dtype, device=device)
    height = max(1, CHUNK // max(columns, 1))
    for start in range(0, rows, height):
        part = slice(start, start + height)
        # The zeros that pad the last group do not change its scale.
        grouped = torch.nn.functional.pad(weights[part].float(), (0, groups * width - columns))
        grouped = grouped.unflatten(1, (groups, width))
        scales[part] = scales_of(grouped, 2, scheme.bits, weights.dtype)
        values[part] = grid_values(grouped, scales[part][..., None], scheme.bits).flatten(1)[:, :columns]
    return Codes(values, scales, scheme.group)
