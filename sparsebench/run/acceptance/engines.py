"""Checks that each engine gives at one rank what the plain model gives, and times it without bias."""

from __future__ import annotations

from typing import Any

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.run.acceptance.bench import Bench, CheckResult, off
from sparsebench.runtime import Workload
from sparsebench.runtime.graphs import GRAPH


def one_rank(bench: Bench) -> CheckResult:
    """Check that every family under ``hf`` and ``deepspeed``, with a decode from a cache, gives the plain outputs."""
    models, engines = ("deberta", "bert", "opt", "t5"), ("hf", "deepspeed")
    found = {f"{name} {engine}": bench.memory(name, engine) for name in models for engine in engines}
    # The others' outputs are compared with those of hf.
    numbers = {name: off(one) for name, one in found.items() if one.engine != "hf"}
    worst, kinds = max(numbers.values()), {one.device for one in found.values()}
    right = worst <= 1e-4 and kinds == {bench.device.partition(":")[0]}
    return right, f"{len(found)} ran on {', '.join(kinds)}, outputs at most {worst:.1e} off", numbers


def sparse(bench: Bench) -> CheckResult:
    """Check that the sparse engine uses a sparse kernel and is right: 2:4 on a GPU, most weights zero on a CPU."""
    variant = bench.pruned("opt", "2:4" if bench.gpu else "unstructured", 0.9)
    found = bench.latency(variant, "opt", "sparse", workload=Workload(1, 128, 4))
    ratios = {one.phase: one.ratio for one in found.differences}
    used = ("2:4" in found.kernel) if bench.gpu else not found.kernel.startswith("dense")
    right = used and bool(found.parity and found.parity.relative_l2 <= found.parity.tolerance)
    return right, f"{found.kernel}; times / dense: {', '.join(f'{k} {v:.2f}' for k, v in ratios.items())}", ratios


def quantized(bench: Bench) -> CheckResult:
    """Check that quantized weights run, or are refused by name before a rank starts."""
    from sparsebench.steps.quantize.grid import Quantize
    from sparsebench.steps.quantize.sweep import run

    folder, family = bench.model("llama")
    out = bench.folder / "int8"
    found: list[Any] = []
    run(folder, family, {Quantize("int8"): out}, None, lambda _, one: found.append(one))
    if isinstance(found[0], SparsebenchError):
        raise found[0]
    try:
        ran = bench.memory("llama", "hf", folder=out)
    except UnsupportedError as error:
        return "int8" in error.message, f"refused: {error.message}", {}
    return "int8" in ran.kernel, f"runs: {ran.kernel}", {}


def against_itself(bench: Bench) -> CheckResult:
    """Check that a model and its copy differ by nothing but little noise; on a GPU each token is one recorded graph."""
    folder, _ = bench.model("opt")
    work = {"workload": Workload(1, 32, 16), "samples": 24, "phase_seconds": 4.0 if bench.gpu else 1.0}
    found = bench.latency(folder, "opt", "hf", **work)
    decode = next(one for one in found.differences if one.phase == "decode")
    numbers = {"ratio": decode.ratio, "low": decode.low, "high": decode.high}
    detail = f"{decode.ratio:.4f} [{decode.low:.4f}, {decode.high:.4f}], {found.kernel}"
    if not bench.gpu:  # times on a CPU that others use too say nothing of the program
        return None, detail, numbers
    quiet = decode.low <= 1 <= decode.high and decode.high - decode.low <= 0.03
    return quiet and GRAPH in found.kernel, detail, numbers
