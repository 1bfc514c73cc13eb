"""Counts and moments against slow, obvious arithmetic."""

from collections.abc import Sequence
from fractions import Fraction
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsebench.errors import ModelError
from sparsebench.structure import numbers as module
from sparsebench.structure.numbers import EDGES, TensorStatistics, tensor_statistics

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
ABSOLUTE, RELATIVE = (1e-4, 1e-3, 0.1, 0.25), (0.01, 0.1, 0.5, 1.0)


def _bits(tensor: torch.Tensor) -> np.ndarray:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()


def _slow(tensor: torch.Tensor, absolute: Sequence[float], relative: Sequence[float], rms: float) -> TensorStatistics:
    """Every weight as an exact fraction, one after another."""
    weights = [Fraction(value) for value in tensor.double().reshape(-1).tolist()]
    n = len(weights)
    mean = sum(weights, Fraction(0)) / n
    second = sum(((weight - mean) ** 2 for weight in weights), Fraction(0)) / n
    fourth = sum(((weight - mean) ** 4 for weight in weights), Fraction(0)) / n

    def below(threshold: float) -> int:
        return sum(weight == 0 or abs(weight) < Fraction(threshold) for weight in weights)

    edges = [float(rms * np.exp2(edge)) for edge in EDGES]
    inside = [0] * (len(edges) + 1)
    for weight in weights:
        if weight:
            inside[sum(abs(weight) >= Fraction(edge) for edge in edges)] += 1
    return TensorStatistics(
        count=n,
        zeros=sum(weight == 0 for weight in weights),
        below_absolute=tuple(below(threshold) for threshold in absolute),
        below_relative=tuple(below(threshold * rms) for threshold in relative),
        mean=float(mean),
        std=float(second) ** 0.5,
        rms=float(sum((weight**2 for weight in weights), Fraction(0)) / n) ** 0.5,
        kurtosis=float(fourth / second**2 - 3) if second else None,
        min=float(min(weights)),
        max=float(max(weights)),
        histogram=tuple(inside),
    )


def _check(tensor: torch.Tensor, dtype: str) -> None:
    found = tensor_statistics(_bits(tensor), dtype, ABSOLUTE, RELATIVE)
    expected = _slow(tensor, ABSOLUTE, RELATIVE, found.rms)
    for name in ("count", "zeros", "below_absolute", "below_relative", "min", "max", "histogram"):
        assert getattr(found, name) == getattr(expected, name), name
    scale = max(abs(found.min), abs(found.max))
    assert found.mean == pytest.approx(expected.mean, rel=1e-12, abs=1e-13 * scale)
    assert found.rms == pytest.approx(expected.rms, rel=1e-12)
    assert found.std == pytest.approx(expected.std, rel=1e-9, abs=1e-13 * scale)
    if expected.kurtosis is None:
        assert found.kurtosis is None
    else:
        assert found.kurtosis == pytest.approx(expected.kurtosis, rel=1e-6, abs=1e-6)
    assert found.zeros + sum(found.histogram) == found.count


# The thresholds themselves, their neighbours, both zeros, and small and large magnitudes.
WEIGHTS = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-4, 1e-3, 0.1, -0.1, 0.25, 0.125, 1e-7, 3.0, 60000.0]),
    st.floats(-1, 1, width=32).filter(lambda weight: weight == 0 or abs(weight) > 1e-12),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(WEIGHTS, min_size=1, max_size=40), st.sampled_from(sorted(TORCH)))
@example([0.1, 0.1, 0.1], "F64")  # equal, though their mean is rounded
def test_any_weights(weights: list[float], dtype: str) -> None:
    tensor = torch.tensor(weights, dtype=torch.float64).to(TORCH[dtype])
    with mock.patch.object(module, "BLOCK", 7):
        _check(tensor, dtype)


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_many_weights(dtype: str) -> None:
    torch.manual_seed(1)
    normal, uniform = torch.randn(400) * 0.02, torch.rand(400)
    normal[::3] = 0
    for tensor in (normal, normal + 1, uniform, torch.full((299,), 0.3), torch.tensor([0.0, -0.0] * 50)):
        with mock.patch.object(module, "BLOCK", 128):
            _check(tensor.to(TORCH[dtype]), dtype)


def test_a_variance_too_large_to_square_gives_no_kurtosis() -> None:
    found = tensor_statistics(_bits(torch.tensor([1e80, -1e80], dtype=torch.float64)), "F64", ABSOLUTE, RELATIVE)
    assert found.kurtosis is None and found.std == pytest.approx(1e80)


@pytest.mark.parametrize("dtype", sorted(TORCH))
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("count", [1000, 300_000])
def test_not_finite(dtype: str, bad: float, count: int) -> None:
    tensor = torch.zeros(count)
    tensor[[count // 2, count - 1]] = bad  # of many blocks, not in the first
    with pytest.raises(ModelError, match="2 weights are NaN or infinite"):
        tensor_statistics(_bits(tensor.to(TORCH[dtype])), dtype, ABSOLUTE, RELATIVE)


def test_every_bfloat16_pattern() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    patterns = patterns[(patterns & 0x7F80) != 0x7F80]
    found = tensor_statistics(patterns.view(np.uint8), "BF16", [1.0], [1.0])
    assert (found.count, found.zeros) == (65536 - 256, 2)
    assert found.below_absolute == (2 * 0x3F80,)  # positive patterns below that of 1.0, twice
    assert found.max == -found.min == float(torch.finfo(torch.bfloat16).max)
