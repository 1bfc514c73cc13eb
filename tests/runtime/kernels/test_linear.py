"""The layer in the place of nn.Linear and Conv1D; the choice of layout; the fallback."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

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
    from_dense,
    layout_for,
    speeds_here,
)
from sparsebench.runtime.kernels import speeds as module
from sparsebench.runtime.kernels.matrix import LAYOUTS, LEVELS
from sparsebench.runtime.kernels.speeds import Speeds, at
from tests.runtime.kernels.conftest import levels

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


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_a_matrix_without_elements_stays_torchs(compiled: Kernels, shape: tuple[int, int]) -> None:
    flat = {layout: [1.0, 1.0, 1.0, 1.0] for layout in LAYOUTS}
    assert layout_for(from_dense(compiled, torch.empty(shape)), Speeds(flat, flat)) == "dense"


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


MADE_UP = Speeds(
    seconds={"bitmask": [4.0, 4.0, 4.0, 4.0], "csr16": [1.0, 4.0, 12.5, 25.0], "runs": [2.0, 2.0, 6.0, 12.0]},
    bytes={"bitmask": [0.17, 0.29, 0.63, 1.13], "csr16": [0.08, 0.32, 1.0, 2.0], "runs": [0.08, 0.27, 0.83, 1.63]},
)
"""At densities of 2, 8, 25 and 50%: csr16 wins below 4%, runs from there to where they take as long as a bitmask, 16%.
Near these the smaller one is taken."""


@pytest.mark.parametrize(
    ("cols", "share", "layout"),
    [
        (1000, 0.95, "dense"),
        (1000, 0.7, "bitmask"),
        (1000, 0.2, "bitmask"),
        (1000, 0.15, "bitmask"),
        (1000, 0.1, "runs"),
        (1000, 0.038, "runs"),
        (1000, 0.03, "csr16"),
        (1000, 0.001, "csr16"),
        (1000, 0, "bitmask"),
        (70000, 0.03, "runs"),
        (2**22, 0.03, "bitmask"),
    ],
)
def test_the_layout_follows_density_and_width(cols: int, share: float, layout: str) -> None:
    assert layout_for(nonzeros(10, cols, int(10 * cols * share)), MADE_UP) == layout


def test_between_what_was_measured_times_are_powers_of_the_density() -> None:
    assert at(MADE_UP.seconds["csr16"], 0.04) == pytest.approx(2.0)
    assert at(MADE_UP.seconds["csr16"], 0.01) == pytest.approx(0.5)
    assert at(MADE_UP.seconds["bitmask"], 0.9) == 4.0
    assert at(MADE_UP.seconds["runs"], 1.0) == pytest.approx(24.0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The (instructions, threads) that were timed, made up here; each question is as in another process."""
    found: list[tuple[str, int]] = []

    def timed(level: str, threads: int) -> tuple[dict[str, Any], float]:
        found.append((level, threads))
        return {" times ".join(pair): asdict(MADE_UP) for pair in module.PAIRS}, 0.0

    monkeypatch.setattr(module, "_measured_apart", timed)
    monkeypatch.setattr(module, "_known", module._known.__wrapped__)
    return found


def test_speeds_are_measured_once_per_machine_and_kept(
    compiled: Kernels, asked: list[tuple[str, int]], tmp_path: Path
) -> None:
    here = replace(compiled, path=tmp_path / "sparse-0123.so")
    kept, threads = tmp_path / "sparse-0123.json", torch.get_num_threads()
    for held, given in ((torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)) * 2:
        assert speeds_here(here, held, given) == MADE_UP
    assert asked == [(compiled.level, threads)]
    compiled.use("portable")
    speeds_here(here, torch.float32, torch.float32)
    assert asked[1:] == [("portable", threads)]
    assert [name.split("; ")[1] for name in json.loads(kept.read_text())] == [asked[0][0], "portable"]
    old = json.loads(kept.read_text())
    for known in old.values():
        known["densities"] = [0.1]
    for text in ("{", json.dumps(old)):
        kept.write_text(text)
        asked.clear()
        assert speeds_here(here, torch.float32, torch.float32) == MADE_UP and len(asked) == 1


@pytest.mark.parametrize(
    ("layout", "held", "given", "best"),
    [
        ("bitmask", torch.bfloat16, torch.bfloat16, "avx512-bf16"),
        ("bitmask", torch.bfloat16, torch.float32, "avx512-vbmi2"),
        ("bitmask", torch.float32, torch.float32, "avx512"),
        ("csr16", torch.bfloat16, torch.bfloat16, "avx512"),
        ("csr16", torch.float32, torch.float32, "avx512"),
        ("runs", torch.bfloat16, torch.bfloat16, "avx512-bf16"),
        ("runs", torch.bfloat16, torch.float32, "avx512-vbmi2"),
        ("runs", torch.float32, torch.float32, "avx512-vbmi2"),
    ],
)
def test_a_layer_tells_the_instructions_of_its_kernel(
    compiled: Kernels, layout: str, held: torch.dtype, given: torch.dtype, best: str
) -> None:
    matrix = from_dense(compiled, torch.eye(64, dtype=held)).laid_out(compiled, layout)
    layer = SparseLinear(compiled, matrix, None, Choices(), given)
    for level in levels(compiled):
        compiled.use(level)
        beyond = layout == "runs" and LEVELS.index(level) < LEVELS.index("avx512-vbmi2")
        assert layer.instructions == ("portable" if beyond else min(level, best, key=LEVELS.index))


@pytest.mark.parametrize(("layout", "cols"), [("bitmask", 70001), ("runs", 70001), ("runs", 2**21)])
def test_a_matrix_wider_than_16_bits_multiplies(compiled: Kernels, layout: str, cols: int) -> None:
    weight = torch.zeros(3, cols)
    weight[0, cols - 1], weight[1, 65536], weight[2, 0] = 1, 2, 3
    layer = SparseLinear(compiled, from_dense(compiled, weight).laid_out(compiled, layout), None, Choices())
    x = torch.arange(cols, dtype=torch.float32)[None]
    for level in levels(compiled):
        compiled.use(level)
        assert layer(x).tolist() == [[cols - 1.0, 131072.0, 0.0]]


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
