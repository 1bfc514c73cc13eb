"""The layer in the place of nn.Linear and Conv1D, and the fallback."""

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sparsebench.errors import MeasureError
from sparsebench.runtime.kernels import Autotuner, KernelLinear, Kernels, Matrix, TorchCsr
from sparsebench.runtime.kernels.matrix import LEVELS, dense, to_bitmask
from tests.runtime.kernels.conftest import levels
from tests.runtime.kernels.test_products import stored

BATCHES = [(), (1,), (2,), (7,), (33,), (128,), (1, 1), (2, 16), (2, 3, 5), (3, 100)]


def pruned(layer: nn.Module, sparsity: float) -> None:
    weight = layer.weight.data
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < sparsity] = 0


@pytest.mark.parametrize("layout", [dense, to_bitmask])
def test_any_batch_shape_as_the_dense_layer(compiled: Kernels, layout: Callable[[torch.Tensor], Matrix]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(80, 96).bfloat16().requires_grad_(False)
    pruned(plain, 0.7)
    layer, exact = KernelLinear(compiled, layout(plain.weight), Autotuner()), copy.deepcopy(plain).double()
    layer.register_parameter("bias", plain.bias)
    for x in (*(torch.randn(*shape, 80).bfloat16() for shape in BATCHES), torch.randn(80, 3).bfloat16().t()):
        found, reference, wanted = layer(x), plain(x), exact(x.double())
        assert (found.shape, found.dtype) == (reference.shape, reference.dtype)
        mine, theirs = ((one.double() - wanted).norm() / wanted.norm() for one in (found, reference))
        assert mine <= 1.2 * theirs + 1e-6, (x.shape, x.stride())
    assert layer(torch.empty(0, 80, dtype=torch.bfloat16)).shape == (0, 96)


def test_what_it_cannot_multiply_is_named(compiled: Kernels) -> None:
    layer = KernelLinear(compiled, to_bitmask(torch.eye(8)), Autotuner())
    with pytest.raises(MeasureError, match="float16"):
        layer(torch.zeros(1, 8, dtype=torch.float16))
    with pytest.raises(MeasureError, match="8 inputs"):
        layer(torch.zeros(2, 4))


def test_a_layer_tells_dtype_and_shape_but_holds_no_dense_weight(compiled: Kernels) -> None:
    layer = KernelLinear(compiled, to_bitmask(torch.eye(64)), Autotuner())
    assert (layer.weight.dtype, tuple(layer.weight.shape), layer.weight.is_meta) == (torch.float32, (64, 64), True)
    assert {name for name, _ in layer.named_buffers()} == {"values", "masks", "starts"} and not list(layer.parameters())


@pytest.mark.parametrize(
    ("kind", "given", "best"),
    [
        ("bfloat16", torch.bfloat16, "avx512-bf16"),
        ("bfloat16", torch.float32, "avx512-vnni"),
        ("float32", torch.float32, "avx512-vnni"),
        ("int8", torch.bfloat16, "avx512-vnni"),
        ("int4", torch.float32, "avx512-vnni"),
    ],
)
def test_a_layer_tells_the_instructions_of_its_kernel(
    compiled: Kernels, kind: str, given: torch.dtype, best: str
) -> None:
    for matrix in stored(kind, torch.eye(64))[0].values():
        layer = KernelLinear(compiled, matrix, Autotuner(), given)
        for level in levels(compiled):
            assert layer.instructions == min(level, best, key=LEVELS.index)


def test_a_layer_follows_each_of_its_buffers(compiled: Kernels) -> None:
    """After two moves the values may be where they were, and the masks not: the kernel then read freed memory."""
    torch.manual_seed(0)
    weight = torch.where(torch.rand(32, 256) < 0.5, torch.randn(32, 256), 0).bfloat16()
    layer = KernelLinear(compiled, to_bitmask(weight), Autotuner())
    assert layer.layout == "bitmask" and layer.pointer.contents.masks == layer.masks.data_ptr()
    layer.masks.data = layer.masks.clone()
    assert layer.pointer.contents.masks == layer.masks.data_ptr()


def test_the_faster_way_is_timed_once_and_kept() -> None:
    tried: list[str] = []

    def way(name: str, seconds: float) -> torch.Tensor:
        tried.append(name)
        end = time.process_time() + seconds
        while time.process_time() < end:  # sleeping takes no CPU time
            pass
        return torch.tensor(len(tried))

    tuner = Autotuner()
    ways = {"slow": lambda: way("slow", 0.02), "fast": lambda: way("fast", 0.0)}
    assert tuner.fastest_for(("layer",), ways, lambda: tried.append("prepared")) == "fast"
    assert tried[::2] == ["prepared"] * (len(tried) // 2) and "prepared" not in tried[1::2]
    tried.clear()
    assert tuner.fastest_for(("layer",), ways, lambda: None) == "fast" and not tried
    tuner.fastest_for(("another",), ways, lambda: None)
    assert set(tried) == {"slow", "fast"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_torchs_csr_gives_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(80, 96).to(dtype).requires_grad_(False)
    pruned(dense, 0.9)
    layer = TorchCsr(dense.weight, dense.bias)
    for shape in BATCHES:
        x = torch.randn(*shape, 80).to(dtype)
        assert layer(x).dtype == dtype
        close = 2**-6 if dtype != torch.float32 else 1e-5
        assert torch.allclose(layer(x).float(), dense(x).float(), rtol=2**-7, atol=close)
    assert all(buffer.untyped_storage().nbytes() == buffer.nbytes for buffer in layer.buffers())
