"""Encode, multiply and expand against the slow obvious way in float64, at every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsebench.runtime.kernels import Choices, Kernels, SparseLinear, from_dense
from sparsebench.runtime.kernels.matrix import LAYOUTS
from tests.runtime.kernels.conftest import levels

MORE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BF16, F32 = torch.bfloat16, torch.float32
ROUNDING = {BF16: 2.0**-8, F32: 1e-5}
"""Of one rounding to bfloat16, and of sums in float32, as a share of Σ |w x|."""


def matrix(rows: int, cols: int, density: float, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Normal weights at random places, one row in five empty, one full, and some -0.0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    keep = torch.rand(rows, cols, generator=generator) < density
    kinds = torch.randint(0, 5, (rows,), generator=generator)
    keep[kinds == 0] = False
    keep[kinds == 1] |= torch.rand(rows, 1, generator=generator)[kinds == 1] < 0.2
    weight = torch.where(keep, weight, torch.zeros(()))
    return torch.where(torch.rand(rows, cols, generator=generator) < 0.02, -0.0, weight).to(dtype)


def check(layer: SparseLinear, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> None:
    """Every element within one rounding of the exact result."""
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, scale = exact + bias.double(), scale + bias.double().abs()
    for way in (layer.by_kernel, layer.by_tiles):
        found = way(x)
        assert found.dtype == x.dtype and found.shape == exact.shape
        assert bool(((found.double() - exact).abs() <= ROUNDING[x.dtype] * scale + 1e-30).all()), way.__name__


@given(
    rows=st.integers(1, 70),
    cols=st.one_of(st.integers(1, 200), st.sampled_from([128, 256, 511, 512, 513])),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    held=st.sampled_from([BF16, F32]),
    given_=st.sampled_from([BF16, F32]),
    tokens=st.sampled_from([1, 2, 3, 7, 8, 11, 16]),  # 11 is 8 and 2 and 1
    biased=st.booleans(),
    seed=st.integers(0, 10**6),
)
@MORE
def test_products_equal_the_dense_ones_within_rounding(
    compiled: Kernels, rows: int, cols: int, density: float, held: torch.dtype, given_: torch.dtype, tokens: int,
    biased: bool, seed: int,
) -> None:  # fmt: skip
    weight = matrix(rows, cols, density, held, seed)
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed)).to(given_)
    bias = torch.nn.Parameter(torch.randn(rows).to(given_), requires_grad=False) if biased else None
    found = from_dense(compiled, weight)
    assert found.total == int((weight != 0).sum())
    for layout in LAYOUTS:
        layer = SparseLinear(compiled, found.laid_out(compiled, layout), bias, Choices())
        for level in levels(compiled):
            compiled.use(level)
            check(layer, weight, bias, x)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("held", [BF16, F32])
def test_expanding_gives_back_every_bit(compiled: Kernels, layout: str, held: torch.dtype) -> None:
    weight = matrix(1100, 130, 0.3, held, 1)
    weight[7] = torch.randn(130).to(held)  # fuller than its neighbours, so that rows are reordered
    weight[weight == 0] = 0  # -0.0 is a zero here
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, layout), None, Choices())
    for level in levels(compiled):
        compiled.use(level)
        for first, last in ((0, 1100), (512, 1024), (1024, 1100)):
            out = torch.full((last - first, 130), torch.nan, dtype=held)
            assert torch.equal(layer.expanded(first, last, out), weight[first:last]), level


@pytest.mark.parametrize("layout", LAYOUTS)
def test_more_threads_give_the_same_bits(compiled: Kernels, layout: str) -> None:
    weight = matrix(1500, 300, 0.3, BF16, 2)
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, layout), None, Choices())
    x = torch.randn(3, 300).to(BF16)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((layer.by_kernel(x), layer.by_tiles(x)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, results[0][0]) for one, _ in results)
    assert all(torch.allclose(one.float(), results[0][1].float(), rtol=1e-2, atol=1e-2) for _, one in results)


def test_threads_of_its_own_where_no_openmp_is_found(compiled: Kernels) -> None:
    weight = matrix(1500, 300, 0.3, BF16, 3)
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, "csr16"), None, Choices())
    x = torch.randn(2, 300).to(BF16)
    expected, before = layer.by_kernel(x), torch.get_num_threads()
    found = compiled.library
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    import ctypes

    process = ctypes.CDLL(None)
    addresses = [ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in names if hasattr(process, name)]
    found.sparse_threads(None, None, None)
    torch.set_num_threads(2)
    assert torch.equal(layer.by_kernel(x), expected)
    torch.set_num_threads(before)
    found.sparse_threads(*addresses or (None, None, None))


@pytest.mark.parametrize("layout", ["csr16", "runs"])
@pytest.mark.parametrize(("held", "given_"), [(BF16, BF16), (BF16, F32), (F32, F32)])
def test_nothing_is_read_beyond_infinite_neighbours(
    compiled: Kernels, layout: str, held: torch.dtype, given_: torch.dtype
) -> None:
    """Absent weights meet no activation: lanes without a value read a zero, not x[0] nor the first of a run."""
    weight = torch.zeros(20, 40, dtype=held)
    weight[:3, 5], weight[4, 35] = 2, 3
    x = torch.ones(1, 40, dtype=given_)
    x[0, 0] = x[0, 32] = torch.inf
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, layout), None, Choices())
    for level in levels(compiled):
        compiled.use(level)
        assert layer.by_kernel(x)[0].tolist() == [2.0, 2.0, 2.0, 0.0, 3.0] + [0.0] * 15


IDEAL = {"bitmask": (0.125, 2), "csr16": (0, 4), "runs": (0, 3.2)}
"""Bytes per weight of 16 bits: for every one, and for one that is not zero. Of runs it is what half-filled steps take."""


@pytest.mark.parametrize(
    ("density", "layout"),
    [
        (0.5, "bitmask"),
        (0.25, "bitmask"),
        (0.1, "csr16"),
        (0.01, "csr16"),
        (0.25, "runs"),
        (0.1, "runs"),
    ],
)
def test_resident_bytes_are_near_what_the_layout_needs(compiled: Kernels, density: float, layout: str) -> None:
    weight = (torch.randn(2048, 2048) * (torch.rand(2048, 2048) < density)).to(BF16)
    found = from_dense(compiled, weight)
    bytes_each = found.laid_out(compiled, layout).data.numel() / weight.numel()
    every, nonzero = IDEAL[layout]
    assert bytes_each <= 1.1 * (every + nonzero * found.density)
