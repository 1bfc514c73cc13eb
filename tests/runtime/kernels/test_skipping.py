"""Layers that read part of a dense matrix for one token, at every instruction set, against the masked product."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsebench.models.skipping import masked
from sparsebench.runtime.kernels import Kernels
from sparsebench.runtime.kernels.skipping import Deciding, SkipColumns, SkipRows
from tests.runtime.kernels.conftest import levels

SHAPES = [(1, 1), (7, 3), (96, 80), (130, 257), (1000, 300)]


def close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> bool:
    return bool((found.double() - wanted).norm() <= (5e-3 if dtype == torch.bfloat16 else 1e-6) * wanted.norm() + 1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_columns_are_read_where_inputs_are_large(compiled: Kernels, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    for level in levels(compiled):
        compiled.use(level)
        for ins, outs in SHAPES:
            dense = nn.Linear(ins, outs, bias).to(dtype).requires_grad_(False)
            layer = SkipColumns(compiled, dense.weight.T.contiguous(), dense.bias, 0.5)
            exact = nn.Linear(ins, outs, bias).double().requires_grad_(False)
            exact.load_state_dict({name: tensor.double() for name, tensor in dense.state_dict().items()})
            for batch in ((1, 1), (1,), (3,), (2, 5)):
                x = torch.randn(*batch, ins).to(dtype)
                assert close(layer(x), exact(masked(x, 0.5).double()), dtype), (level, ins, outs, batch)
            x = torch.randn(1, ins).to(dtype)
            before = layer.tally.read
            layer(x)
            assert layer.tally.read - before == int((x.abs() > 0.5).sum()) * outs
    assert layer.weight.shape == (outs, ins)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_are_read_where_the_gate_is_open(compiled: Kernels, dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    for level in levels(compiled):
        compiled.use(level)
        for ins, outs in SHAPES:
            dense = nn.Linear(ins, outs, bias).to(dtype).requires_grad_(False)
            deciding = Deciding(nn.SiLU(), 0.2)
            layer = SkipRows(compiled, dense.weight, dense.bias, deciding.taken)
            x, gate = torch.randn(1, ins).to(dtype), torch.randn(1, outs).to(dtype)
            open_ = deciding(gate)
            wanted = nn.functional.linear(x.double(), dense.weight.double(), dense.bias.double() if bias else None)
            assert close(layer(x), wanted * (open_ != 0), dtype), (level, ins, outs)
            assert layer.tally.read == int((open_ != 0).sum()) * ins
            # What one token decided says nothing of the next.
            assert close(layer(x), wanted, dtype)


def test_several_threads_say_what_one_says(compiled: Kernels) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(700, 900), torch.randn(1, 900)
    layer, before = SkipColumns(compiled, weight.T.contiguous(), None, 0.3), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
