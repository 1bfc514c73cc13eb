"""Checks that several ranks share a model as their engine promises, and each its own GPU."""

from __future__ import annotations

from typing import Any

from sparsebench.run.acceptance.bench import Bench, CheckResult, off
from sparsebench.runtime import MemoryResult
from sparsebench.runtime.group import add_up


def tensor_parallel(bench: Bench) -> CheckResult:
    """Check DeepSpeed at several ranks: the same output, and for each rank its share of the blocks and its own GPU."""
    numbers: dict[str, Any] = {}
    alike = shared = True
    apart = all(
        not bench.gpu or len({told["gpu"] for told in add_up(bench.setting("deepspeed", ranks))}) == ranks
        for ranks in bench.several
    )
    for name in ("opt", "t5", "deberta"):
        whole = bench.memory(name, "deepspeed")
        for ranks in bench.several:
            found = bench.memory(name, "deepspeed", ranks)
            share = _share(bench, name, whole, found)
            numbers |= {f"{name} x{ranks}": off(found), f"{name} x{ranks} share": share}
            alike, shared = alike and off(found) <= 1e-4, shared and abs(share * ranks - 1) <= 0.1
    worst = max(value for key, value in numbers.items() if not key.endswith("share"))
    detail = f"outputs at most {worst:.1e} off, {'' if shared else 'not '}every rank holds its share of the blocks"
    return alike and shared and apart, detail + ("" if apart else "; two ranks on one GPU"), numbers


def _share(bench: Bench, name: str, whole: MemoryResult, found: MemoryResult) -> float:
    """Return the share of the blocks' matrices on the fullest rank: all it holds, less what every rank has whole."""
    from sparsebench.models.checkpoint import Checkpoint
    from sparsebench.models.topology import parts

    folder, family = bench.model(name)
    checkpoint = Checkpoint(folder)
    sizes = {key: info.nbytes for key, info in checkpoint.tensors.items()}
    cut = sum(sizes[one.name] for one in parts(checkpoint, family).values() if one.prunable)
    # Where several ranks share a model, a head that is tied to the embedding gets a matrix of its own.
    tied = family != "encoder" and "lm_head.weight" not in sizes
    rows = checkpoint.config["vocab_size"]
    head = max(sizes[key] for key, info in checkpoint.tensors.items() if info.shape[0] == rows) if tied else 0
    one, several = (max(row.tensor_bytes for row in result.per_rank) for result in (whole, found))
    return 1 - (one + head - several) / cut


def zero3(bench: Bench) -> CheckResult:
    """Check ZeRO-3: the same output, and never most of the model on one GPU.

    A GPU also holds what it gathers ahead, and the tied embedding.
    """
    folder, _ = bench.model("opt")
    whole = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    numbers: dict[str, Any] = {}
    right = True
    for ranks in (1, 2)[: bench.ranks]:
        found = bench.memory("opt", "deepspeed-zero3", ranks)
        peak = max(row.cuda_allocated_bytes or 0 for row in found.per_rank)
        numbers |= {f"x{ranks} off": off(found), f"x{ranks} share": peak / whole}
        right = right and off(found) <= 1e-4 and peak < 0.7 * whole
    told = ", ".join(f"{key} {value:.2g}" for key, value in numbers.items())
    return right, f"output distance (off), peak over model size (share): {told}", numbers
