"""Layers that read part of a matrix for a few tokens, at every instruction set, against the masked product in float64."""

import pytest
import torch
from torch import nn

from sparsebench import processor
from sparsebench.models.modules.skipping import masked
from sparsebench.runtime.kernels import Kernels
from sparsebench.runtime.kernels.matrix import LEVELS
from sparsebench.runtime.kernels.skipping import MOST_TOKENS, SkipColumns, SkipRows, ThresholdedActivation
from tests.runtime.kernels.conftest import levels

SHAPES = [(1, 1), (7, 3), (96, 80), (130, 257), (1000, 300)]
DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
BIAS = pytest.mark.parametrize("bias", [True, False])
ZEROS = pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9])


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - wanted).norm() <= (5e-3 if dtype == torch.bfloat16 else 1e-6) * wanted.norm() + 1e-9)


def linear(ins: int, outs: int, bias: bool, zeros: float, dtype: torch.dtype) -> nn.Linear:
    made = nn.Linear(ins, outs, bias).to(dtype).requires_grad_(False)
    made.weight *= torch.rand(outs, ins) >= zeros
    return made


def columns(kernels: Kernels, dense: nn.Linear, limit: float) -> SkipColumns:
    """Laid out as at the best instruction set, whose layouts every other one can multiply."""
    level = kernels.level
    kernels.use(LEVELS[-1])
    made = SkipColumns(kernels, dense.weight.T.contiguous(), dense.bias, limit)
    kernels.use(level)
    return made


def exact(dense: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    bias = None if dense.bias is None else dense.bias.double()
    return nn.functional.linear(x.double(), dense.weight.double(), bias)


@DTYPES
@BIAS
@ZEROS
def test_columns_are_read_where_inputs_are_large(
    compiled: Kernels, dtype: torch.dtype, bias: bool, zeros: float
) -> None:
    torch.manual_seed(0)
    for level in levels(compiled):
        for ins, outs in SHAPES:
            dense = linear(ins, outs, bias, zeros, dtype)
            layer = columns(compiled, dense, 0.5)
            assert layer.bitmask_shape is None or zeros
            for batch in ((1, 1), (1,), (3,), (2, 4), (2, MOST_TOKENS)):
                x = torch.randn(*batch, ins).to(dtype)
                assert close(layer(x), exact(dense, masked(x, 0.5)), dtype), (level, ins, outs, batch)
            assert torch.equal(layer.dense_matrix(), dense.weight.T)
    assert layer.weight.shape == (outs, ins)


@DTYPES
@ZEROS
def test_what_a_few_tokens_need_is_read_once(compiled: Kernels, dtype: torch.dtype, zeros: float) -> None:
    torch.manual_seed(0)
    dense = linear(300, 530, True, zeros, dtype)
    for level in levels(compiled):
        layer = columns(compiled, dense, 1.0)
        for tokens in range(1, MOST_TOKENS + 1):
            x = torch.randn(tokens, 300).to(dtype)
            found, needed = layer(x), (x.abs() > 1.0).any(0)
            assert torch.equal(found, torch.cat([layer(one) for one in x.split(1)])), (level, tokens)
            if tokens == 1:
                continue
            stored = int((dense.weight[:, needed] != 0).sum()) if layer.bitmask_shape else 530 * int(needed.sum())
            bits = int(needed.sum()) * layer.index_bytes
            assert layer.tally.product(tokens) == (530 * int(needed.sum()), stored, stored * dtype.itemsize + bits)
        before = dict(layer.tally.products)
        layer(torch.randn(MOST_TOKENS + 1, 300).to(dtype))
        assert layer.tally.products == before


def test_a_layer_of_zeros_is_kept_without_them_where_that_is_faster(compiled: Kernels) -> None:
    for zeros in (0.1, 0.5):
        dense = linear(512, 600, False, zeros, torch.bfloat16)
        for level in levels(compiled):
            layer = SkipColumns(compiled, dense.weight.T.contiguous(), None, 0.5)
            assert (layer.bitmask_shape is not None) == (zeros == 0.5 and level.startswith("avx512"))
        if layer.bitmask_shape:
            # The nonzeros, a bit for each weight and its padding, and where each of three panels begins.
            stored = int(dense.weight.count_nonzero())
            assert layer.tally.without_skipping == (stored, 2 * stored + 512 * (3 * 256 // 8 + 3 * 8))
            nbytes = layer.tally.without_skipping[1]
            assert nbytes <= sum(one.nbytes for one in layer.buffers()) <= nbytes + 512


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_all_inputs_and_none(compiled: Kernels, zeros: float) -> None:
    torch.manual_seed(0)
    dense = linear(130, 70, True, zeros, torch.float32)
    for _ in levels(compiled):
        layer = columns(compiled, dense, 2.0)
        for tokens in (1, 3):
            assert torch.equal(layer(torch.full((tokens, 130), 2.0)), dense.bias.expand(tokens, -1))
            assert layer.tally.product(tokens) == (0, 0, 0)
            x = torch.randn(tokens, 130) + 10
            assert close(layer(x), exact(dense, x), torch.float32)
            assert layer.tally.met[tokens] == 130 * 70
            assert layer.tally.multiplied[tokens] == layer.tally.without_skipping[0]
        x = torch.rand(1, 130)
        layer.reads_all = True
        assert close(layer(x), exact(dense, x), torch.float32)


@DTYPES
@BIAS
@ZEROS
def test_rows_are_read_where_the_gate_is_open(compiled: Kernels, dtype: torch.dtype, bias: bool, zeros: float) -> None:
    torch.manual_seed(0)
    for level in levels(compiled):
        for ins, outs in SHAPES:
            dense = linear(ins, outs, bias, zeros, dtype)
            deciding = ThresholdedActivation(nn.SiLU(), 0.2)
            layer = SkipRows(compiled, dense.weight, dense.bias, deciding.take_values)
            for tokens in (1, 3, MOST_TOKENS):
                x, gate = torch.randn(tokens, ins).to(dtype), torch.randn(tokens, outs).to(dtype)
                open_ = deciding(gate)
                wanted = exact(dense, x)
                assert close(layer(x), wanted * (open_ != 0), dtype), (level, ins, outs)
                met = outs if layer._needs_many_rows(open_, tokens) else int((open_ != 0).any(0).sum())
                assert layer.tally.met[tokens] == met * ins
                # What some tokens decided says nothing of the next.
                assert close(layer(x), wanted, dtype)
            deciding(torch.randn(MOST_TOKENS + 1, outs).to(dtype))
            assert deciding.take_values() is None


@pytest.mark.parametrize("emulated", [False, True])
def test_all_are_multiplied_at_once_where_that_is_faster(
    compiled: Kernels, emulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor, "is_emulated", lambda dtype: emulated)
    torch.manual_seed(0)
    for dtype, zeros in ((torch.bfloat16, 0.0), (torch.float32, 0.0), (torch.bfloat16, 0.5)):
        dense, gate = linear(64, 100, True, zeros, dtype), torch.zeros(3, 100).to(dtype)
        layer, x = SkipRows(compiled, dense.weight, dense.bias, lambda gate=gate: gate), torch.randn(3, 64).to(dtype)
        at_once = not emulated and dtype == torch.bfloat16 and not layer.bitmask_shape
        gate[0, :50] = gate[1, :75] = 1
        for outputs, all_read in ((75, False), (76, at_once)):
            gate[1, :outputs] = 1
            layer.tally.products.clear(), layer.tally.met.clear()
            assert close(layer(x), exact(dense, x) * gate.double(), dtype)
            assert layer.tally.product(3)[0] == 64 * (100 if all_read else outputs)
        by_columns = columns(compiled, dense, 0.5)
        many = torch.randn(MOST_TOKENS + 1, 64).to(dtype)
        assert close(by_columns(many), exact(dense, masked(many, 0.5)), dtype)


@pytest.mark.parametrize("zeros", [0.0, 0.6])
@pytest.mark.parametrize("tokens", [1, 5])
def test_several_threads_say_what_one_says(compiled: Kernels, zeros: float, tokens: int) -> None:
    torch.manual_seed(0)
    dense, x = linear(900, 700, True, zeros, torch.float32), torch.randn(tokens, 900)
    by_columns = columns(compiled, dense, 0.3)
    gate = torch.randn(tokens, 700).relu()
    rows = SkipRows(compiled, dense.weight, dense.bias, lambda: gate)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(torch.cat([by_columns(x), rows(x)]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
