"""From a manifest to its cells: every list swept, every setting resolved, every id computed. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench import environment, sources
from sparsebench.manifest import schema
from sparsebench.manifest.schema import Manifest, Model, Runtime, Sparsify, Task, is_nm, pattern_sparsity
from sparsebench.plan.cells import Cell, Stage, Variant
from sparsebench.plan.fingerprint import cell_id, variant_id
from sparsebench.runtime import hosts
from sparsebench.runtime.engines import engines
from sparsebench.sparsify.calibration import DEFAULT, Calibration
from sparsebench.sparsify.contract import Target
from sparsebench.sparsify.registry import methods, needs_calibration

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Plan:
    """Everything a manifest asks for, in the order in which it is done."""

    manifest: str
    models: tuple[Model, ...]
    dense: dict[str, Variant]
    cells: tuple[Cell, ...]
    calibration: Calibration
    allow_overlap: bool

    def model(self, name: str) -> Model:
        """The manifest's entry for a model."""
        return next(model for model in self.models if model.name == name)


def expand(manifest: Manifest, name: str, revisions: Mapping[str, str], text: str = "") -> Plan:
    """All cells of ``manifest``.

    ``revisions`` gives the fingerprint of each model's source by model name, ``text`` that of the calibration text.
    """
    dense = {model.name: _dense(model, revisions[model.name], manifest.seed) for model in manifest.models}
    calibration = resolved(manifest.calibration, manifest.seed)
    cells: list[Cell] = []
    for model in manifest.models:
        base = dense[model.name]
        for variant in [base, *_sparsified(manifest, model, base, calibration, text)]:
            cells += _cells_of(manifest, model, variant, base, calibration)
    return Plan(
        manifest=name,
        models=tuple(manifest.models),
        dense=dense,
        cells=tuple({cell.id: cell for cell in cells}.values()),
        calibration=calibration,
        allow_overlap=manifest.calibration.allow_overlap,
    )


def count(manifest: Manifest) -> int:
    """How many cells ``expand`` makes at most: as many where no ``runtime`` block is kept to some variants."""
    timed = 2 * sum(len(block.engines) * len(block.ranks) * len(block.workloads) for block in manifest.runtime or [])
    found = 0
    for model in manifest.models:
        entries = [entry for entry in manifest.sparsify if entry.models is None or model.name in entry.models]
        each = 3 + len(manifest.benchmarks.of(model.family)) + timed
        found += (1 + sum(map(_swept, entries))) * each
    return found


def _swept(entry: Sparsify) -> int:
    """How many ``targets`` an entry has."""
    shares = sum(1 if is_nm(pattern) else len(entry.sparsity or []) for pattern in entry.patterns)
    return len(entry.granularity or [None]) * len(entry.allocation) * shares


def resolved(calibration: schema.Calibration, seed: int) -> Calibration:
    """A manifest's calibration with its defaults filled in."""
    default = calibration.source is None
    source = DEFAULT.source if calibration.source is None else sources.parse(calibration.source).text
    column = calibration.field or (DEFAULT.field if default else None)
    return Calibration(source, calibration.samples, calibration.length, seed, column, calibration.target)


def described(calibration: Calibration) -> str:
    """A calibration in a line: ``SOURCE passage 128×2048 seed 0``."""
    source = calibration.source.partition("#sha256=")[0]
    size = f"{calibration.samples}×{calibration.length or 'longest'}"
    words = (source, calibration.field, calibration.target, size, f"seed {calibration.seed}")
    return " ".join(word for word in words if word)


def _dense(model: Model, revision: str, seed: int) -> Variant:
    source = str(model.source)
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


def _calculated(model: Model) -> dict[str, str]:
    """The precision of scores and calibration as a setting, where it is not simply the weights'."""
    dtype = environment.arithmetic(model.dtype, model.compute_dtype)
    return {} if dtype == model.dtype else {"compute_dtype": dtype}


def _sparsified(
    manifest: Manifest, model: Model, base: Variant, calibration: Calibration, text: str
) -> Iterator[Variant]:
    for entry in manifest.sparsify:
        if entry.models is not None and base.model not in entry.models:
            continue
        for target in targets(entry):
            identity = {"dense": base.id, **asdict(target), "seed": manifest.seed}
            # What came later is part of an id only where it is used, so that older results keep theirs.
            if target.allocation == "uniform":
                del identity["allocation"]
            if methods()[target.method].version > 1:
                identity["version"] = methods()[target.method].version
            made = replace(base, seed=manifest.seed, **asdict(target))
            if needs_calibration(target.method, target.allocation):
                made = replace(made, calibration=described(calibration), propagate=entry.propagate)
                identity |= {"calibration": made.calibration, "propagate": made.propagate, "text": text}
                identity |= _calculated(model)
            yield replace(made, id=variant_id(identity))


def targets(entry: Sparsify) -> Iterator[Target]:
    """Each version that a ``sparsify`` entry asks for."""
    for granularity in entry.granularity or methods()[entry.method].granularities[:1]:
        for allocation in entry.allocation:
            for pattern in entry.patterns:
                shares = [pattern_sparsity(pattern)] if is_nm(pattern) else entry.sparsity or []
                for sparsity in shares:
                    yield Target(entry.method, sparsity, granularity, pattern, allocation)


def _cells_of(
    manifest: Manifest, model: Model, variant: Variant, base: Variant, calibration: Calibration
) -> Iterator[Cell]:
    def cell(stage: Stage, settings: dict[str, Any]) -> Cell:
        return Cell(cell_id(stage, variant.id, settings), stage, variant, settings)

    if not variant.is_dense:
        read: dict[str, Any] = {"samples": calibration.samples, "length": calibration.length}
        yield cell("sparsify", read | _calculated(model) if variant.calibration else {})
    if manifest.structure:
        yield cell("structure", manifest.structure.model_dump())
    if manifest.storage:
        yield cell("storage", {"formats": sorted(manifest.storage.formats)})
    for task in manifest.benchmarks.of(model.family) if variant.weights != "random" else []:
        if task.models is None or model.name in task.models:
            yield cell("benchmarks", _task_settings(task, model))
    for runtime in manifest.runtime or []:
        for engine in runtime.engines if _measured(runtime, variant) else []:
            for ranks in _ranks(engine, runtime.ranks):
                placed = _placed(runtime, ranks)
                for workload in runtime.workloads:
                    shared: dict[str, Any] = {
                        "engine": engine,
                        "ranks": ranks,
                        "workload": workload.model_dump(),
                    } | placed
                    # What other nodes emulate is not known here: `auto` stays the weights' precision.
                    shared["dtype"] = runtime.dtype if placed else environment.running(model.dtype, runtime.dtype)
                    timed = {"samples": runtime.samples, "against": base.id}
                    # What such an engine is measured beside has changed: once it was the dense model in itself.
                    timed |= {"baseline": "plain"} if engines()[engine].beside_plain else {}
                    yield cell("latency", shared | timed)
                    yield cell("memory", shared)


def _task_settings(task: Task, model: Model) -> dict[str, Any]:
    labels = {"labels": list(model.labels)} if model.labels else {}
    batch = {} if task.batch == "auto" else {"batch": task.batch}
    return task.model_dump(include={"task", "limit", "num_fewshot"}) | labels | batch | _calculated(model)


def _ranks(engine: str, asked: list[int]) -> list[int]:
    """Beside one rank, more are for engines that shard. Asked for alone they stay: the cell then says why it cannot be."""
    return [1] if 1 in asked and not engines()[engine].shards else asked


def _placed(runtime: Runtime, ranks: int) -> dict[str, Any]:
    """The nodes that several ranks are started on as a setting, where there is a hostfile."""
    if runtime.hostfile is None or ranks == 1:
        return {}
    return {"hosts": [list(host) for host in hosts.share(hosts.read(Path(runtime.hostfile)), ranks)]}


def _measured(runtime: Runtime, variant: Variant) -> bool:
    if runtime.models is not None and variant.model not in runtime.models:
        return False
    if variant.is_dense:
        return True
    asked = (
        (runtime.sparsity, variant.sparsity),
        (runtime.methods, variant.method),
        (runtime.granularity, variant.granularity),
    )
    return all(wanted is None or value in wanted for wanted, value in asked)
