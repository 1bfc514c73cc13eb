"""Records as a run leaves them: cells from the real plan, results in the real dataclasses, numbers made up but plausible."""

import json
import math
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from sparsebench import records
from sparsebench.benchmarks import Outcome, ScoreResult
from sparsebench.benchmarks.contract import mean_stderr
from sparsebench.benchmarks.statistics import average_precision, pooled
from sparsebench.manifest.schema import Manifest
from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.expand import Plan, expand
from sparsebench.runtime import results as runtime
from sparsebench.steps.contract import StepReport, TensorCount
from sparsebench.storage import Size, StorageResult
from sparsebench.structure import EDGES, StructureResult, TensorStructure
from sparsebench.structure.numbers import tensor_statistics

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPARSITIES = [0.1, 0.5, 0.9, 0.95, 0.99]
KINDS = ("q", "k", "v", "o", "gate", "up", "down")
TASKS = {
    "piqa": ("acc", 0.5, 0.68),
    "arc_easy": ("acc_norm", 0.25, 0.55),
    "mrpc_pair": ("ap", 0.68, 0.82),
    "sciq_retrieval": ("acc", 1 / 887, 0.9),
}
STRENGTH = {"magnitude": 1.0, "random": 0.25}


def manifest(**changes: Any) -> Manifest:
    """A small experiment with two models, two methods and a runtime."""
    wanted: dict[str, Any] = {
        "version": 1,
        "models": [
            {"name": "smol", "source": "path:smol", "family": "decoder", "dtype": "bfloat16"},
            {"name": "mini", "source": "path:mini", "family": "encoder", "dtype": "float32"},
        ],
        "variants": [
            {"prune": "magnitude", "granularity": ["layer", "global"], "sparsity": SPARSITIES},
            {"prune": "random", "sparsity": [0.5, 0.9]},
        ],
        "benchmarks": {
            "decoder": [{"task": "piqa", "limit": 200}, {"task": "arc_easy", "limit": 200}],
            "encoder": [{"task": "mrpc_pair"}],
        },
        "runtime": {
            "engines": ["deepspeed"],
            "ranks": [1, 2],
            "workloads": [{"prompt": 32, "generate": 8}],
            "select": {"prune": "magnitude"},
        },
    }
    return Manifest.model_validate(wanted | changes)


def small() -> Manifest:
    """Half of it: quick, and with everything in it once."""
    return manifest(
        variants=[
            {"prune": "magnitude", "granularity": ["layer"], "sparsity": [0.5, 0.9]},
            {"prune": "random", "sparsity": [0.9]},
        ]
    )


def plan(experiment: Manifest, name: str = "sample") -> Plan:
    """Its cells; the models need not exist."""
    return expand(experiment, name, {model.name: f"rev-{model.name}" for model in experiment.models})


def sample(experiment: Manifest | None = None, name: str = "sample") -> list[dict[str, Any]]:
    """The plan's record and one record a cell, seconds apart, as JSON gives them back."""
    made = plan(experiment or manifest(), name)
    found: list[dict[str, Any]] = [plan_record(made)]
    for number, cell in enumerate(made.cells):
        outcome = records.CellOutcome("done", asdict(result(cell)), None, START + timedelta(seconds=number), 1.5)
        found.append(records.make(cell, name, outcome, "cpu"))
    return json.loads(json.dumps(found))


def plan_record(made: Plan, written_at: datetime = START) -> dict[str, Any]:
    """What `records.write_plan` stores."""
    cells = [
        {
            "cell_id": c.id,
            "key": records.record_key(c, "cpu"),
            "stage": c.stage,
            "label": c.label,
            "settings": c.settings,
            "variant": c.variant.record(),
        }
        for c in made.cells
    ]
    return {
        "format": 2,
        "kind": "plan",
        "manifest": made.manifest,
        "machine": "",
        "written_at": written_at.isoformat(),
        "cells": cells,
    }


def result(cell: Cell) -> Any:
    """A result of the cell's stage."""
    makers = {
        "make": sparsified,
        "structure": structured,
        "storage": stored,
        "benchmarks": scored,
        "latency": timed,
        "memory": weighed,
    }
    return makers[cell.stage](cell)


def sparsified(cell: Cell) -> StepReport:
    gone, side = round(4096 * cell.variant.pruning_setting("sparsity")), cell.variant.family
    places = [(layer, kind) for layer in range(4) for kind in KINDS]
    tensors = tuple(TensorCount(f"layers.{n}.{kind}.weight", n, side, kind, 4096, gone) for n, kind in places)
    prunable, zeros = sum(t.count for t in tensors), sum(t.zeros for t in tensors)
    return StepReport(
        prunable, zeros, 2 * prunable, zeros, zeros / prunable, zeros / prunable / 2, 3.0, 5, 10**8, tensors
    )


def structured(cell: Cell) -> StructureResult:
    generator = _generator(cell.variant.model)
    absolute, relative = cell.settings["absolute"], cell.settings["relative"]
    tensors = []
    for layer in range(12 if cell.variant.model == "smol" else 6):
        for kind in KINDS:
            weights = generator.standard_t(4 + 8 * (kind in "qk"), 2048) * (0.02 + 0.002 * layer)
            uneven = cell.variant.pruning_setting("granularity") == "global" or cell.variant.method == "random"
            _prune(weights, max(0.0, cell.variant.pruning_setting("sparsity") - 0.05 * uneven * (layer % 2)))
            name, side = f"layers.{layer}.{kind}.weight", cell.variant.family
            tensors.append(_tensor(name, layer, kind, weights, (absolute, relative), side))
    tensors.append(_tensor("embed.weight", None, "embedding", generator.normal(size=8192), (absolute, relative), ""))
    return StructureResult(cell.variant.family, tuple(absolute), tuple(relative), EDGES, tuple(tensors))


def _tensor(name: str, layer: int | None, kind: str, weights: Any, thresholds: Any, side: str) -> TensorStructure:
    found = tensor_statistics(weights.astype(np.float32).view(np.uint8), "F32", *thresholds)
    return TensorStructure(
        **vars(found),
        name=name,
        layer=layer,
        side=side,
        kind=kind,
        prunable=layer is not None,
        dtype="F32",
        shape=weights.shape,
    )


def _prune(weights: Any, sparsity: float) -> None:
    weights[np.argsort(np.abs(weights))[: round(sparsity * weights.size)]] = 0


def stored(cell: Cell) -> StorageResult:
    sparsity, n = cell.variant.pruning_setting("sparsity"), 100_000_000
    entropy = -sum(p * math.log2(p) for p in (sparsity, 1 - sparsity) if p)
    dense, raw = 2 * n, n * (entropy / 8 + 2 * (1 - sparsity))
    packed = int(min(n / 8, n * 1.2 * (1 - sparsity)) + 2 * n * (1 - sparsity)) if sparsity else dense
    sizes = [
        Size("dense", dense + 60_000_000, dense, 0.0, None),
        Size("packed", packed + 60_000_000, packed, 1.2, True),
    ]
    kept = tuple(size for size in sizes if size.format in cell.settings["formats"])
    return StorageResult(kept, n, round(n * (1 - sparsity)), raw, raw * 0.8, 60_000_000, dense + 63_000_000)


def skill(variant: Variant) -> float:
    """What is left of a model: 1 at sparsity 0, falling off a cliff that a better method reaches later."""
    strength = STRENGTH.get(variant.method, 0.9) * (1.1 if variant.pruning_setting("granularity") == "global" else 1.0)
    return (
        1
        / (1 + math.exp(12 * (variant.pruning_setting("sparsity") - 0.45 - 0.25 * strength)))
        / (1 / (1 + math.exp(-12 * (0.45 + 0.25 * strength))))
    )


def scored(cell: Cell) -> ScoreResult:
    task = cell.settings["task"]
    metric, chance, dense = TASKS[task]
    n = cell.settings["limit"] or 400
    shared, own = _generator(cell.variant.model + task), _generator(lasting_name(cell))
    mixed = 0.85 * shared.normal(size=n) + 0.53 * own.normal(size=n)
    if metric == "ap":
        labels = (shared.random(n) < chance).astype(float)
        values = labels * 1.2 * skill(cell.variant) + mixed
        score, stderr = pooled(average_precision, values, labels)
        outcomes = [
            Outcome(str(i), f"h{i}", float(v), float(y)) for i, (v, y) in enumerate(zip(values, labels, strict=True))
        ]
    else:
        from statistics import NormalDist

        threshold = NormalDist().inv_cdf(chance + (dense - chance) * skill(cell.variant))
        right = mixed < threshold
        score, stderr = float(right.mean()), mean_stderr(right.astype(float).tolist())
        outcomes = [Outcome(str(i), f"h{i}", float(value)) for i, value in enumerate(right)]
    protocol: dict[str, str | int | float] = {"split": "validation", "batch_size": 8}
    return ScoreResult(task, metric, score, stderr, n, bool(cell.settings["limit"]), chance, tuple(outcomes), protocol)


def timed(cell: Cell) -> runtime.LatencyResult:
    generator = _generator(lasting_name(cell))
    phases = ("forward",) if cell.variant.family == "encoder" else ("prefill", "decode", "generate")
    base = {"forward": 0.012, "prefill": 0.09, "decode": 0.021, "generate": 0.25}
    ranks = cell.settings["ranks"]
    summaries, differences, samples = [], [], []
    for phase in phases:
        for side in ("dense", "variant"):
            walls = base[phase] / ranks**0.4 * (1 + 0.02 * generator.normal(size=24))
            low, high = np.quantile(walls, [0.3, 0.7])
            middle = float(np.median(walls))
            interval = (middle, float(low), float(high))
            summaries.append(runtime.PhaseSummary(phase, side, *interval, 0.0003, 24, True, 2 * middle, None))
            samples += [
                runtime.TimingSample(phase, side, i // 6, i % 6, float(wall), 2 * float(wall))
                for i, wall in enumerate(walls)
            ]
        gain = 1.4 if cell.settings["engine"] == "sparse" and cell.variant.pruning_setting("sparsity") else 1.0
        ratio = gain * float(np.exp(0.01 * generator.normal()))
        several = (4, 0.02, 0.01) if ranks == 1 else (1, None, None)
        differences.append(runtime.PhaseDifference(phase, ratio, ratio * 0.97, ratio * 1.03, 4, *several))
    return runtime.LatencyResult(
        **ran(cell, 2 // ranks),
        baseline="paired",
        phases=tuple(summaries),
        differences=tuple(differences),
        samples=tuple(samples),
        notes=("a note",),
        read_bytes_per_second=30e9,
    )


def ran(cell: Cell, threads: int) -> dict[str, Any]:
    """What times and memory say of how they were measured."""
    ranks, state = cell.settings["ranks"], runtime.Machine(0.5, 2, 2, threads, "")
    where = {"kernel": "AutoTP", "ranks": ranks, "threads": threads, "device": "cpu", "dtype": "bfloat16"}
    parity = runtime.Parity(1e-6, 1e-4, "float32", 0, ranks == 1)
    return {"engine": cell.settings["engine"], **where, "parity": parity, "before": state, "after": state}


def weighed(cell: Cell) -> runtime.MemoryResult:
    ranks = cell.settings["ranks"]
    names = ("load", "forward") if cell.variant.family == "encoder" else ("load", "prefill", "decode", "generate")
    size = 9 * 10**7 if cell.variant.family == "encoder" else 3 * 10**8
    each = [
        runtime.RankMemory(rank, name, size + 4 * 10**8, size // ranks, size, size, size // ranks, 4 * 10**8, 0)
        for name in names
        for rank in range(ranks)
    ]
    phases = tuple(runtime.PhaseMemory(name, size + 10**7 * ranks) for name in names)
    peak = size + 10**7 * ranks
    return runtime.MemoryResult(
        **ran(cell, 1), source="VmHWM less baseline", peak_bytes=peak, phases=phases, per_rank=tuple(each), notes=()
    )


def lasting_name(cell: Cell) -> str:
    """What is measured, whatever the libraries' versions: draws that follow ``cell.id`` would change with a release."""
    what = [cell.stage, cell.variant.model, cell.variant.recipe, cell.variant.seed, cell.settings]
    return json.dumps(what, sort_keys=True)


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(list(key.encode()))
