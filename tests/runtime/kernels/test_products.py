"""Store, multiply and expand against the slow obvious way in float64, at every instruction set."""

import ctypes

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sparsebench.models.files.quantized import INT4_GROUPS, Codes, Scheme, stored_parts
from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels, Matrix
from sparsebench.runtime.kernels.linear import BLOCKS, NONZEROS, ONE_BY_ONE, TILES
from sparsebench.runtime.kernels.matrix import (
    bitmask_is_smaller,
    count_nonzeros,
    dense,
    integers,
    integers_to_bitmask,
    is_worth_bitmask,
    round_to_bytes,
    to_bitmask,
)
from tests.runtime.kernels.conftest import levels

MORE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
BF16, F32 = torch.bfloat16, torch.float32
ROUNDING = {BF16: 2.0**-8, F32: 1e-5}
"""Of one rounding to bfloat16, and of sums in float32, as a share of Σ |w x|."""
KINDS = ("bfloat16", "float32", "int8", "int4", *(f"int4 in {group}" for group in INT4_GROUPS))


def weights(rows: int, cols: int, density: float, seed: int) -> torch.Tensor:
    """Normal weights at random places, one row in five empty, one full, and some -0.0."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    keep = torch.rand(rows, cols, generator=generator) < density
    kinds = torch.randint(0, 5, (rows,), generator=generator)
    keep[kinds == 0] = False
    keep[kinds == 1] |= torch.rand(rows, 1, generator=generator)[kinds == 1] < 0.2
    weight = torch.where(keep, weight, torch.zeros(()))
    return torch.where(torch.rand(rows, cols, generator=generator) < 0.02, -0.0, weight)


def codes(weight: torch.Tensor, bits: int, group: int | None, dtype: torch.dtype = BF16) -> Codes:
    """The nearest points of a symmetric grid; a zero stays one."""
    rows, cols = weight.shape
    grouped = torch.nn.functional.pad(weight, (0, -cols % (group or cols))).view(rows, -1, group or cols)
    scale = (grouped.abs().amax(-1) / ((2**bits - 1) / 2)).clamp(min=1e-8).to(dtype)
    values = (grouped / scale[..., None].float()).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Codes(values.view(rows, -1)[:, :cols].to(torch.int8), scale, group)


def stored(kind: str, weight: torch.Tensor) -> tuple[dict[str, Matrix], torch.Tensor]:
    """Both layouts of a matrix, and the weights that they stand for."""
    if not kind.startswith("int"):
        held = weight.to(getattr(torch, kind))
        return {"dense": dense(held), "bitmask": to_bitmask(held)}, held.float()
    bits, group = int(kind[3]), int(kind.split()[-1]) if " " in kind else None
    made = codes(weight, bits, group)
    words = dict(stored_parts(made, "w", Scheme(bits, group)))["w_packed"]
    # What lies behind the scales in memory must not be read: 0 times NaN is NaN.
    behind = torch.full((made.scale.numel() + 64,), torch.nan, dtype=made.scale.dtype)
    scale = behind[: made.scale.numel()].view(made.scale.shape).copy_(made.scale)
    whole = integers(words, f"int{bits}", weight.shape[1], scale, group)
    assert count_nonzeros(whole) == int(made.values.count_nonzero())
    return {"dense": whole, "bitmask": integers_to_bitmask(whole)}, made.expanded(F32)


def check(found: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor, more: float) -> None:
    """Every element within one rounding of the exact result, and ``more``, a share of Σ |w x|."""
    exact = x.double() @ weight.double().T
    scale = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        exact, scale = exact + bias.double(), scale + bias.double().abs()
    assert found.shape == exact.shape
    assert bool(((found.double() - exact).abs() <= (ROUNDING[found.dtype] + more) * scale + 1e-30).all())


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    cols=st.one_of(st.integers(1, 200), st.sampled_from([128, 256, 511, 512, 513])),
    density=st.sampled_from([0.0, 0.01, 0.1, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([BF16, F32]),
    # 11 is 4, 4, 2 and 1; in tiles 6 and 5, by AMX in blocks of 16.
    tokens=st.sampled_from([1, 2, 3, 7, 8, 11, 17, 40, 70]),
    biased=st.booleans(),
    seed=st.integers(0, 10**6),
)
# Inputs that are ties; more groups than a vector, and than a block, of int4's scales; several tiles of blocks.
@example(kind="int8", rows=6, cols=128, density=0.01, dtype=BF16, tokens=40, biased=False, seed=7)
@example(kind="int4 in 64", rows=5, cols=1100, density=0.5, dtype=BF16, tokens=3, biased=True, seed=1)
@example(kind="int4 in 64", rows=3, cols=4160, density=0.9, dtype=BF16, tokens=1, biased=False, seed=2)
@example(kind="int4 in 64", rows=3, cols=4097, density=1.0, dtype=F32, tokens=2, biased=False, seed=3)
@example(kind="bfloat16", rows=3, cols=70_001, density=0.01, dtype=BF16, tokens=11, biased=False, seed=5)
@example(kind="float32", rows=300, cols=1100, density=0.5, dtype=F32, tokens=20, biased=False, seed=4)
@MORE
def test_products_equal_the_dense_ones_within_rounding(
    compiled: Kernels,
    kind: str,
    rows: int,
    cols: int,
    density: float,
    dtype: torch.dtype,
    tokens: int,
    biased: bool,
    seed: int,
) -> None:
    matrices, weight = stored(kind, weights(rows, cols, density, seed))
    x = torch.randn(tokens, cols, generator=torch.Generator().manual_seed(seed)).to(dtype)
    bias = torch.nn.Parameter(torch.randn(rows).to(dtype), requires_grad=False) if biased else None
    # Kernels of integers see inputs in 8 bits; tiles see them as they are, and weights rounded to x's dtype.
    seen = round_to_bytes(x.float()) if kind.startswith("int") else x
    for matrix in matrices.values():
        layer = KernelLinear(compiled, matrix, Autotuner(), dtype)
        layer.register_parameter("bias", bias)
        for _ in levels(compiled):
            check(layer.by_kernel(x), weight, bias, seen, 0)
            assert layer.by_kernel(x).dtype == layer.by_fastest(x).dtype == dtype
            check(layer.by_torch(x), weight, bias, x, ROUNDING[dtype])
            check(layer.by_kernel(x, BLOCKS), weight, bias, x, 0)
            if layer.tiled:
                check(layer.by_kernel(x, TILES), weight, bias, x, ROUNDING[dtype])
            if matrix.layout == "bitmask":
                check(layer.by_kernel(x, NONZEROS), weight, bias, x, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_expanding_gives_back_every_weight(compiled: Kernels, kind: str) -> None:
    matrices, weight = stored(kind, weights(150, 130, 0.3, 1))
    for matrix in matrices.values():
        layer = KernelLinear(compiled, matrix, Autotuner())
        for level in levels(compiled):
            for first, last in ((0, 150), (17, 101)):
                for dtype in (BF16, F32):
                    out = torch.full((last - first, 130), torch.nan, dtype=dtype)
                    assert torch.equal(layer.expanded(first, last, out), weight[first:last].to(dtype)), level


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8", "int4 in 64"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("whole_rows", [False, True])
def test_a_sample_of_rows_decides_as_all_do(kind: str, share: float, whole_rows: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(600, 128, generator=generator)
    weight[torch.rand(600, 1 if whole_rows else 128, generator=generator).expand(600, 128) < share] = 0
    matrix = stored(kind, weight)[0]["dense"]
    assert is_worth_bitmask(matrix) == bitmask_is_smaller(matrix.value_type, 600, 128, count_nonzeros(matrix))


@pytest.mark.parametrize("kind", ["bfloat16", "float32", "int8", "int4 in 64"])
@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_matrix_without_zeros_or_with_many_is_not_counted_in_whole(
    kind: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, counted = torch.Generator().manual_seed(1), []
    weight = torch.randn(600, 128, generator=generator)
    weight[torch.rand(600, 128, generator=generator) < share] = 0
    matrix = stored(kind, weight)[0]["dense"]

    def count(matrix: Matrix, rows: torch.Tensor | None = None) -> int:
        counted.append(rows)
        return count_nonzeros(matrix, rows)

    monkeypatch.setattr("sparsebench.runtime.kernels.matrix.count_nonzeros", count)
    assert is_worth_bitmask(matrix) == bool(share) and counted and all(rows is not None for rows in counted)


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4 in 64"])
def test_more_threads_give_the_same_bits(compiled: Kernels, kind: str) -> None:
    matrices, _ = stored(kind, weights(1500, 300, 0.3, 2))
    x = torch.randn(3, 300).to(BF16)
    for matrix in matrices.values():
        layer, results = KernelLinear(compiled, matrix, Autotuner()), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append([layer.by_kernel(x, way) for way in (ONE_BY_ONE, TILES, NONZEROS, BLOCKS)])
        assert all(torch.equal(one, two) for pair in results for one, two in zip(pair, results[0], strict=True))


def test_threads_of_its_own_where_no_openmp_is_found(compiled: Kernels) -> None:
    layer = KernelLinear(compiled, to_bitmask(weights(1500, 300, 0.3, 3).to(BF16)), Autotuner())
    x = torch.randn(2, 300).to(BF16)
    expected = layer.by_kernel(x)
    found, process = compiled.library, ctypes.CDLL(None)
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    addresses = [ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in names if hasattr(process, name)]
    found.sparse_threads(None, None, None)
    torch.set_num_threads(2)
    assert torch.equal(layer.by_kernel(x), expected)
    found.sparse_threads(*addresses or (None, None, None))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [torch.inf, torch.nan])
def test_an_input_that_is_no_number_is_not_lost(compiled: Kernels, kind: str, broken: float) -> None:
    """Decoding must not go on with made-up numbers."""
    for matrix in stored(kind, torch.ones(3, 130))[0].values():
        layer = KernelLinear(compiled, matrix, Autotuner(), BF16)
        x = torch.ones(1, 130, dtype=BF16)
        x[0, 70] = broken
        for _ in levels(compiled):
            for way in (ONE_BY_ONE, TILES, BLOCKS):
                assert not bool(layer.by_kernel(x, way).isfinite().any())


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "int4 in 64"])
@pytest.mark.parametrize("density", [0.5, 0.1])
def test_resident_bytes_are_what_the_layout_needs(compiled: Kernels, density: float, kind: str) -> None:
    matrices, weight = stored(kind, torch.randn(512, 2048) * (torch.rand(512, 2048) < density))  # -0.0 is a zero
    bits = {"b": 16, "8": 8, "4": 4}[kind[0] if kind[0] == "b" else kind[3]]
    scales = 16 / 64 if "64" in kind else 0
    assert matrices["bitmask"].nbytes <= 1.02 * weight.numel() / 8 * (1 + bits * density + scales)
    assert matrices["dense"].nbytes <= 1.02 * weight.numel() / 8 * (bits + scales)
