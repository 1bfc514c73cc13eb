"""From a manifest to its cells: every list swept, every setting resolved, every id computed. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sparsebench.manifest.schema import Manifest, Model, Sparsify, Task, pattern_sparsity
from sparsebench.plan.cells import Cell, Stage, Variant
from sparsebench.plan.fingerprint import cell_id, variant_id

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Plan:
    """Everything a manifest asks for, in the order in which it is done."""

    manifest: str
    models: tuple[Model, ...]
    dense: dict[str, Variant]
    cells: tuple[Cell, ...]

    def model(self, name: str) -> Model:
        """The manifest's entry for a model."""
        return next(model for model in self.models if model.name == name)


def expand(manifest: Manifest, name: str, revisions: Mapping[str, str]) -> Plan:
    """All cells of ``manifest``; ``revisions`` gives the fingerprint of each model's source by model name."""
    dense = {model.name: _dense(model, revisions[model.name], manifest.seed) for model in manifest.models}
    cells: list[Cell] = []
    for model in manifest.models:
        base = dense[model.name]
        for variant in [base, *_sparsified(manifest, model, base)]:
            cells += _cells_of(manifest, model, variant, base)
    return Plan(name, tuple(manifest.models), dense, tuple({cell.id: cell for cell in cells}.values()))


def _dense(model: Model, revision: str, seed: int) -> Variant:
    source = model.source if isinstance(model.source, str) else " + ".join(model.source.get("wheel", []))
    drawn = seed if source == "random" else DEFAULT_SEED
    identity: dict[str, Any] = {"revision": revision, "family": model.family, "dtype": model.dtype, "method": "dense"}
    if source == "random":
        identity |= {"architecture": model.architecture, "seed": drawn}
    return Variant(
        id=variant_id(identity),
        model=model.name,
        family=model.family,
        source=source,
        revision=revision,
        weights=_weights(source),
        dtype=model.dtype,
        seed=drawn,
    )


def _weights(source: str) -> str:
    if source == "random":
        return "random"
    return "dequantized" if ".gguf" in source.lower() else "real"


def _sparsified(manifest: Manifest, model: Model, base: Variant) -> Iterator[Variant]:
    for entry in manifest.sparsify:
        if entry.models is not None and model.name not in entry.models:
            continue
        for granularity, pattern, sparsity in targets(entry):
            identity = {
                "dense": base.id,
                "method": entry.method,
                "granularity": granularity,
                "pattern": pattern,
                "sparsity": sparsity,
                "seed": manifest.seed,
            }
            yield Variant(
                id=variant_id(identity),
                model=model.name,
                family=model.family,
                source=base.source,
                revision=base.revision,
                weights=base.weights,
                dtype=model.dtype,
                method=entry.method,
                granularity=granularity,
                pattern=pattern,
                sparsity=sparsity,
                seed=manifest.seed,
            )


def targets(entry: Sparsify) -> Iterator[tuple[str, str, float]]:
    """(granularity, pattern, sparsity) of each version that a ``sparsify`` entry asks for."""
    for granularity in entry.granularity:
        for pattern in entry.pattern:
            if pattern == "unstructured":
                for sparsity in entry.sparsity or []:
                    yield granularity, pattern, sparsity
            else:
                yield granularity, pattern, pattern_sparsity(pattern)


def _cells_of(manifest: Manifest, model: Model, variant: Variant, base: Variant) -> Iterator[Cell]:
    def cell(stage: Stage, settings: dict[str, Any]) -> Cell:
        return Cell(cell_id(stage, variant.id, settings), stage, variant, settings)

    if not variant.is_dense:
        yield cell("sparsify", {})
    if manifest.structure:
        yield cell("structure", manifest.structure.model_dump())
    if manifest.storage:
        yield cell("storage", {"formats": sorted(manifest.storage.formats)})
    for task in manifest.benchmarks.of(model.family) if variant.weights != "random" else []:
        if task.models is None or model.name in task.models:
            yield cell("benchmarks", _task_settings(task, model))
    if manifest.runtime and _measured(manifest, variant):
        for engine in manifest.runtime.engines:
            for ranks in manifest.runtime.ranks:
                for workload in manifest.runtime.workloads:
                    shared = {"engine": engine, "ranks": ranks, "workload": workload.model_dump(), "dtype": model.dtype}
                    yield cell("latency", {**shared, "samples": manifest.runtime.samples, "against": base.id})
                    yield cell("memory", shared)


def _task_settings(task: Task, model: Model) -> dict[str, Any]:
    labels = {"labels": list(model.labels)} if model.labels else {}
    return task.model_dump(include={"task", "limit", "num_fewshot"}) | labels


def _measured(manifest: Manifest, variant: Variant) -> bool:
    runtime = manifest.runtime
    assert runtime
    if variant.is_dense:
        return True
    return (runtime.sparsity is None or variant.sparsity in runtime.sparsity) and (
        runtime.methods is None or variant.method in runtime.methods
    )
