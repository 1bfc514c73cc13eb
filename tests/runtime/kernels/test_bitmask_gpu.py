"""The kernel for GPUs, computed by Triton's interpreter on the CPU: its products, its bytes, what it is chosen for.

Triton is no package of CPUs; `make test-long` installs it.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsebench.runtime.engines.sparse import Sparse

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The module, its kernel interpreted (conftest says so)."""
    return pytest.importorskip("sparsebench.runtime.kernels.bitmask_gpu", exc_type=ImportError)


def drawn(rows: int, cols: int, density: float, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, cols, generator=generator) < density
    return (torch.randn(rows, cols, generator=generator) * kept).to(dtype)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [1, 2, 8, 16, 17])
@pytest.mark.parametrize(("rows", "cols"), [(16, 256), (30, 700), (5, 96)])
def test_products_are_the_dense_ones(kernel: Any, rows: int, cols: int, tokens: int, density: float) -> None:
    weight, x = drawn(rows, cols, density, torch.float32), drawn(tokens, cols, 1, torch.float32, 1)
    layer = kernel.BitmaskLinear(weight, "cpu")
    assert torch.equal(layer.expanded(), weight) and layer.nonzeros == int((weight != 0).sum())
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=1e-5, atol=1e-4)
    layer.bias = torch.nn.Parameter(torch.arange(rows, dtype=torch.float32))
    torch.testing.assert_close(layer(x[None])[0], x @ weight.t() + layer.bias, rtol=1e-5, atol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and not found.is_meta:
            self.bytes = max(self.bytes, found.nbytes)
        return found


def test_no_tensor_is_larger_than_the_dense_matrix(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = drawn(64, 2048, 0.5, torch.bfloat16), drawn(17, 2048, 1, torch.bfloat16, 1)
    with Largest() as packing:
        layer = kernel.BitmaskLinear(weight, "cpu")
    with Largest() as expanding:
        layer(x)
    assert packing.bytes <= weight.nbytes and expanding.bytes <= weight.nbytes
    monkeypatch.setattr(kernel, "PACKED_AT_ONCE", 3 * 2048)
    with Largest() as parts:
        other = kernel.BitmaskLinear(weight, "cpu")
    assert parts.bytes <= layer.values.nbytes, "some rows at a time"
    for name, one in layer.named_buffers():
        assert torch.equal(one, getattr(other, name)), name


def test_sums_of_bfloat16_are_rounded_once(kernel: Any) -> None:
    weight, x = drawn(32, 512, 0.5, torch.bfloat16), drawn(1, 512, 1, torch.bfloat16, 1)
    exact = x.double() @ weight.double().t()
    found = kernel.BitmaskLinear(weight, "cpu")(x)
    assert found.dtype == torch.bfloat16
    # The interpreter cuts off where a GPU rounds: up to a step of bfloat16, not half a one.
    assert bool(((found.double() - exact).abs() <= exact.abs() * 2**-7 + 1e-6).all())


@pytest.mark.parametrize(("density", "pays"), [(0.8, False), (0.5, True), (0.1, True)])
def test_bytes_are_those_of_the_values_one_bit_a_column_and_a_count_a_block(
    kernel: Any, density: float, pays: bool
) -> None:
    layer = kernel.BitmaskLinear(drawn(64, 1024, density, torch.bfloat16), "cpu")
    assert layer.bytes_read == 2 * layer.nonzeros + 64 * 1024 // 8 + 4 * 64 * 1024 // 256
    assert layer.is_smaller == pays


def test_it_can_be_moved_and_has_no_parameters(kernel: Any) -> None:
    with torch.inference_mode():
        layer = torch.nn.Sequential(kernel.BitmaskLinear(drawn(16, 256, 0.5, torch.bfloat16), "cpu")).to("cpu")
    assert layer[0].weight.is_meta and list(layer.named_parameters()) == []


def test_the_engine_takes_it_where_zeros_pay(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = kernel.BitmaskLinear
    monkeypatch.setattr(kernel, "BitmaskLinear", lambda weight, device: layer(weight, "cpu"))
    engine = Sparse()
    many, few = (drawn(64, 512, density, torch.bfloat16) for density in (0.9, 0.4))
    assert engine._gpu_layer(few) is None, "no triton"
    engine.has_triton = True
    assert engine._gpu_layer(many) is None
    assert engine._gpu_layer(few).layout == "bitmask"
    engine.forced = True
    assert engine._gpu_layer(many).instructions == "triton"
