"""Checks whether what a manifest names fits together: models with steps, tasks and teachers, texts with benchmarks.

All of it by config.json and by fingerprints, before any weight is fetched; and which cells the engines, the device or
the executor cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sparsebench import benchmarks, devices, environment, sources
from sparsebench.benchmarks.heads import data_misfit, fitting_tasks, missing_head
from sparsebench.errors import Refusal
from sparsebench.manifest.load import LoadedManifest
from sparsebench.manifest.names import FAMILIES
from sparsebench.manifest.nodes import KeyPath, flow
from sparsebench.manifest.problems import Problem, one_of
from sparsebench.manifest.recipes import is_for, steps_of
from sparsebench.manifest.schema import (
    Manifest,
    ManifestBenchmarks,
    ManifestModel,
    ManifestRuntime,
    ManifestTask,
    as_list,
)
from sparsebench.models.files.families import MODEL_TYPES, dimensions, family_of, unknown_type
from sparsebench.models.files.quantized import FLOAT, KEY
from sparsebench.models.files.text import limit_below, same_tokens
from sparsebench.models.shape.topology import CHOOSE_MAGNITUDE, NOT_REPLAYED, replay_refusal
from sparsebench.plan.cells import Cell
from sparsebench.plan.checks import families_against_configs
from sparsebench.plan.expand import Plan
from sparsebench.plan.fingerprint import digest
from sparsebench.plan.resolve import Resolved
from sparsebench.plan.selection import selects
from sparsebench.plan.stages import block_of, own_data_of
from sparsebench.runtime import Setting, Workload, engine_refusal, position_refusal
from sparsebench.sources import Cache
from sparsebench.steps.contract import Step

Recipes = Sequence[Sequence[tuple[Step, ...]]]
"""The recipes of each entry of ``variants``, written out."""
Configs = Mapping[str, Mapping[str, Any]]
"""The config.json of each model, by its name."""
OTHER_MODELS = "keep this entry to other `models:`"
SELECTION_HINT = "a setting counts at the step whose verb is named; to match either of two, write a list of selections"


@dataclass(frozen=True)
class FitCheck:
    """Checks what a manifest names, one against another, each at its line.

    ``manifest`` is the one before its names were ``resolved``, ``recipes_by_entry`` are its recipes.
    """

    loaded: LoadedManifest
    manifest: Manifest
    recipes_by_entry: Recipes
    resolved: Resolved
    cache: Cache

    def problems(self) -> Iterator[Problem]:
        """Yield every problem."""
        yield from families_against_configs(self.loaded, self.configs)
        yield from self._same_checkpoint()
        yield from self._quantized_models()
        yield from self._unknown_models()
        yield from self._unfit_steps()
        if self.manifest is self.loaded.manifest:  # a rehearsal leaves variants out
            yield from self._empty_selections()
        yield from self._long_texts()
        if not self.manifest.calibration.allow_overlap:
            yield from self._overlaps()
        yield from self._unfit_teachers()
        yield from self._unfit_students()
        yield from unfit_tasks(self.loaded, self.manifest, self.resolved.manifest.benchmarks, self.configs)

    @property
    def configs(self) -> Configs:
        """The config.json of each model that has one."""
        return self.resolved.configs

    @cached_property
    def calibrated(self) -> bool:
        """Whether a step reads the calibration text."""
        recipes = (recipe for recipes in self.recipes_by_entry for recipe in recipes)
        return any(step.settings.reads_text() for recipe in recipes for step in recipe)

    def _recipes_for(self, model: str) -> list[tuple[Step, ...]]:
        entries = zip(self.manifest.variants, self.recipes_by_entry, strict=True)
        return [recipe for entry, recipes in entries if is_for(entry, model) for recipe in recipes]

    def _steps_for(self, model: str) -> list[Step]:
        return [step for recipe in self._recipes_for(model) for step in recipe]

    def _same_checkpoint(self) -> Iterator[Problem]:
        """Report two names for one checkpoint: its results would be filed under only one of them."""
        first_names: dict[str, str] = {}
        indices = {model.name: index for index, model in enumerate(self.loaded.manifest.models)}
        for model in self.resolved.manifest.models:
            architecture = model.architecture if model.source == "random" else None
            revision = self.resolved.revisions.get(model.name, model.name)
            key = digest([revision, architecture, model.family, model.dtype])
            if key in first_names:
                message = f"`{model.name}` is the same checkpoint as `{first_names[key]}`"
                hint = "measure it in another way in a manifest of its own"
                at = ("models", indices[model.name], "source")
                yield self.loaded.problem(at, message, "one name for each", hint)
            first_names.setdefault(key, model.name)

    def _quantized_models(self) -> Iterator[Problem]:
        """Report models whose weights are integers: variants are made of floats, and compared with them."""
        for index, model in enumerate(self.manifest.models):
            if (self.configs.get(model.name) or {}).get(KEY):
                message = f"{model.source}: its weights are quantized"
                hint = "name the model that it was made from; `sparsebench score` and `measure` take what apply made"
                yield self.loaded.problem(("models", index, "source"), message, "", hint)

    def _unknown_models(self) -> Iterator[Problem]:
        """Report models that transformers has no class for, where something must run them; weights need no class."""
        for index, model in enumerate(self.manifest.models):
            config = self.configs.get(model.name)
            runs = self.calibrated or self.manifest.runtime or self.manifest.benchmarks.of(model.family)
            # Most types are in our own table, so that transformers, which takes a second to import, need not be asked.
            if not config or not runs or str(config.get("model_type")) in MODEL_TYPES:
                continue
            if unknown := unknown_type(config, f"{model.source}: config.json"):
                yield self.loaded.refused(("models", index, "source"), unknown)

    def _unfit_steps(self) -> Iterator[Problem]:
        """Report steps that a model's config.json rules out, or that need a library that is not installed."""
        for index, (entry, recipes) in enumerate(zip(self.manifest.variants, self.recipes_by_entry, strict=True)):
            configs = {name: config for name, config in self.configs.items() if is_for(entry, name)}
            if any(step.settings.reads_text() for recipe in recipes for step in recipe):
                yield from self._unreplayed(index, configs)
            paths = [at for at, _ in steps_of(index, entry)]
            reported: set[tuple[int, str]] = set()
            for recipe in recipes:
                for number, step in enumerate(recipe):
                    for refusal in (*_refusals(recipe, number, configs), *_not_installed(step)):
                        if (number, refusal.reason) not in reported:
                            reported.add((number, refusal.reason))
                            yield self.loaded.refused(paths[number], refusal)

    def _unreplayed(self, index: int, configs: Configs) -> Iterator[Problem]:
        """Report models of an entry that reads text whose architecture cannot be calibrated block by block."""
        for name, config in configs.items():
            kind = str(config.get("model_type"))
            if kind in NOT_REPLAYED:
                message, hint = f"{name}: {replay_refusal(kind)}", f"{CHOOSE_MAGNITUDE}, or {OTHER_MODELS}"
                yield self.loaded.problem(("variants", index), message, "a method that looks at weights alone", hint)

    def _empty_selections(self) -> Iterator[Problem]:
        """Report selections that match no variant of the models that they are for, although each key matches one."""
        for at, block, names in _selecting_blocks(self.manifest):
            models = [name for name in names if block.models is None or name in block.models]
            recipes = [recipe for model in models for recipe in self._recipes_for(model)]
            for index, selection in enumerate(block.select or ()):
                if models and not any(selects(selection, recipe) for recipe in recipes):
                    of_these = f" of {one_of(models)}" if block.models else ""
                    message = f"no variant{of_these} matches `{flow(selection)}`"
                    expected = "a selection of a variant that `variants` asks for"
                    yield self.loaded.problem((*at, "select", index), message, expected, SELECTION_HINT)

    def _long_texts(self) -> Iterator[Problem]:
        """Report samples of the calibration text that are longer than a model that reads them takes."""
        outputs, calibration = self.manifest.outputs, self.manifest.calibration
        for model in self.manifest.models:
            config = self.configs.get(model.name, {})
            if config.get("model_type") not in MODEL_TYPES:
                continue
            lengths = {"outputs": outputs.length if outputs and model.source != "random" else None}
            # A training has a length of its own.
            readers = [step.settings for step in self._steps_for(model.name) if step.settings.reads_text()]
            if any("length" not in type(settings).model_fields for settings in readers):
                lengths["calibration"] = calibration.length
            for key, length in lengths.items():
                if length and (limit := limit_below(config, length)):
                    message = f"{length:,} tokens, where {model.name} takes at most {limit:,}"
                    yield self.loaded.problem((key, "length"), message, f"at most {limit:,}")

    def _overlaps(self) -> Iterator[Problem]:
        """Report benchmarks whose own documents a step would read."""
        tasks = [(family, row) for family in FAMILIES for row in enumerate(self.manifest.benchmarks.of(family))]
        for text in self.resolved.texts:
            for family, (index, task) in tasks:
                data = sources.parse(task.source, self.loaded.folder).text if task.source else ""
                if not benchmarks.overlaps(text.source.text, task.task, data=data):
                    continue
                at, message = text.at, f"its text is part of `{task.task}`"
                hint = "name another `source`, or say `allow_overlap: true` under `calibration`"
                if text.at[0] == "calibration":
                    if not self.calibrated:
                        continue
                    at = ("benchmarks", family, index, "task")
                    message = f"the calibration text is part of `{task.task}`"
                    hint = "name another `calibration: source`, or say `allow_overlap: true` there"
                yield self.loaded.problem(at, message, "text that no benchmark is made of", hint)

    def _unfit_teachers(self) -> Iterator[Problem]:
        """Report teachers that cannot teach a model of their entry, as far as is known before weights are fetched."""
        for teacher in self.resolved.teachers:
            config = sources.read_config(teacher.source, self.cache)
            for model in self.resolved.manifest.models:
                if is_for(self.manifest.variants[int(teacher.at[1])], model.name):
                    refusal = _teacher_refusal(teacher.source, config, model, self.configs.get(model.name))
                    if refusal:
                        yield self.loaded.refused(teacher.at, refusal, teacher.written)

    def _unfit_students(self) -> Iterator[Problem]:
        """Report students that ask for more blocks than their model has, or for blocks that it lacks."""
        for index, entry in enumerate(self.manifest.variants):
            for at, step in steps_of(index, entry):
                for student in as_list(step.get("student")):
                    yield from self._unfit_student(entry, (*at, "student"), student)

    def _unfit_student(self, entry: Any, at: KeyPath, student: Any) -> Iterator[Problem]:
        layers = student.get("layers") if isinstance(student, dict) else None
        blocks = max(layers) + 1 if isinstance(layers, list) else layers or 0
        for name, config in self.configs.items():
            size = dimensions(config)
            available = min(size.layers, size.decoder_layers or size.layers)
            if is_for(entry, name) and blocks > available:
                requested = f"block {blocks - 1}" if isinstance(layers, list) else f"{blocks} blocks"
                message = f"{requested}, where a stack of `{name}` has {available}"
                yield self.loaded.problem(at, message, "fewer `layers`")


def _selecting_blocks(manifest: Manifest) -> Iterator[tuple[KeyPath, ManifestTask | ManifestRuntime, list[str]]]:
    """Yield the tasks and runtime blocks, each with its path and the names of the models that it is for."""
    for index, block in enumerate(manifest.runtime or ()):
        yield ("runtime", index), block, [model.name for model in manifest.models]
    for family in FAMILIES:
        names = [model.name for model in manifest.models if model.family == family]
        for index, task in enumerate(manifest.benchmarks.of(family)):
            yield ("benchmarks", family, index), task, names


def _refusals(recipe: tuple[Step, ...], number: int, configs: Configs) -> Iterator[Refusal]:
    """Yield why a model's config.json rules out a step of a recipe."""
    step = recipe[number]
    reshaped = any(before.settings.reshapes() for before in recipe[:number])
    for name, config in configs.items():
        refusal = step.settings.refuses(config) or step.settings.refuses_chain(recipe[:number])
        if not refusal and not reshaped:
            refusal = step.settings.refuses_shape(config)
        if refusal:
            ways_out = filter(None, (refusal.way_out, OTHER_MODELS))
            yield Refusal(f"{name}: {refusal.reason}", "; or ".join(ways_out))


def _not_installed(step: Step) -> Iterator[Refusal]:
    """Yield what is not installed of the libraries that a step's result depends on: no id could hold its version."""
    for library in step.settings.libraries():
        if environment.version(library) == "absent":
            way_out = f"pip install {environment.EXTRAS.get(library, library)}"
            yield Refusal(f"{step.verb}: {step.name} takes {library}: {library} is not installed", way_out)


def unfit_tasks(
    loaded: LoadedManifest, manifest: Manifest, tasks: ManifestBenchmarks, configs: Configs
) -> Iterator[Problem]:
    """Report tasks that a model's config.json rules out. A model of random weights is scored on no task."""
    for family in FAMILIES:
        for index, task in enumerate(tasks.of(family)):
            for model in manifest.models:
                config = configs.get(model.name) if model.source != "random" else None
                is_scored = model.family == family and (task.models is None or model.name in task.models)
                if config and is_scored and (misfit := _task_misfit(task, model, config)):
                    key, refusal = misfit
                    at = ("benchmarks", family, index, key)
                    yield loaded.refused(at, refusal, model.name)


def _task_misfit(task: ManifestTask, model: ManifestModel, config: Mapping[str, Any]) -> tuple[str, Refusal] | None:
    """Return the key of an entry that does not fit a model, and why; None where all keys fit."""
    data = own_data_of(task)
    benchmark = benchmarks.find_benchmark(task.name or task.task, data)
    # Tasks that are not in the table are lm-eval's.
    if missing := missing_head(benchmark.adapter if benchmark else "harness", config, model.family):
        reason = f"it needs {missing}, and its config.json has {config.get('architectures')}"
        return "task", Refusal(reason, f"for this model: {', '.join(fitting_tasks(config, model.family))}")
    if data and data.kind == "classify":
        return data_misfit(data, config, model.labels)
    has_windows = data is not None and data.form in ("passages", "published")
    if data and data.window and has_windows and (longest := limit_below(config, data.window)):
        reason = f"windows of {data.window:,} tokens, where it takes {longest:,}"
        return "length" if data.length else "task", Refusal(reason)
    return None


def _teacher_refusal(
    teacher: sources.Source,
    config: Mapping[str, Any] | None,
    model: ManifestModel,
    model_config: Mapping[str, Any] | None,
) -> Refusal | None:
    """Return why a teacher with this ``config`` cannot teach the model whose config is ``model_config``."""
    if config and family_of(config) not in (None, model.family):
        return Refusal(f"`{model.name}` is of another family, {model.family}", "a teacher of the same family")
    if config and model_config and "vocab_size" in config and "vocab_size" in model_config:
        size, model_size = dimensions(config).vocabulary, dimensions(model_config).vocabulary
        if size != model_size:
            reason = f"its vocabulary has {size:,} tokens, that of `{model.name}` has {model_size:,}"
            return Refusal(reason, "a teacher with the same tokenizer")
    folders = [Path(source.location) for source in (teacher, sources.parse(model.source)) if source.kind == "path"]
    if len(folders) == 2 and same_tokens(*folders) is False:
        return Refusal(f"its tokenizer is not that of `{model.name}`", "a teacher with the same tokenizer")
    return None


def refusals(
    loaded: LoadedManifest, manifest: Manifest, plan: Plan, configs: Configs, device: str, executor: str
) -> dict[str, Problem]:
    """Return the cells that would end as unsupported on ``device`` or with ``executor``, by id.

    Each has its reason, at the line of the manifest that asks for it. ``configs`` are the dense models' config.json:
    what a step changes in it shows when the cell is measured.
    """
    refusals_by_setting: dict[object, Refusal | None] = {}  # so that the driver's tool runs once for each setting
    problems: dict[str, Problem] = {}
    for cell in plan.cells:
        if "engine" not in cell.settings:
            continue
        ranks = 1 if cell.nodes else cell.settings["ranks"]  # how many GPUs other nodes have is not known here
        engine, encoding = cell.settings["engine"], cell.variant.encoding or FLOAT
        workload, shares_machine = Workload(**cell.settings["workload"]), "alone" in cell.settings
        key = engine, ranks, encoding, workload, cell.variant.model, cell.nodes, shares_machine
        if key not in refusals_by_setting:
            setting = Setting(engine, ranks, workload, device=device)
            config = configs.get(cell.variant.model, {})  # empty for GGUF
            family = plan.model(cell.variant.model).family
            refusals_by_setting[key] = (
                _spread_refusal(cell.nodes, shares_machine, device, executor)
                or engine_refusal(config, encoding, setting)
                or (position_refusal(config, family, workload) if config else None)
            )
        if refusal := refusals_by_setting[key]:
            problems[cell.id] = loaded.refused(_path(manifest, cell), refusal)
    return problems


def _spread_refusal(nodes: int, shares_machine: bool, device: str, executor: str) -> Refusal | None:
    """Return why ranks cannot be spread over ``nodes``, or a timed job not share its machine; None where they can."""
    if nodes and executor != "ray":
        return Refusal(f"nodes: {nodes}: only with --executor ray", "add --executor ray, or leave `nodes` out")
    if not shares_machine or (devices.is_gpu(device) and not nodes):
        return None
    reason = "several nodes have theirs" if nodes else "on a CPU jobs share its cores and memory"
    return Refusal(f"alone: device is for GPUs of this machine: {reason}", "leave `alone` out")


def _path(manifest: Manifest, cell: Cell) -> KeyPath:
    """Return the path of the first runtime block that asks for a cell, or of its ``alone``, ``nodes`` or ``ranks``."""
    path: KeyPath = ("runtime", (manifest.runtime or []).index(block_of(manifest, cell)))
    for key in ("alone", "nodes"):
        if key in cell.settings:
            return (*path, key)
    return (*path, "ranks") if cell.settings["ranks"] > 1 else path
