"""Grids against the definition written element by element; zeros stay zero."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsebench.models.files.quantized import Codes, Scheme
from sparsebench.steps.grid import nearest

SCHEMES = [Scheme(8, None), Scheme(4, 5), Scheme(4, 64)]


def slowly(weights: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Each weight by itself, in Python's floats; the step as stored."""
    bits = scheme.bits
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    found = weights.double().clone()
    for row in range(weights.shape[0]):
        for start in range(0, weights.shape[1], scheme.group or weights.shape[1]):
            at = slice(start, start + (scheme.group or weights.shape[1]))
            group = weights[row, at].double().tolist()
            step = max(abs(weight) for weight in group) / ((high - low) / 2)
            step = float(torch.tensor(step, dtype=torch.float32).to(weights.dtype)) or 1.0
            values = [min(max(round(weight / step), low), high) for weight in group]
            found[row, at] = torch.tensor([value * step for value in values], dtype=torch.float64)
    return found


def steps_of(codes: Codes) -> torch.Tensor:
    """The step of each weight."""
    width = codes.values.shape[1]
    return codes.scale.repeat_interleave(codes.group or width, 1)[:, :width]


def test_small_rows_of_float16_have_all_their_levels() -> None:
    weights = torch.linspace(-2e-3, 2e-3, 255).half().reshape(1, -1)
    codes = nearest(weights, Scheme(8, None))
    assert len(codes.values.unique()) > 240
    assert float((codes.expanded(torch.float32) - weights.float()).abs().max()) < 1e-5


def test_a_weight_in_another_precision_is_rounded_once() -> None:
    codes = nearest(torch.randn(64, 64), Scheme(8, None))
    assert torch.equal(codes.expanded(torch.bfloat16), codes.expanded(torch.float32).bfloat16())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7, 64), (5, 130), (1, 3), (16, 1)])
def test_nearest_is_the_definition(scheme: Scheme, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights[:, ::3] = 0
    codes = nearest(weights, scheme)
    expected = slowly(weights, scheme)
    found = codes.expanded(torch.float64)
    steps = steps_of(codes).double()
    assert bool(((found - expected).abs() <= steps * 1.001).all())
    # A weight halfway between two places may go to either, as float32 and Python's floats divide differently.
    halfway = ((weights.double() / steps).frac().abs() - 0.5).abs() < 1e-4
    assert bool((((found - expected).abs() <= 1e-6) | halfway).all())
    assert int((codes.values == 0).sum()) == int((found == 0).sum())
    assert not bool(found[weights == 0].any())


@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(1, 90),
    st.sampled_from(SCHEMES),
    st.floats(0, 1),
    st.floats(-30, 4),
)
@settings(max_examples=60, deadline=None)
def test_zeros_stay_errors_half_a_step(
    seed: int, rows: int, columns: int, scheme: Scheme, sparsity: float, size: float
) -> None:
    drawn = torch.Generator().manual_seed(seed)
    weights = torch.randn(rows, columns, generator=drawn) * math.exp(size) + torch.rand((), generator=drawn)
    weights[torch.rand(rows, columns, generator=drawn) < sparsity] = 0
    weights = weights.bfloat16()
    codes = nearest(weights, scheme)
    found = codes.expanded(torch.float32)
    assert not bool(found[weights == 0].any())
    # The step is rounded to bfloat16, and so may the ends of the grid lie a little inside of the weights.
    steps = steps_of(codes).float()
    span = 15 if scheme.bits == 4 else 255
    assert bool(((found - weights.float()).abs() <= steps * (0.5 + span / 2**8)).all())


def test_a_searched_scale_never_rounds_worse_and_keeps_zeros() -> None:
    torch.manual_seed(0)
    weights = torch.randn(32, 200).mul_(torch.rand(32, 200) > 0.3).bfloat16()
    weights[3] = 0
    scheme = Scheme(4, 64)
    plain, searched = (nearest(weights, scheme, search) for search in (False, True))

    def errors(codes: Codes) -> torch.Tensor:
        away = (codes.expanded(torch.float32) - weights.float()).square()
        return torch.nn.functional.pad(away, (0, 56)).unflatten(1, (4, 64)).sum(2)

    assert bool((errors(searched) <= errors(plain)).all())
    assert float(errors(searched).sum()) < 0.9 * float(errors(plain).sum())
    assert bool((searched.expanded(torch.float32)[weights == 0] == 0).all())
    assert bool((searched.scale < 0).any()), "the grid reaches further on one side"
