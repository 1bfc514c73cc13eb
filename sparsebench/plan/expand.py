"""From a manifest to its cells: every list swept, every setting resolved, every id computed. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.manifest import schema
from sparsebench.manifest.recipes import chain_of, models_of, named, swept
from sparsebench.manifest.schema import Manifest, Model, Runtime, Task
from sparsebench.plan.cells import Cell, Stage, Variant
from sparsebench.plan.fingerprint import cell_id, dense_id, step_id
from sparsebench.runtime import hosts
from sparsebench.runtime.engines import engines
from sparsebench.steps.calibration import DEFAULT, Calibration
from sparsebench.steps.contract import Step, of_file
from sparsebench.steps.registry import combinations, kinds

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Plan:
    """Everything a manifest asks for, in the order in which it is done.

    ``variants`` are all that must be made, by id, those that only others are made from among them.
    """

    manifest: str
    models: tuple[Model, ...]
    dense: dict[str, Variant]
    variants: dict[str, Variant]
    cells: tuple[Cell, ...]
    calibration: Calibration
    allow_overlap: bool

    def model(self, name: str) -> Model:
        """The manifest's entry for a model."""
        return next(model for model in self.models if model.name == name)


@dataclass(frozen=True)
class Texts:
    """The fingerprint of what steps read beside the model and the files that they name: the calibration text."""

    calibration: str = ""


def expand(manifest: Manifest, name: str, revisions: Mapping[str, str], texts: Texts = Texts()) -> Plan:
    """All cells of ``manifest``; ``revisions`` gives the fingerprint of each model's source by model name.

    The ends of recipes are measured; what only others are made from is made, and no more.
    """
    dense = {model.name: _dense(model, revisions[model.name], manifest.seed) for model in manifest.models}
    calibration = resolved(manifest.calibration, manifest.seed)
    variants: dict[str, Variant] = {}
    cells: list[Cell] = []
    for model in manifest.models:
        base = dense[model.name]
        chains = [chain for entry in manifest.variants if _meant(entry, model) for chain in recipes(entry)]
        lines = [[base], *(_line(manifest, model, base, chain, calibration, texts) for chain in chains)]
        ends = dict.fromkeys(line[-1].id for line in lines)
        made = {variant.id: variant for line in lines for variant in line}
        variants |= made
        for variant in made.values():
            if not variant.is_dense:
                read = {"samples": calibration.samples, "length": calibration.length, **_precision(model)}
                settings = read if kinds()[variant.steps[-1].verb].reads_text(variant.steps[-1]) else {}
                cells.append(Cell(cell_id("make", variant.id, settings), "make", variant, settings))
            if variant.id in ends:
                cells += _measurements(manifest, model, variant)
    return Plan(
        manifest=name,
        models=tuple(manifest.models),
        dense=dense,
        variants=variants,
        cells=tuple({cell.id: cell for cell in cells}.values()),
        calibration=calibration,
        allow_overlap=manifest.calibration.allow_overlap,
    )


def recipes(entry: Any) -> Iterator[tuple[Step, ...]]:
    """Each recipe that an entry of ``variants`` asks for: every combination of its steps' settings."""
    written = [(*named(step, kinds()), step) for step in chain_of(entry)]
    yield from product(*([*combinations(verb, name, _settings(verb, step))] for verb, name, step in written))


def _settings(verb: str, step: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in step.items() if key not in (verb, "models")}


def _meant(entry: Any, model: Model) -> bool:
    """Whether an entry is for this model."""
    only = models_of(entry)
    return only is None or model.name in only


def count(manifest: Manifest) -> int:
    """How many cells ``expand`` makes at most: as many where nothing is kept to some variants."""
    timed = 2 * sum(len(block.engines) * len(block.ranks) * len(block.workloads) for block in manifest.runtime or [])
    found = 0
    for model in manifest.models:
        made = sum(swept(entry) for entry in manifest.variants if _meant(entry, model))
        found += (1 + made) * (3 + len(manifest.benchmarks.of(model.family)) + timed)
    return found


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
    identity: dict[str, Any] = {"revision": revision, "family": model.family, "dtype": model.dtype}
    if source == "random":
        identity |= {"architecture": model.architecture, "seed": drawn}
    weights = "random" if source == "random" else "dequantized" if ".gguf" in source.lower() else "real"
    return Variant(
        id=dense_id(identity, weights),
        model=model.name,
        family=model.family,
        source=source,
        revision=revision,
        weights=weights,
        dtype=model.dtype,
        seed=drawn,
    )


def _line(
    manifest: Manifest, model: Model, base: Variant, chain: Sequence[Step], calibration: Calibration, texts: Texts
) -> list[Variant]:
    """The variants of one recipe, one a step."""
    line: list[Variant] = []
    last = base
    for step in chain:
        kind = kinds()[step.verb]
        reads = kind.reads_text(step)
        text = asdict(calibration) | {"source": texts.calibration} | _precision(model) if reads else {}
        files = {key: of_file(step.settings[key])[1] for key in kind.files if step.settings.get(key)}
        last = replace(
            last,
            id=step_id(last.id, step, manifest.seed, text, files),
            seed=manifest.seed,
            calibration=described(calibration) if reads else last.calibration,
            steps=(*last.steps, step),
            parents=(*last.parents, last.id),
        )
        line.append(last)
    return line


def _precision(model: Model) -> dict[str, str]:
    """The precision of scores and calibration as a setting, where one was asked for: what ``auto`` is depends on the machine."""
    return {} if model.compute_dtype == "auto" else {"compute_dtype": model.compute_dtype}


def _measurements(manifest: Manifest, model: Model, variant: Variant) -> Iterator[Cell]:
    def cell(stage: Stage, settings: dict[str, Any]) -> Cell:
        return Cell(cell_id(stage, variant.id, settings), stage, variant, settings)

    if manifest.structure:
        yield cell("structure", manifest.structure.model_dump())
    if manifest.storage:
        yield cell("storage", {"formats": sorted(manifest.storage.formats)})
    for task in manifest.benchmarks.of(model.family) if variant.weights != "random" else []:
        if (task.models is None or model.name in task.models) and _selected(task.select, variant):
            yield cell("benchmarks", _task_settings(task, model))
    for runtime in manifest.runtime or []:
        if (runtime.models is not None and model.name not in runtime.models) or not _selected(runtime.select, variant):
            continue
        for engine in runtime.engines:
            for ranks in _ranks(engine, runtime.ranks):
                for workload in runtime.workloads:
                    shared: dict[str, Any] = {"engine": engine, "ranks": ranks, "workload": workload.model_dump()}
                    shared |= _placed(runtime, ranks) | {"dtype": runtime.dtype}
                    yield cell("latency", shared | {"samples": runtime.samples})
                    yield cell("memory", shared)


def _task_settings(task: Task, model: Model) -> dict[str, Any]:
    labels = {"labels": list(model.labels)} if model.labels else {}
    batch = {} if task.batch == "auto" else {"batch": task.batch}
    return task.model_dump(include={"task", "limit", "num_fewshot"}) | labels | batch | _precision(model)


def _ranks(engine: str, asked: list[int]) -> list[int]:
    """Beside one rank, more are for engines that shard. Asked for alone they stay: the cell then says why it cannot be."""
    return [1] if 1 in asked and not engines()[engine].shards else asked


def _placed(runtime: Runtime, ranks: int) -> dict[str, Any]:
    """The nodes that several ranks are started on as a setting, where there is a hostfile."""
    if runtime.hostfile is None or ranks == 1:
        return {}
    return {"hosts": [list(host) for host in hosts.share(hosts.read(Path(runtime.hostfile)), ranks)]}


def _selected(wanted: Sequence[Mapping[str, Any]] | None, variant: Variant) -> bool:
    """Whether any of the selections fits, which the dense model always does."""
    if wanted is None or variant.is_dense:
        return True
    return any(all(fits(variant, key, value) for key, value in one.items()) for one in wanted)


def fits(variant: Variant, key: str, wanted: Any) -> bool:
    """Whether a step of the variant has one of the ``wanted`` values in the field ``key``, or is a ``key`` so named."""
    values = wanted if isinstance(wanted, list) else [wanted]
    return any(_equal(own, value) for own in variant.values(key) for value in values)


def _equal(own: Any, wanted: Any) -> bool:
    numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in (own, wanted))
    return abs(own - wanted) < 1e-9 if numbers else bool(own == wanted)
