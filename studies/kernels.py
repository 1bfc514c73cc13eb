"""How fast one token goes through a sparse layer, beside dense float32 and bfloat16, torch's CSR, MKL's, dynamic int8.

    python studies/kernels.py [--threads 2] [--shape 8192x2048 …] [--sparsity 0.5 …] [--level avx2] [--wall] [--mkl FILE]
                                 [--deepsparse PYTHON]

Prints Markdown. ``--mkl`` names the library (libmkl_rt.so.2) of an installed `mkl` package: its inspector-executor, told to
expect many products, in float32 with 32-bit columns. Each contender has so many copies of its weights that they come from
memory, as in a real model; the contenders take turns, and each number is the median over rounds of the CPU time per product,
all threads together, so that other programs disturb it little, or with ``--wall`` of the wall time. CPU time of several threads
needs OMP_WAIT_POLICY=passive, or waiting would count as work. ``--deepsparse`` names the interpreter of an environment with
DeepSparse 1.8 (`deepsparse_layer.py`), which runs on one thread with at most a GB of dense layers: where they are sparse they
stay in a cache, which is to its advantage. "floor" is the share of the time that reading the bytes alone would
take, at the speed at which ``torch.sum`` reads a large array in the same turns.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy
import torch
from torch import nn
from torch.nn import functional as F

from sparsebench import environment
from sparsebench.native import Missing
from sparsebench.runtime.kernels import Choices, SparseLinear, TorchCsr, from_dense, kernels, layout_for, speeds_here
from sparsebench.runtime.kernels.matrix import SparseMatrix

SHAPES = ("8192x2048", "2048x8192", "2048x2048", "5120x1536")
SPARSITIES = (0.5, 0.75, 0.9, 0.95, 0.99)
STREAMED = 256 << 20
"""Bytes of each contender's copies together: several times the last cache."""
ROUNDS = 15
LARGEST = 1 << 30
"""Bytes of DeepSparse's layers, dense: a graph must be smaller than 2 GB."""
SECONDS = 0.02
"""About how long a contender's turn is."""


clock = time.process_time


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
        """Time some products, in CPU time of all threads or in wall time."""
        start = clock()
        for _ in range(self.often):
            next(self.next)()
        self.seconds.append((clock() - start) / self.often)


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


class Description(ctypes.Structure):
    """MKL's ``matrix_descr``: what kind of matrix, which half of it is stored, and whether its diagonal is ones."""

    _fields_ = (("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int))


def mkl_csr(mkl: ctypes.CDLL, weight: torch.Tensor, x: torch.Tensor) -> Contender:
    """MKL's inspector-executor in float32: inspected once with a hint of many products, then executed."""
    plain, general = 10, Description(20, 0, 0)  # SPARSE_OPERATION_NON_TRANSPOSE, SPARSE_MATRIX_TYPE_GENERAL
    stored = weight.to_sparse_csr()
    vector, rows, cols = x[0].contiguous(), *weight.shape

    def call(name: str, *arguments: Any) -> None:
        if status := getattr(mkl, name)(*arguments):
            raise SystemExit(f"{name}: status {status}")

    def make() -> Callable[[], object]:
        parts = [stored.crow_indices().int(), stored.col_indices().int(), stored.values().clone()]
        out, handle = torch.empty(rows), ctypes.c_void_p()
        begin, column, value = (ctypes.c_void_p(part.data_ptr()) for part in parts)
        end = ctypes.c_void_p(parts[0].data_ptr() + 4)
        call("mkl_sparse_s_create_csr", ctypes.byref(handle), 0, rows, cols, begin, end, column, value)
        call("mkl_sparse_set_mv_hint", handle, plain, general, 100_000)
        call("mkl_sparse_optimize", handle)
        one, none = ctypes.c_float(1), ctypes.c_float(0)
        read, write = ctypes.c_void_p(vector.data_ptr()), ctypes.c_void_p(out.data_ptr())

        def product(kept: object = (parts, out)) -> object:
            return mkl.mkl_sparse_s_mv(plain, one, handle, general, read, none, write)

        product()
        torch.testing.assert_close(out, weight @ vector, rtol=1e-3, atol=1e-4)
        return product

    return copies(8 * int(stored.values().numel()) + 4 * rows, make)


class DeepSparse(Contender):
    """DeepSparse, in a process of its own."""

    def __init__(self, python: str, weight: torch.Tensor, x: torch.Tensor) -> None:
        self.folder = tempfile.TemporaryDirectory()
        files = [f"{self.folder.name}/{name}.npy" for name in ("weight", "x")]
        for file, values in zip(files, (weight, x), strict=True):
            numpy.save(file, values.numpy())
        self.copies = max(2, LARGEST // weight.nbytes)
        worker = Path(__file__).with_name("deepsparse_layer.py")
        words = [python, str(worker), *files, str(self.copies), "wall" if clock is time.perf_counter else "cpu"]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            raise SystemExit("DeepSparse did not start")
        self.seconds = []
        self.often = self.copies
        self.often = max(self.copies, int(SECONDS / self._asked()))

    def turn(self) -> None:
        self.seconds.append(self._asked())

    def close(self) -> None:
        """Its memory is wanted for the next."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()

    def _asked(self) -> float:
        assert self.process.stdin
        self.process.stdin.write(f"{self.often}\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()


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


def table(shape: str, sparsities: list[float], mkl: ctypes.CDLL | None, deepsparse: str | None) -> None:
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
        matrix = found.laid_out(library, layout_for(found, speeds_here(library, torch.bfloat16, torch.bfloat16)))
        contenders = {**fixed, "csr": torch_csr(weight, x), "sparse": sparse(matrix, narrow)}
        if mkl:
            contenders["mkl"] = mkl_csr(mkl, weight, x)
        if deepsparse:
            contenders["deepsparse"] = DeepSparse(deepsparse, weight, x)
        for contender in contenders.values():
            contender.seconds.clear()
        took = compete(contenders)
        if deepsparse:
            contenders["deepsparse"].close()
        ours = took["sparse"]
        floor = took["read"] / STREAMED * matrix.data.nbytes
        each = matrix.data.nbytes / weight.numel()
        ideal = 0.125 + 2 * found.density if matrix.layout == "bitmask" else 4 * found.density  # CSR's, for runs too
        cells = [
            shape, f"{sparsity:.0%}", matrix.layout, f"{each:.3f} ({each / ideal - 1:+.0%})", f"{took['fp32'] * 1e6:.0f}",
            f"{took['bf16'] * 1e6:.0f}", f"{ours * 1e6:.0f}", f"**{took['fp32'] / ours:.1f} / {took['bf16'] / ours:.1f}**",
            f"{took['fp32'] / took['csr']:.2f}", *([f"{took['fp32'] / took['mkl']:.2f}"] if mkl else []),
            *([f"{took['fp32'] / took['deepsparse']:.2f}"] if deepsparse else []), f"{took['fp32'] / took['int8']:.2f}",
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
    parser.add_argument("--wall", action="store_true", help="wall time, not CPU time")
    parser.add_argument("--deepsparse", help="the interpreter of an environment with deepsparse 1.8")
    parser.add_argument("--mkl", help="the library of an installed mkl package")
    chosen = parser.parse_args()
    global clock
    clock = time.perf_counter if chosen.wall else clock
    mkl = ctypes.CDLL(chosen.mkl) if chosen.mkl else None
    library = kernels()
    if isinstance(library, Missing):
        raise SystemExit(library.reason)
    if chosen.level:
        library.use(chosen.level)
    warnings.filterwarnings("ignore", message="Sparse CSR")
    with torch.inference_mode():
        for threads in chosen.threads or [1]:
            if threads > 1 and chosen.deepsparse:
                raise SystemExit("DeepSparse runs on one thread here")
            if threads > 1 and not chosen.wall and os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive":
                raise SystemExit("set OMP_WAIT_POLICY=passive: otherwise threads that wait for each other spin")
            torch.set_num_threads(threads)
            print(
                f"\n{environment.cpu_model()}, {library.level}, torch {torch.__version__}, threads: {threads}, "
                f"{'wall' if chosen.wall else 'CPU'} time, load {os.getloadavg()[0]:.1f}\n"
            )
            columns = [
                "layer", "sparsity", "layout", "bytes per weight (over ideal)", "fp32 µs", "bf16 µs", "sparse µs",
                "sparse: × fp32 / × bf16", "torch CSR × fp32", *(["MKL × fp32"] if mkl else []),
                *(["DeepSparse × fp32"] if chosen.deepsparse else []), "int8 × fp32", "floor",
            ]  # fmt: skip
            print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
            for shape in chosen.shape or SHAPES:
                table(shape, chosen.sparsity or list(SPARSITIES), mkl, chosen.deepsparse)


if __name__ == "__main__":
    main()
