"""How fast one token goes through a sparse layer, beside dense float32, dense bfloat16, torch's CSR and dynamic int8.

    python benchmarks/kernels.py [--threads 2] [--shape 8192x2048 …] [--sparsity 0.5 …] [--level avx2]

Prints Markdown. Each contender has so many copies of its weights that they come from memory, as in a real model; the
contenders take turns, and each number is the median over rounds of the CPU time per product, all threads together, so that
other programs disturb it little. Several threads need OMP_WAIT_POLICY=passive, or waiting would count as work. "floor" is
the share of the time that reading the bytes alone would take, at the speed at which ``torch.sum`` reads a large array in
the same turns.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from statistics import median

import torch
from torch import nn
from torch.nn import functional as F

from sparsebench import environment
from sparsebench.native import Missing
from sparsebench.runtime.kernels import Choices, SparseLinear, TorchCsr, from_dense, kernels, layout_for
from sparsebench.runtime.kernels.matrix import SparseMatrix

SHAPES = ("8192x2048", "2048x8192", "2048x2048", "5120x1536")
SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
STREAMED = 256 << 20
"""Bytes of each contender's copies together: several times the last cache."""
ROUNDS = 15
SECONDS = 0.02
"""About how long a contender's turn is."""


@dataclass
class Contender:
    """One product to time: ``turns`` are the copies, ``size`` the bytes of one."""

    turns: list[Callable[[], object]]
    size: int

    def __post_init__(self) -> None:
        self.next = cycle(self.turns)
        start = time.perf_counter()
        self.turns[0]()
        self.turns[-1]()
        self.often = max(2, int(SECONDS / (time.perf_counter() - start) * 2))
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Time some products, in CPU time of all threads."""
        start = time.process_time()
        for _ in range(self.often):
            next(self.next)()
        self.seconds.append((time.process_time() - start) / self.often)


def copies(size: int, make: Callable[[], Callable[[], object]]) -> Contender:
    """A contender with enough copies that none is in a cache when its turn comes."""
    return Contender([make() for _ in range(max(2, -(-STREAMED // size)))], size)


def compete(contenders: dict[str, Contender]) -> dict[str, float]:
    """Median seconds of each, measured in turns."""
    for number in range(ROUNDS + 1):
        for contender in contenders.values():
            contender.turn()
            if not number:
                contender.seconds.clear()
    return {name: median(contender.seconds) for name, contender in contenders.items()}


def dense(weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """torch's own product."""

    def make() -> Callable[[], object]:
        copy = weight.clone()
        return lambda: F.linear(x, copy)

    return copies(weight.nbytes, make)


def sparse(matrix: SparseMatrix, x: torch.Tensor) -> Contender:
    """Ours."""
    library, choices = kernels(), Choices()
    assert not isinstance(library, Missing)

    def make() -> Callable[[], object]:
        copy = SparseMatrix(matrix.layout, matrix.rows, matrix.cols, matrix.nonzeros, matrix.dtype, matrix.data.clone())
        layer = SparseLinear(library, copy, None, choices)
        return lambda: layer(x)

    return copies(matrix.data.nbytes, make)


def torch_csr(weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """torch's CSR in float32 by ``mv``."""
    layer, vector = TorchCsr(weight, None), x[0]

    def make() -> Callable[[], object]:
        parts = [one.clone() for one in (layer.crow, layer.col, layer.values)]
        matrix = torch.sparse_csr_tensor(*parts, weight.shape, check_invariants=False)
        return lambda: matrix.mv(vector)

    return copies(8 * layer.nonzeros + 4 * len(weight), make)


def int8(weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """torch's dynamic int8."""

    def make() -> Callable[[], object]:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8)[0]
        return lambda: made(x)

    return copies(weight.numel(), make)


def reading() -> Contender:
    """A large array, read once and added up."""
    array = torch.zeros(STREAMED // 4)
    return Contender([lambda: array.sum()], array.nbytes)


def table(shape: str, sparsities: list[float]) -> None:
    """The rows of one shape."""
    rows, cols = (int(part) for part in shape.split("x"))
    torch.manual_seed(0)
    base = torch.randn(rows, cols) * 0.02
    x = torch.randn(1, cols)
    narrow = x.bfloat16()
    library = kernels()
    assert not isinstance(library, Missing)
    fixed = {"fp32": dense(base, x), "bf16": dense(base.bfloat16(), narrow), "int8": int8(base, x), "read": reading()}
    for sparsity in sparsities:
        weight = base * (torch.rand(rows, cols) >= sparsity)
        found = from_dense(library, weight.bfloat16())
        matrix = found.laid_out(library, layout_for(found))
        contenders = {**fixed, "csr": torch_csr(weight, x), "sparse": sparse(matrix, narrow)}
        for contender in contenders.values():
            contender.seconds.clear()
        took = compete(contenders)
        ours = took["sparse"]
        floor = took["read"] / STREAMED * matrix.data.nbytes
        each = matrix.data.nbytes / weight.numel()
        ideal = 0.125 + 2 * found.density if matrix.layout == "bitmask" else 4 * found.density
        cells = [
            shape, f"{sparsity:.0%}", matrix.layout, f"{each:.3f} ({each / ideal - 1:+.0%})", f"{took['fp32'] * 1e6:.0f}",
            f"{took['bf16'] * 1e6:.0f}", f"{ours * 1e6:.0f}", f"**{took['fp32'] / ours:.1f} / {took['bf16'] / ours:.1f}**",
            f"{took['fp32'] / took['csr']:.2f}", f"{took['fp32'] / took['int8']:.2f}",
            f"{floor / ours:.0%} at {STREAMED / took['read'] / 1e9:.0f} GB/s",
        ]  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", action="append", type=int, help="default: 1")
    parser.add_argument("--shape", action="append", help="rows x columns")
    parser.add_argument("--sparsity", action="append", type=float)
    parser.add_argument("--level", help="an instruction set below the best one")
    chosen = parser.parse_args()
    library = kernels()
    if isinstance(library, Missing):
        raise SystemExit(library.reason)
    if chosen.level:
        library.use(chosen.level)
    warnings.filterwarnings("ignore", message="Sparse CSR")
    with torch.inference_mode():
        for threads in chosen.threads or [1]:
            if threads > 1 and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
                raise SystemExit("set OMP_WAIT_POLICY=passive: otherwise threads that wait for each other spin")
            torch.set_num_threads(threads)
            print(
                f"\n{environment.cpu_model()}, {library.level}, torch {torch.__version__}, threads: {threads}, "
                f"load {os.getloadavg()[0]:.1f}\n"
            )
            columns = [
                "layer", "sparsity", "layout", "bytes per weight (over ideal)", "fp32 µs", "bf16 µs", "sparse µs",
                "sparse: × fp32 / × bf16", "torch CSR × fp32", "int8 × fp32", "floor",
            ]  # fmt: skip
            print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
            for shape in chosen.shape or SHAPES:
                table(shape, chosen.sparsity or list(SPARSITIES))


if __name__ == "__main__":
    main()
