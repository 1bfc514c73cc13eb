"""The layer in the place of nn.Linear and Conv1D; the choice of layout; the fallback."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from sparsebench.errors import MeasureError, ModelError
from sparsebench.runtime.kernels import (
    Choices,
    Kernels,
    Nonzeros,
    SparseLinear,
    TorchCsr,
    choice,
    csr_below,
    from_dense,
    layout_for,
)  # fmt: skip
from sparsebench.runtime.kernels.native import LAYOUTS

BATCHES = [(), (1,), (2,), (7,), (33,), (128,), (1, 1), (2, 16), (2, 3, 5), (3, 100)]


def pruned(layer: nn.Module, sparsity: float) -> None:
    weight = layer.weight.data
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < sparsity] = 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
def test_any_batch_shape_as_the_dense_layer(compiled: Kernels, kind: str, layout: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dense: nn.Module = Conv1D(96, 80) if kind == "conv1d" else nn.Linear(80, 96, bias=kind == "linear")
    dense = dense.to(dtype).requires_grad_(False)
    pruned(dense, 0.7)
    weight = dense.weight.t() if kind == "conv1d" else dense.weight
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, layout), dense.bias, Choices())
    exact = nn.Linear(80, 96, bias=dense.bias is not None).double().requires_grad_(False)
    exact.weight.copy_(weight.double())
    if dense.bias is not None:
        exact.bias.copy_(dense.bias.double())
    for shape in BATCHES:
        x = torch.randn(*shape, 80).to(dtype)
        found, reference = layer(x), dense(x)
        assert (found.shape, found.dtype) == (reference.shape, reference.dtype)
        wanted = exact(x.double())
        mine, theirs = ((one.double() - wanted).norm() / wanted.norm() for one in (found, reference))
        assert mine <= 1.2 * theirs + 1e-6, shape
    assert layer(torch.empty(0, 80, dtype=dtype)).shape == (0, 96)


def test_a_view_that_is_not_contiguous(compiled: Kernels) -> None:
    weight = torch.randn(32, 64)
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, "bitmask"), None, Choices())
    x = torch.randn(64, 3).t()
    assert torch.allclose(layer(x), x @ weight.T, atol=1e-5)


def test_what_it_cannot_multiply_is_named(compiled: Kernels) -> None:
    layer = SparseLinear(compiled, from_dense(compiled, torch.eye(8)).laid_out(compiled, "bitmask"), None, Choices())
    with pytest.raises(MeasureError, match="float16"):
        layer(torch.zeros(1, 8, dtype=torch.float16))
    with pytest.raises(MeasureError, match="8 inputs"):
        layer(torch.zeros(2, 4))
    with pytest.raises(ModelError, match="float16"):
        from_dense(compiled, torch.eye(8, dtype=torch.float16))


def test_a_layer_tells_dtype_and_shape_but_holds_no_dense_weight(compiled: Kernels) -> None:
    layer = SparseLinear(compiled, from_dense(compiled, torch.eye(64)).laid_out(compiled, "csr16"), None, Choices())
    assert (layer.weight.dtype, tuple(layer.weight.shape), layer.weight.is_meta) == (torch.float32, (64, 64), True)
    assert [name for name, _ in layer.named_buffers()] == ["data"] and not list(layer.parameters())


def nonzeros(rows: int, cols: int, total: int) -> Nonzeros:
    nothing = torch.empty(0)
    return Nonzeros("dense", nothing, nothing, rows, cols, nothing, total)


@pytest.mark.parametrize(
    ("cols", "share", "layout"),
    [
        (1000, 0.95, "dense"),
        (1000, 0.5, "bitmask"),
        (1000, 0.2, "bitmask"),
        (1000, 0.1, "csr16"),
        (70000, 0.1, "bitmask"),
    ],
)
def test_the_layout_follows_density_and_width(cols: int, share: float, layout: str) -> None:
    assert layout_for(nonzeros(10, cols, int(10 * cols * share)), 0.17) == layout


def test_where_the_layouts_change_places_is_measured_once(compiled: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[object] = []
    choice._meeting.cache_clear()
    monkeypatch.setattr(choice, "_seconds", lambda act: timed.append(act()) or (3.0 if len(timed) == 1 else 6.0))
    assert [csr_below(compiled) for _ in range(3)] == [0.05] * 3
    assert len(timed) == 2
    choice._meeting.cache_clear()
    monkeypatch.undo()
    assert csr_below(compiled) in choice.STEPS


def test_a_matrix_wider_than_16_bits_multiplies(compiled: Kernels) -> None:
    weight = torch.zeros(3, 70001)
    weight[0, 70000], weight[1, 65536], weight[2, 0] = 1, 2, 3
    found = from_dense(compiled, weight)
    layer = SparseLinear(compiled, found.laid_out(compiled, layout_for(found, 0.17)), None, Choices())
    x = torch.arange(70001, dtype=torch.float32)[None]
    assert layer(x).tolist() == [[70000.0, 131072.0, 0.0]]


def test_the_faster_way_is_timed_once_and_kept() -> None:
    import time

    tried: list[str] = []

    def way(name: str, seconds: float) -> torch.Tensor:
        tried.append(name)
        time.sleep(seconds)
        return torch.tensor(len(tried))

    choices = Choices()
    ways = {"slow": lambda: way("slow", 0.02), "fast": lambda: way("fast", 0.0)}
    assert choices.pick(("layer",), ways) == "fast"
    tried.clear()
    assert choices.pick(("layer",), ways) == "fast" and not tried
    choices.pick(("another",), ways)
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
        assert torch.allclose(
            layer(x).float(), dense(x).float(), rtol=2**-7, atol=2**-6 if dtype != torch.float32 else 1e-5
        )
    assert all(buffer.untyped_storage().nbytes() == buffer.nbytes for buffer in layer.buffers())
