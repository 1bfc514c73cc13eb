"""Checks of models that run: each engine gives the plain model's outputs, ranks share a model, and what cannot go on says so."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sparsebench import devices
from sparsebench.errors import MeasureError, SparsebenchError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.shape.topology import parts
from sparsebench.run.gpu.bench import Bench, CheckResult, CheckSkipped, output_distance
from sparsebench.runtime import MemoryResult, Workload
from sparsebench.runtime.footprint import working_bytes
from sparsebench.runtime.graphs import GRAPH
from sparsebench.runtime.group import RankGroup, check_all_reduce
from sparsebench.runtime.results import RankJob
from sparsebench.steps.contract import Context
from sparsebench.steps.registry import kinds, single

TOLERANCE = 1e-4
SHARE_TOLERANCE, SHARDED = 0.1, 0.7
"""How far a rank's share of the blocks may be from an equal one, relatively; the most of a model that ZeRO-3 may hold on
one GPU."""
NOISE = 0.03
"""The widest interval of the ratio of a model to its copy."""
NAMED_SECONDS, KEPT_BYTES = 10, 2**28
"""How soon a dead rank must be named, and how much GPU memory a killed group may keep."""


def one_rank(bench: Bench) -> CheckResult:
    """Check that every family under ``deepspeed``, with a decode from a cache, gives the plain outputs."""
    results = {name: bench.memory(name, "deepspeed") for name in ("deberta", "bert", "opt", "t5")}
    numbers = {name: output_distance(result) for name, result in results.items()}
    device_kinds = {result.device for result in results.values()}
    return max(numbers.values()) <= TOLERANCE and device_kinds == {bench.device.partition(":")[0]}, numbers


def tensor_parallel(bench: Bench) -> CheckResult:
    """Check DeepSpeed at several ranks: the same output, and for each rank its share of the blocks and its own GPU."""
    numbers: dict[str, Any] = {}
    passed = True
    for ranks in bench.rank_counts():
        gpus = {message["gpu"] for message in check_all_reduce(bench.setting("deepspeed", ranks))}
        numbers[f"GPUs of {ranks} ranks"] = len(gpus - {""})
        passed &= not bench.gpu or len(gpus) == ranks
    for name in ("opt", "t5", "deberta"):
        whole_model = bench.memory(name, "deepspeed")
        for ranks in bench.rank_counts():
            result = bench.memory(name, "deepspeed", ranks)
            distance, share = output_distance(result), _share_of_blocks(bench, name, whole_model, result)
            numbers |= {f"{name} x{ranks}": distance, f"{name} x{ranks} share": share}
            passed &= distance <= TOLERANCE and abs(share * ranks - 1) <= SHARE_TOLERANCE
    return passed, numbers


def _share_of_blocks(bench: Bench, name: str, whole_model: MemoryResult, result: MemoryResult) -> float:
    """Return the share of the blocks' matrices on the fullest rank: all it holds, less what every rank has whole."""
    folder, family = bench.model(name)
    checkpoint = Checkpoint(folder)
    sizes = {key: info.nbytes for key, info in checkpoint.tensors.items()}
    sharded_bytes = sum(sizes[part.name] for part in parts(checkpoint, family).values() if part.prunable)
    # Where several ranks share a model, a head that is tied to the embedding gets a matrix of its own.
    ties_head = family != "encoder" and "lm_head.weight" not in sizes
    vocabulary = checkpoint.config["vocab_size"]
    head_bytes = (
        max(sizes[key] for key, info in checkpoint.tensors.items() if info.shape[0] == vocabulary) if ties_head else 0
    )
    alone_bytes, shared_bytes = (max(row.tensor_bytes for row in memory.per_rank) for memory in (whole_model, result))
    return 1 - (alone_bytes + head_bytes - shared_bytes) / sharded_bytes


def zero3(bench: Bench) -> CheckResult:
    """Check ZeRO-3: the same output, and never most of the model on one GPU.

    A GPU also holds what it gathers ahead, and the tied embedding.
    """
    folder, _ = bench.model("opt")
    model_bytes = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    numbers: dict[str, Any] = {}
    passed = True
    for ranks in (1, 2)[: bench.ranks]:
        result = bench.memory("opt", "deepspeed-zero3", ranks)
        share = max(memory.cuda_allocated_bytes or 0 for memory in result.per_rank) / model_bytes
        numbers |= {f"x{ranks} off": output_distance(result), f"x{ranks} share": share}
        passed &= output_distance(result) <= TOLERANCE and share < SHARDED
    return passed, numbers


def sparse(bench: Bench) -> CheckResult:
    """Check that the sparse engine uses a sparse kernel and is right: 2:4 on a GPU, most weights zero on a CPU."""
    result = bench.latency(_pruned_opt(bench), "opt", "sparse", workload=Workload(1, 128, 4))
    used = ("2:4" in result.kernel) if bench.gpu else not result.kernel.startswith("dense")
    passed = result.parity is not None and output_distance(result) <= result.parity.tolerance
    ratios = {f"{difference.phase} / dense": difference.ratio for difference in result.differences}
    return used and passed, {"kernel": result.kernel, "off": output_distance(result), **ratios}


def _pruned_opt(bench: Bench) -> Path:
    """Prune OPT by magnitude, to 2:4 for a GPU, and return the folder of the result."""
    folder, family = bench.model("opt")
    settings: dict[str, Any] = {"pattern": "2:4"} if bench.gpu else {"sparsity": 0.9}
    out, step = bench.folder / "opt-pruned", single("prune", "magnitude", **settings)

    def emit(_: Any, outcome: Any) -> None:
        if isinstance(outcome, SparsebenchError):
            raise outcome

    kinds()["prune"].load()(folder, {step: out}, Context(family), emit)
    return out


def against_itself(bench: Bench) -> CheckResult:
    """Check that a model and its copy differ by nothing but little noise, each token being one recorded graph."""
    bench.need_gpu()  # times on a CPU that others use too say nothing of the program
    folder, _ = bench.model("opt")
    result = bench.latency(folder, "opt", "hf", workload=Workload(1, 32, 16), samples=24, phase_seconds=4.0)
    decode = next(difference for difference in result.differences if difference.phase == "decode")
    quiet = decode.low <= 1 <= decode.high and decode.high - decode.low <= NOISE
    numbers = {"ratio": decode.ratio, "low": decode.low, "high": decode.high, "kernel": result.kernel}
    return quiet and GRAPH in result.kernel, numbers


def killed(bench: Bench) -> CheckResult:
    """Check that a rank killed while another waits for it is named at once, and that its GPU memory is freed."""
    ranks = bench.rank_counts()[0]
    folder, family = bench.model("opt")
    job = asdict(RankJob("latency", family, variants=(str(folder),), dense=str(folder)))
    free_before, killed_at = devices.free_memory(bench.device) or 0, 0.0
    try:
        with RankGroup(job, bench.setting("deepspeed", ranks, phase_seconds=2.0, samples=10_000)) as group:
            for event in group.messages():
                if event["kind"] == "progress" and not killed_at:
                    killed_at = time.monotonic()
                    os.kill(group.local_ranks.processes[1].pid, signal.SIGKILL)
    except MeasureError as error:
        if not killed_at:  # the ranks failed before one was killed
            raise
        seconds, message = time.monotonic() - killed_at, error.message.splitlines()[0]
        kept_bytes = free_before - (devices.free_memory(bench.device) or 0)  # a process left behind would hold more
        return f"rank 1 of {ranks} died of SIGKILL" in message and seconds <= NAMED_SECONDS and kept_bytes < KEPT_BYTES, {
            "said": message, "seconds": seconds, "kept_bytes": kept_bytes,
        }  # fmt: skip
    return False, {"said": "nothing"}


def too_large(bench: Bench) -> CheckResult:
    """Check that what cannot fit is refused before it starts, with a way out, and that such a pair is timed apart."""
    bench.need_gpu()
    folder, _ = bench.model("opt")
    needed_bytes, hint = working_bytes(folder, bench.setting("hf")), ""
    with memory_limited_to(bench, int(0.5 * needed_bytes)):
        try:
            bench.memory("opt", "hf")
        except MeasureError as error:
            hint = error.hint or ""
    with memory_limited_to(bench, int(1.9 * needed_bytes)):
        baseline = bench.latency(folder, "opt", "hf").baseline
    return "more ranks" in hint and baseline == "unpaired", {"hint": hint, "baseline": baseline}


@contextmanager
def memory_limited_to(bench: Bench, size: int) -> Iterator[None]:
    """Take the GPU's memory but for ``size`` bytes. Raises CheckSkipped where the driver does not say what is free."""
    torch.cuda.empty_cache()
    free_bytes = devices.free_memory(bench.device, 1)
    if free_bytes is None:
        raise CheckSkipped("the driver does not report free memory")
    ballast = torch.empty(free_bytes - size, dtype=torch.uint8, device=bench.device)
    try:
        yield
    finally:
        del ballast
        torch.cuda.empty_cache()
