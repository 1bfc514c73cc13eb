"""Checks that need several keys of a manifest, or files beside it: names match, files exist, checkpoints fit."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from sparsebench import benchmarks, sources
from sparsebench.errors import SourceError
from sparsebench.manifest.explain import explain
from sparsebench.manifest.load import LoadedManifest, names_beside, read_manifest
from sparsebench.manifest.names import FAMILIES, LM_EVAL, Family
from sparsebench.manifest.nodes import KeyPath, flow
from sparsebench.manifest.problems import MOST_PROBLEMS, ManifestError, Problem, did_you_mean, one_of
from sparsebench.manifest.recipes import count_variants, models_of, steps_of
from sparsebench.manifest.schema import ManifestModel, ManifestTask, as_list
from sparsebench.models.files.families import family_of
from sparsebench.plan.selection import same_value
from sparsebench.runtime.engines import engines
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import closed_by, combinations, kinds, sweepable
from sparsebench.storage import formats
from sparsebench.units import counted

MOST_SWEPT = 10_000
"""The most versions that one step may ask for."""
OWN_KEYS = ("name", "field", "columns", "metric", "length", "stride")
"""The keys of an entry of `benchmarks` that are only for the user's own data."""


def load(path: Path) -> LoadedManifest:
    """Load and check the manifest at ``path``. Raises ManifestError with every problem of its shape, else of the rest."""
    return checked(read_manifest(path))


def checked(loaded: LoadedManifest) -> LoadedManifest:
    """Return a manifest whose shape is valid. Raises ManifestError with every problem of its names and files."""
    problems = [*islice(_problems(loaded), MOST_PROBLEMS)]
    if problems:
        raise ManifestError(problems)
    return loaded


def _problems(loaded: LoadedManifest) -> Iterator[Problem]:
    steps: list[Step] = []
    yield from _models(loaded)
    yield from _model_filters(loaded)
    if text := loaded.manifest.calibration.source:
        yield from _notation(loaded, ("calibration", "source"), text)
    faults = [*_steps(loaded, steps)]
    yield from faults
    if not faults:  # else a step that is left out would make selections of it look wrong
        yield from _selections(loaded, steps)
    for index, runtime in enumerate(loaded.manifest.runtime or ()):
        at: KeyPath = ("runtime", index)
        yield from _unknown(loaded, (*at, "engines"), runtime.engines, "engine", engines())
        yield from _uneven_nodes(loaded, at, runtime.nodes, runtime.ranks)
    if storage := loaded.manifest.storage:
        yield from _unknown(loaded, ("storage", "formats"), storage.formats, "format", formats())
    for family, task_at, task in _tasks(loaded):
        yield from _task(loaded, task_at, task, family)


def families_against_configs(loaded: LoadedManifest, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Report models whose ``family`` contradicts their config.json; ``configs`` has those by model name."""
    for index, model in enumerate(loaded.manifest.models):
        if model.name in configs:
            yield from _family(loaded, index, model, configs[model.name], "its config.json")


def _family(
    loaded: LoadedManifest, index: int, model: ManifestModel, config: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    stated_family = family_of(config)
    if stated_family not in (None, model.family):
        kind = config.get("model_type")
        message = f"`{model.family}`, but {where} (model_type `{kind}`) describes a model of another family"
        hint = "correct `family`, or name another checkpoint"
        yield loaded.problem(("models", index, "family"), message, f"`{stated_family}`", hint)


def _models(loaded: LoadedManifest) -> Iterator[Problem]:
    first: dict[str, int] = {}
    for index, model in enumerate(loaded.manifest.models):
        at: KeyPath = ("models", index)
        if first.setdefault(model.name, index) != index:
            line = loaded.problem(("models", first[model.name], "name"), "").line
            message = f"a second model called `{model.name}`; the first is on line {line}"
            yield loaded.problem((*at, "name"), message, "every model under a name of its own")
        yield from _source(loaded, (*at, "source"), model.source)
        config = model.architecture
        if config is None and model.source == "random":
            expected = "`architecture:` with the contents of the model's config.json"
            yield loaded.problem((*at, "source"), "`random` weights need an `architecture`", expected)
        elif config is not None and "model_type" not in config:
            expected = "a model's config.json, `model_type` included"
            yield loaded.problem((*at, "architecture"), "`architecture` has no `model_type`", expected)
        elif config is not None:
            yield from _family(loaded, index, model, config, "`architecture`")
        alias = sources.KNOWN.get(model.source)
        if alias and alias.family != model.family:
            message = f"`{model.family}`, but `{model.source}` is a model of another family"
            yield loaded.problem((*at, "family"), message, f"`{alias.family}`")


def _source(loaded: LoadedManifest, at: KeyPath, source: str) -> Iterator[Problem]:
    """Report a source that cannot be read, or a path that leads to nothing."""
    text = source.strip()
    path = loaded.folder / os.path.expanduser(text.removeprefix("path:"))
    if text.startswith("path:") and not os.path.exists(path):
        hint = (
            did_you_mean(path.name, names_beside(path)) or f"it would be {path}: paths start from the manifest's folder"
        )
        yield loaded.problem(at, "no such file or folder", "a path that exists", hint)
        return
    yield from _notation(loaded, at, source)


def _notation(loaded: LoadedManifest, at: KeyPath, source: str) -> Iterator[Problem]:
    try:
        sources.parse(source, loaded.folder)
    except SourceError as error:
        yield loaded.failed(at, error)


def _model_filters(loaded: LoadedManifest) -> Iterator[Problem]:
    """Check that `models:` lists name models, of the right family, and that an entry's lists have a model in common."""
    families = {model.name: model.family for model in loaded.manifest.models}
    recipes = [steps_of(index, entry) for index, entry in enumerate(loaded.manifest.variants)]
    filters: list[tuple[KeyPath, Any]] = [(at, step.get("models")) for recipe in recipes for at, step in recipe]
    filters += [(("runtime", index), runtime.models) for index, runtime in enumerate(loaded.manifest.runtime or ())]
    filters += [(at, task.models) for _, at, task in _tasks(loaded)]
    for at, names in filters:
        yield from _unknown(loaded, (*at, "models"), names or [], "model", families)
    for family, at, task in _tasks(loaded):
        for index, name in enumerate(task.models or ()):
            if families.get(name, family) != family:
                candidates = [model for model, model_family in families.items() if model_family == family]
                message = f"`{name}` is of family `{families[name]}`, these are tasks for `{family}`"
                expected = one_of(candidates) if candidates else f"a model of family `{family}`"
                yield loaded.problem((*at, "models", index), message, expected)
    for entry, recipe in zip(loaded.manifest.variants, recipes, strict=True):
        model_lists = [(at, step["models"]) for at, step in recipe if "models" in step]
        is_known = all(name in [*families] for _, names in model_lists for name in as_list(names))
        if model_lists and is_known and not models_of(entry):
            message = "no model is in all of the `models` of this entry"
            yield loaded.problem((*model_lists[-1][0], "models"), message, one_of([*families]))


def _steps(loaded: LoadedManifest, valid: list[Step]) -> Iterator[Problem]:
    """Report what is wrong with the steps of ``variants``, and add those that are right to ``valid``."""
    verbs = kinds()
    for index, entry in enumerate(loaded.manifest.variants):
        recipe = steps_of(index, entry)
        for number, (at, step_mapping) in enumerate(recipe, 1):
            first_new = len(valid)
            yield from _step(loaded, at, step_mapping, valid)
            later_steps = [(verb, later[verb]) for _, later in recipe[number:] for verb in verbs if verb in later]
            for step in valid[first_new:]:
                if key := closed_by(step, later_steps):
                    allowed = verbs[key].may_follow if key in verbs else ()
                    but = "".join(f", or before {{{verb}: {name}}} alone" for verb, name in allowed)
                    message = f"no step may follow one with `{key}: {getattr(step.settings, key, step.name)}`"
                    yield loaded.problem((*at, key), message, f"another, or the last step of its recipe{but}")
                    break


def _step(loaded: LoadedManifest, at: KeyPath, step: Mapping[str, Any], valid: list[Step]) -> Iterator[Problem]:
    verbs = [key for key in step if key in kinds()]
    if len(verbs) != 1:
        suggestion = next((hint for key in step if (hint := did_you_mean(key, kinds()))), "")
        message = f"this step has {' and '.join(f'`{verb}`' for verb in verbs)}" if verbs else "this step has no verb"
        hint = suggestion if not verbs else "write one step for each, as a list"
        yield loaded.problem(at, message, f"{one_of([*kinds()])}, such as {{prune: magnitude}}", hint)
        return
    (verb,) = verbs
    name, classes = step[verb], kinds()[verb].classes()
    if isinstance(name, list):
        yield loaded.problem((*at, verb), f"`{verb}` is a list", "one method a step", "write an entry for each method")
        return
    if name not in [*classes]:
        hint = "the dense model is always part of a run" if name == "dense" else did_you_mean(str(name), classes)
        yield loaded.problem((*at, verb), f"unknown {verb} `{name}`", one_of([*classes]), hint)
        return
    if count_variants(step) > MOST_SWEPT:
        message = f"a step that stands for {count_variants(step):,} versions"
        yield loaded.problem(at, message, f"at most {MOST_SWEPT:,}")
        return
    settings = {key: value for key, value in step.items() if key not in (verb, "models")}
    try:
        valid += combinations(verb, name, settings)
    except ValidationError as error:
        yield from explain(error, step, loaded.positions, at, sweepable(classes[name]), (verb, "models"))
        return
    except PydanticCustomError as error:
        context = error.context or {}
        position = (*at, context["at"]) if context["at"] else at
        yield loaded.problem(position, context["message"], context["expected"], context["hint"])
        return
    for key in classes[name].file_keys:
        for index, file in enumerate(as_list(step.get(key, []))):
            path = loaded.folder / os.path.expanduser(file)
            if not os.path.isfile(path):
                hint = did_you_mean(path.name, names_beside(path)) or "paths start from the manifest's folder"
                yield loaded.problem((*at, key, index), "no such file", "a file that the step reads", hint)


def _selections(loaded: LoadedManifest, steps: Sequence[Step]) -> Iterator[Problem]:
    """Report selections of steps or values that no variant has."""
    records = [(step, step.settings.record()) for step in steps]
    fields = sorted({name for step, settings in records for name in (step.verb, *settings)})
    selecting: list[tuple[KeyPath, Any]] = [
        (("runtime", index), runtime.select) for index, runtime in enumerate(loaded.manifest.runtime or ())
    ]
    selecting += [(at, task.select) for _, at, task in _tasks(loaded)]
    for at, selections in selecting:
        for index, selection in enumerate(selections or ()):
            for key in selection:
                at_key: KeyPath = (*at, "select", index, key)
                values = [step.name for step in steps if step.verb == key]
                # Mappings and lists cannot be selected.
                recorded = [settings[key] for _, settings in records if key in settings]
                values += [value for value in recorded if not isinstance(value, dict | list)]
                if values:
                    yield from _unselectable(loaded, at_key, selection[key], values)
                else:
                    message, hint = f"no step of `variants` has `{key}`", did_you_mean(key, fields)
                    yield loaded.problem(at_key, message, one_of(fields), hint, on_key=True)


def _unselectable(loaded: LoadedManifest, at: KeyPath, selected: Any, values: Sequence[Any]) -> Iterator[Problem]:
    options = [_as_written(value) for value in dict.fromkeys(values)]
    for index, value in enumerate(as_list(selected)):
        if not any(same_value(value, existing) for existing in values):
            hint = did_you_mean(value, options) if isinstance(value, str) else ""
            message = f"no variant has `{at[-1]}: {_as_written(value)}`"
            yield loaded.problem((*at, index), message, one_of(options), hint)


def _as_written(value: Any) -> str:
    """Return a single value as a manifest writes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else flow(value)


def _unknown(loaded: LoadedManifest, at: KeyPath, names: Any, kind: str, choices: Collection[str]) -> Iterator[Problem]:
    """Report those of ``names``, one or a list, that are not among the ``choices``."""
    for index, name in enumerate(as_list(names)):
        if name not in [*choices]:
            hint = did_you_mean(str(name), choices)
            yield loaded.problem((*at, index), f"unknown {kind} `{name}`", one_of([*choices]), hint)


def _uneven_nodes(loaded: LoadedManifest, at: KeyPath, nodes: int, ranks: Sequence[int]) -> Iterator[Problem]:
    """Report ranks that cannot be spread evenly over ``nodes``; one rank among others stays on one node."""
    uneven = next((count for count in ranks if count % nodes and (count > 1 or max(ranks) == 1)), None)
    if uneven:
        message = f"{counted(uneven, 'rank')} cannot be spread evenly over {nodes} nodes"
        yield loaded.problem((*at, "nodes"), message, f"`ranks` that are multiples of {nodes}", "or leave `nodes` out")


def _task(loaded: LoadedManifest, at: KeyPath, task: ManifestTask, family: Family) -> Iterator[Problem]:
    """Report what is wrong with a task, before data of the user's own are read."""
    name, kinds_of_data = task.task, benchmarks.KINDS
    own_kind = kinds_of_data.get(name)
    if task.source is not None:
        own_kind = own_kind or kinds_of_data[LM_EVAL]
        yield from _source(loaded, (*at, "source"), task.source)
    elif own_kind and not own_kind.source:
        if name not in _task_names():
            hint = f"{{task: {name}, source: path:FILE}}"
            yield loaded.problem((*at, "task"), f"`{name}` asks for data of your own", "a `source`", hint)
            return
        own_kind = None
    if own_kind is None and name not in _task_names():
        yield from _unknown(loaded, (*at, "task"), name, "task", _task_names())
        return
    benchmark = own_kind or benchmarks.find_benchmark(name, None) or kinds_of_data[LM_EVAL]
    if family not in benchmark.families:
        message = f"`{name}` is for {' and '.join(benchmark.families)} models"
        yield loaded.problem((*at, "task"), message, f"a task for {family} models")
    refused = [key for key in OWN_KEYS if not own_kind or key not in own_kind.takes]
    refused += [key for key in benchmarks.PROTOCOL_KEYS if not benchmarks.takes(benchmark.adapter, key)]
    for key in refused:
        if getattr(task, key) not in (None, False, "auto"):
            without_source = " without a `source`" if key in OWN_KEYS and not own_kind else ""
            message = f"`{name}` takes no `{key}`{without_source}"
            yield loaded.problem(
                (*at, key), message, one_of(own_kind.takes) if own_kind else "", f"remove `{key}`", on_key=True
            )
    if own_kind:
        yield from _own_values(loaded, at, task, own_kind)


def _own_values(
    loaded: LoadedManifest, at: KeyPath, task: ManifestTask, own_kind: benchmarks.OwnTaskKind
) -> Iterator[Problem]:
    """Report a metric, columns or a stride that the user's own data of this kind cannot have."""
    if task.metric and own_kind.metrics and task.metric not in own_kind.metrics:
        message = f"`{task.task}` has no `{task.metric}`"
        yield loaded.problem((*at, "metric"), message, one_of(own_kind.metrics))
    roles = [*own_kind.columns, *own_kind.optional]
    for role in task.columns or () if "columns" in own_kind.takes else ():
        if role not in roles:
            message = f"a record of `{task.task}` has no `{role}`"
            hint = did_you_mean(role, roles)
            yield loaded.problem((*at, "columns", role), message, one_of(roles), hint, on_key=True)
    length = task.length or own_kind.length
    if length and task.stride and task.stride > length:
        message = f"a `stride` of {task.stride:,} leaves out text between windows of {length:,}"
        yield loaded.problem((*at, "stride"), message, f"at most {length:,}")


@functools.cache
def _task_names() -> dict[str, None]:
    return dict.fromkeys(benchmarks.task_names())  # thousands, read from a file


def _tasks(loaded: LoadedManifest) -> list[tuple[Family, KeyPath, ManifestTask]]:
    """Return the tasks of all families, each with its path."""
    of_family = loaded.manifest.benchmarks.of
    return [
        (family, ("benchmarks", family, index), task)
        for family in FAMILIES
        for index, task in enumerate(of_family(family))
    ]
