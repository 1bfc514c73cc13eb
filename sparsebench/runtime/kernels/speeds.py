"""Speed and size of each layout by density on this machine, measured once and kept beside the compiled kernels."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsebench import children, environment
from sparsebench.errors import MeasureError
from sparsebench.runtime.kernels.linear import Choices, SparseLinear
from sparsebench.runtime.kernels.matrix import LAYOUTS, MOST, WIDEST, Kernels, Nonzeros, from_dense, kernels
from sparsebench.sources import Cache
from sparsebench.sources.cache import read_json, write_json

DENSITIES = (0.02, 0.08, 0.25, 0.5)
PAIRS = (("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32"))
"""The dtypes of (stored values, vectors) that are measured."""
SIDE, STREAMED, ROUNDS = 2048, 128 << 20, 3
"""Rows and columns of the matrix, bytes of its copies (a model's layers come from memory), and rounds of timing."""
SECONDS = 300
"""The most that all measurements may take; on one free core they take ten seconds."""
DENSE_ABOVE = 0.8
"""Density above which zeros save too little: with 20% zeros a bitmask saves an eighth of the bytes."""
NEAR = 1.1
"""A smaller layout may take up to this many times as long as the fastest."""
WAITED, AGAIN = 0.05, 600.0
"""The share of its time waiting for a processor above which a measurement counts as disturbed, because threads that
spin for each other then say nothing about layouts; and the seconds after which a disturbed one is made again."""


@dataclass(frozen=True)
class Speeds:
    """Seconds of one token through a square matrix, and bytes per weight, by layout at each of DENSITIES."""

    seconds: dict[str, list[float]]
    bytes: dict[str, list[float]]

    def best(self, density: float, layouts: Collection[str]) -> str:
        """Return the smallest of ``layouts`` among those within NEAR of the fastest at ``density``."""
        limit = NEAR * min(at(self.seconds[layout], density) for layout in layouts)
        about = [layout for layout in layouts if at(self.seconds[layout], density) <= limit]
        return min(about, key=lambda layout: at(self.bytes[layout], density))


def layout_for(found: Nonzeros, speeds: Speeds) -> str:
    """Return ``dense``, or the best layout for one token at the matrix's density among those that reach its columns."""
    if found.density > DENSE_ABOVE or found.total > MOST or not found.rows * found.cols:
        return "dense"  # torch also multiplies matrices without rows or columns
    return speeds.best(found.density, [layout for layout, widest in WIDEST.items() if found.cols <= widest])


def at(measured: list[float], density: float) -> float:
    """Interpolate ``measured`` (at DENSITIES) to ``density`` by a power law between neighbours, or beyond the ends."""
    if density <= 0:
        return 0.0
    after = min(max(bisect_right(DENSITIES, density), 1), len(DENSITIES) - 1)
    (low, high), (first, last) = DENSITIES[after - 1 : after + 1], measured[after - 1 : after + 1]
    return first * (last / first) ** (math.log(density / low) / math.log(high / low))


def speeds_here(found: Kernels, held: torch.dtype, given: torch.dtype) -> Speeds:
    """Return the speeds for values ``held`` and vectors ``given`` in these dtypes, with the current instructions.

    Which layout is fastest depends on the processor: a bitmask's work does not shrink with its nonzeros, csr16 looks up
    an input for each nonzero, and runs permute registers, which needs AVX-512 instructions. Raises MeasureError when
    the process that measures fails.
    """
    name = " times ".join(str(dtype).removeprefix("torch.") for dtype in (held, given))
    return Speeds(**_known(found, found.level, torch.get_num_threads())[name])


@functools.cache
def _known(found: Kernels, level: str, threads: int) -> dict[str, Any]:
    kept, waiting = found.path.with_suffix(".json"), os.environ.get("OMP_WAIT_POLICY", "").lower() or "usual"
    name = f"{environment.machine()}; {level}; threads: {threads}, waiting: {waiting}"

    def read() -> Any:
        known = (read_json(kept) or {}).get(name, {})
        if known.get("densities") != list(DENSITIES):
            return None
        poor = known.get("waited", 0.0) > WAITED and not 0 <= time.time() - known.get("at", 0.0) < AGAIN
        return None if poor else known.get("pairs")

    if pairs := read():
        return dict(pairs)
    try:
        with Cache().lock("speeds"):  # one process measures, the others wait and read
            if not (pairs := read()):
                pairs, waited = _measured_apart(level, threads)
                entry = {"densities": DENSITIES, "pairs": pairs, "waited": waited, "at": time.time()}
                write_json(kept, (read_json(kept) or {}) | {name: entry})
    except OSError:  # a read-only cache
        pairs = pairs or _measured_apart(level, threads)[0]
    return dict(pairs)


def _measured_apart(level: str, threads: int) -> tuple[dict[str, Any], float]:
    """Measure in a separate process, whose memory is not the next model's; also return the share of time it waited."""
    command = children.command(__name__, level, threads)
    try:
        done = children.run(command, SECONDS, os.environ | children.imports())
    except subprocess.TimeoutExpired as error:
        raise MeasureError(f"timing the sparse layouts took over {SECONDS} seconds", "is the machine busy?") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasureError(f"the sparse layouts could not be timed: {said[-1]}", "try again, or use another engine")
    pairs, waited = json.loads(done.stdout.splitlines()[-1])
    return pairs, waited


def measured(found: Kernels) -> dict[str, Any]:
    """Time each of PAIRS: seconds and bytes per weight by layout, as lists over DENSITIES; the layouts take turns."""
    draw, pairs = torch.Generator().manual_seed(0), {}
    for held, given in PAIRS:
        seconds: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        size: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
        x = torch.rand(1, SIDE, generator=draw).to(getattr(torch, given))
        for density in DENSITIES:
            weight = torch.rand(SIDE, SIDE, generator=draw)
            nonzeros = from_dense(found, torch.where(weight < density, weight, 0).to(getattr(torch, held)))
            layers: dict[str, list[Any]] = {}
            for layout in LAYOUTS:
                matrix = nonzeros.laid_out(found, layout)
                size[layout].append(matrix.data.nbytes / SIDE**2)
                copies = (
                    replace(matrix, data=matrix.data.clone()) for _ in range(max(1, STREAMED // matrix.data.nbytes))
                )
                layers[layout] = [SparseLinear(found, copy, None, Choices()) for copy in copies]
            for layout, best in _turns(layers, x).items():
                seconds[layout].append(best)
        pairs[f"{held} times {given}"] = {"seconds": seconds, "bytes": size}
    return pairs


def _turns(layers: dict[str, list[Any]], x: torch.Tensor) -> dict[str, float]:
    """Return the seconds of one product by layout, from the best round."""
    best = dict.fromkeys(layers, math.inf)
    for _ in range(ROUNDS):
        for layout, copies in layers.items():
            start = time.perf_counter()
            for layer in copies:
                layer(x)
            best[layout] = min(best[layout], (time.perf_counter() - start) / len(copies))
    return best


def main(level: str, threads: str) -> None:
    """Print, as JSON, what ``measured`` returns and the share of the time spent waiting (run as a module)."""
    found = kernels()
    assert isinstance(found, Kernels)
    found.use(level)
    torch.set_num_threads(int(threads))
    start, before = time.perf_counter(), _waiting()
    with torch.inference_mode():
        pairs = measured(found)
    print(json.dumps([pairs, (_waiting() - before) / (time.perf_counter() - start)]))


def _waiting() -> float:
    """Return the seconds that threads of this process waited for a processor; 0 where the system does not say."""
    waited = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):
            waited += int(file.read_text().split()[1])
    return waited / 1e9


if __name__ == "__main__":
    main(*sys.argv[1:])
