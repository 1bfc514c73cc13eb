"""Checks that need several keys of a manifest, or files beside it: names match, files exist, checkpoints fit.

These checks read the plain data, not the validated manifest, so that they work even when other keys are wrong.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from sparsebench import benchmarks, sources
from sparsebench.errors import SourceError
from sparsebench.manifest.explain import explain
from sparsebench.manifest.load import LoadedManifest, read_document, siblings, validated
from sparsebench.manifest.names import FAMILIES, LM_EVAL
from sparsebench.manifest.nodes import At, Positions
from sparsebench.manifest.problems import MOST, Problem, did_you_mean, one_of
from sparsebench.manifest.recipes import count_variants, models_of, steps_of
from sparsebench.models.files.families import family_of
from sparsebench.runtime.engines import engines
from sparsebench.steps.contract import Step
from sparsebench.steps.registry import closed_by, combinations, kinds, sweepable
from sparsebench.storage import formats

MOST_SWEPT = 10_000
"""The most versions that one step may ask for."""
OWN_KEYS = ("name", "field", "columns", "metric", "length", "stride")
"""The keys of an entry of `benchmarks` that are only for the user's own data."""


def load(path: Path) -> LoadedManifest:
    """Load and check the manifest at ``path``. Raises ManifestError with every problem found."""
    document = read_document(path)
    problems = islice(cross_checks(document.data, document.positions, document.folder), MOST)
    return validated(document, [*problems])


def cross_checks(data: Any, positions: Positions, folder: Path) -> Iterator[Problem]:
    """Yield every problem that pydantic does not see; ``folder`` is what relative paths start from."""
    yield from _models(data, positions, folder)
    yield from _filters(data, positions)
    yield from _shared(data, positions)
    classes = [(verb, settings) for verb, kind in kinds().items() for settings in kind.classes().values()]
    every = dict.fromkeys((verb, key) for verb, settings in classes for key in settings.file_keys)
    written = [(at, step, key) for at, step in _written_steps(data) for verb, key in every if verb in step]
    yield from _files(written, positions, folder, "a file that the step reads")
    steps: list[Step] = []
    yield from _steps(data, positions, steps)
    yield from _selections(data, positions, steps)
    yield from _named(_blocks(data), "engines", "engine", engines(), positions)
    yield from _named([(("storage",), _under(data, "storage"))], "formats", "format", formats(), positions)
    yield from _tasks(data, positions, folder)


def families_against_configs(loaded: LoadedManifest, configs: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    """Report models whose ``family`` contradicts their config.json; ``configs`` has those by model name."""
    for index, model in enumerate(loaded.manifest.models):
        config = configs.get(model.name)
        at = ("models", index)
        problem = config and contradiction(loaded.positions, at, model.family, config, "its config.json")
        if problem:
            yield problem


def contradiction(positions: Positions, at: At, family: str, config: Mapping[str, Any], where: str) -> Problem | None:
    """Return a problem if a model's ``family`` contradicts its config.json; ``at`` is the path to the model."""
    true = family_of(config)
    if true is None or true == family:
        return None
    message = f"`{family}`, but {where} (model_type `{config.get('model_type')}`) describes a model of another family"
    return positions.problem((*at, "family"), message, f"`{true}`", "correct `family`, or name another checkpoint")


def local_path(source: object, folder: Path) -> Path | None:
    """Return the file or folder that a ``path:`` source means, or None for another kind of source."""
    if not isinstance(source, str) or not source.strip().startswith("path:"):
        return None
    return folder / os.path.expanduser(source.strip().removeprefix("path:"))


def _models(data: Any, positions: Positions, folder: Path) -> Iterator[Problem]:
    seen: dict[str, At] = {}
    for at, model in _entries(data, "models"):
        for at_name, name in _each(at, model, "name", str):
            if name in seen:
                line = positions.problem(seen[name], "").line
                message = f"a second model called `{name}`; the first is on line {line}"
                yield positions.problem(at_name, message, "every model under a name of its own")
            seen.setdefault(name, at_name)
        yield from _source(at, model, positions, folder)
        config, family = model.get("architecture"), model.get("family")
        if isinstance(config, dict) and "model_type" not in config:
            message = "`architecture` has no `model_type`"
            yield positions.problem((*at, "architecture"), message, "a model's config.json, `model_type` included")
        elif isinstance(config, dict) and family in FAMILIES:
            problem = contradiction(positions, at, family, config, "`architecture`")
            yield from [problem] if problem else []
        alias = model.get("source")
        if isinstance(alias, str) and alias in sources.KNOWN and family in {*FAMILIES} - {sources.KNOWN[alias].family}:
            message = f"`{family}`, but `{alias}` is a model of another family"
            yield positions.problem((*at, "family"), message, f"`{sources.KNOWN[alias].family}`")


def _source(at: At, model: dict[str, Any], positions: Positions, folder: Path) -> Iterator[Problem]:
    source, at_source = model.get("source"), (*at, "source")
    if source == "random" and model.get("architecture") is None:
        message = "`random` weights need an `architecture`"
        yield positions.problem(at_source, message, "`architecture:` with the contents of the model's config.json")
    yield from _located(at_source, source, positions, folder)


def _located(at: At, source: Any, positions: Positions, folder: Path) -> Iterator[Problem]:
    path = local_path(source, folder)
    if path and not os.path.exists(path):
        hint = did_you_mean(path.name, siblings(path)) or f"it would be {path}: paths start from the manifest's folder"
        yield positions.problem(at, "no such file or folder", "a path that exists", hint)
    elif isinstance(source, str):  # pydantic reports other types
        try:
            sources.parse(source)
        except SourceError as error:
            yield positions.problem(at, error.message, "", error.hint or "")


def _filters(data: Any, positions: Positions) -> Iterator[Problem]:
    """Check that `models:` lists name models, of the right family, and that an entry's lists have a model in common."""
    models = _entries(data, "models")
    families = {name: model.get("family") for at, model in models for _, name in _each(at, model, "name", str)}
    filtered = [(at, entry, "") for at, entry in [*_written_steps(data), *_blocks(data)]]
    filtered += [(at, entry, family) for family in FAMILIES for at, entry in _entries(data, "benchmarks", family)]
    for at, entry, family in filtered:
        for at_name, name in _each(at, entry, "models", str):
            if name not in families:
                yield positions.problem(
                    at_name, f"no model is called `{name}`", one_of(list(families)), did_you_mean(name, families)
                )
            elif family and families[name] in FAMILIES and families[name] != family:
                fitting = [other for other, other_family in families.items() if other_family == family]
                message = f"`{name}` is of family `{families[name]}`, these are tasks for `{family}`"
                expected = one_of(fitting) if fitting else f"a model of family `{family}`"
                yield positions.problem(at_name, message, expected)
    written = _under(data, "variants")
    for index, entry in enumerate(written if isinstance(written, list) else []):
        steps = steps_of(index, entry)
        kept = [(at, step) for at, step in steps if isinstance(step, dict) and step.get("models") is not None]
        named = {name for _, step in kept for _, name in _each((), step, "models", str)}
        common = models_of([step for _, step in kept]) or ()
        # A wrong name has been reported already.
        if kept and named <= families.keys() and not any(isinstance(name, str) for name in common):
            message = "no model is in all of the `models` of this entry"
            yield positions.problem((*kept[-1][0], "models"), message, one_of(list(families)))


def flow(value: Any) -> str:
    """Return a value as YAML writes it on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
        .strip()
        .removesuffix("...")
        .strip()
    )


def _steps(data: Any, positions: Positions, valid: list[Step]) -> Iterator[Problem]:
    """Report what is wrong with the steps of ``variants``, and add those that are right to ``valid``."""
    entries = _under(data, "variants")
    names = {verb: kind.classes() for verb, kind in kinds().items()}
    for index, entry in enumerate(entries if isinstance(entries, list) else []):
        recipe = steps_of(index, entry)
        for number, (at, step) in enumerate(recipe, 1):
            if isinstance(step, dict) and step:  # the schema reports what is wrong with any other
                before = len(valid)
                yield from _step(at, step, positions, names, valid)
                later = [other for _, other in recipe[number:] if isinstance(other, dict)]
                behind = [(verb, other[verb]) for other in later for verb in names if verb in other]
                closing = {key: other for other in valid[before:] if (key := closed_by(other, behind))}
                for key, other in [*closing.items()][:1]:
                    allowed = kinds()[key].may_follow if key in kinds() else ()
                    but = "".join(f", or before {{{verb}: {name}}} alone" for verb, name in allowed)
                    words = f"no step may follow one with `{key}: {getattr(other.settings, key, other.name)}`"
                    yield positions.problem((*at, key), words, f"another, or the last step of its recipe{but}")


def _step(
    at: At,
    step: dict[str, Any],
    positions: Positions,
    names: Mapping[str, Mapping[str, Any]],
    valid: list[Step],
) -> Iterator[Problem]:
    verbs = [key for key in step if key in names]
    if len(verbs) != 1:
        near = next((hint for key in step if (hint := did_you_mean(str(key), names))), "")
        what = f"this step has {' and '.join(f'`{verb}`' for verb in verbs)}" if verbs else "this step has no verb"
        hint = near if not verbs else "write one step for each, as a list"
        yield positions.problem(at, what, f"{one_of(list(names))}, such as {{prune: magnitude}}", hint)
        return
    verb = verbs[0]
    name, known = step[verb], list(names[verb])
    if isinstance(name, list):
        yield positions.problem(
            (*at, verb), f"`{verb}` is a list", "one method a step", "write an entry for each method"
        )
        return
    if name not in known:
        hint = "the dense model is always part of a run" if name == "dense" else did_you_mean(str(name), known)
        yield positions.problem((*at, verb), f"unknown {verb} `{name}`", one_of(known), hint)
        return
    written = {key: value for key, value in step.items() if key not in (verb, "models")}
    if count_variants(step) > MOST_SWEPT:
        yield positions.problem(
            at, f"a step that stands for {count_variants(step):,} versions", f"at most {MOST_SWEPT:,}"
        )
        return
    try:
        valid += combinations(verb, name, written)
    except ValidationError as error:
        yield from explain(error, step, positions, at, sweepable(names[verb][name]), (verb, "models"))
    except PydanticCustomError as error:
        words = error.context or {}
        key = (words["at"],) if words["at"] else ()
        yield positions.problem((*at, *key), words["message"], words["expected"], words["hint"])


def _selections(data: Any, positions: Positions, steps: Sequence[Step]) -> Iterator[Problem]:
    """Report selections of steps or values that no variant has."""
    records = [(step, step.settings.record()) for step in steps]
    fields = sorted({name for step, settings in records for name in (step.verb, *settings)})
    tasks = [pair for family in FAMILIES for pair in _entries(data, "benchmarks", family)]
    for at, entry in [*_blocks(data), *tasks]:
        selected = entry.get("select")
        listed = isinstance(selected, list)
        for index, selection in enumerate(selected if isinstance(selected, list) else [selected]):
            where: At = (*at, "select", index) if listed else (*at, "select")
            for key in selection if isinstance(selection, dict) else ():
                values = [step.name for step in steps if step.verb == key]
                # Mappings and lists cannot be selected.
                recorded = [settings[key] for _, settings in records if key in settings]
                values += [value for value in recorded if not isinstance(value, dict | list)]
                if not values:
                    hint = did_you_mean(key, fields)
                    message = f"no step of `variants` has `{key}`"
                    yield positions.problem((*where, key), message, one_of(fields), hint, on_key=True)
                    continue
                options = [_said(value) for value in dict.fromkeys(values)]
                for at_value, value in _each(where, selection, key, str, int, float, bool, type(None)):
                    if value not in values:
                        hint = did_you_mean(value, options) if isinstance(value, str) else ""
                        yield positions.problem(
                            at_value, f"no variant has `{key}: {_said(value)}`", one_of(options), hint
                        )


def _said(value: Any) -> str:
    """Return a single value as a manifest writes it."""
    if value is None or isinstance(value, bool):
        return flow(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _files(
    entries: Iterable[tuple[At, dict[str, Any], str]], positions: Positions, folder: Path, what: str
) -> Iterator[Problem]:
    """Report files named under a key of an entry that do not exist; ``what`` says what is expected."""
    for at, entry, key in entries:
        for at_name, name in _each(at, entry, key, str):
            path = folder / os.path.expanduser(name)
            if not os.path.isfile(path):
                hint = did_you_mean(path.name, siblings(path)) or "paths start from the manifest's folder"
                yield positions.problem(at_name, "no such file", what, hint)


def _shared(data: Any, positions: Positions) -> Iterator[Problem]:
    """Report ranks that cannot be spread evenly over `nodes`."""
    for at, block in _blocks(data):
        for at_key, nodes in _each(at, block, "nodes", int):
            ranks = [rank for _, rank in _each(at, block, "ranks", int)] or [1]
            uneven = [rank for rank in ranks if rank > 1 and nodes > 0 and rank % nodes] or ranks * (max(ranks) == 1)
            if nodes > 1 and uneven:
                what = f"{uneven[0]} rank{'s' * (uneven[0] > 1)} cannot be spread evenly over {nodes} nodes"
                yield positions.problem(at_key, what, f"`ranks` that are multiples of {nodes}", "or leave `nodes` out")


def _named(
    entries: Iterable[tuple[At, Any]], key: str, kind: str, known: Collection[str], positions: Positions
) -> Iterator[Problem]:
    """Report values of ``key`` that are not among the ``known`` names of their kind."""
    for at, entry in entries:
        for at_name, name in _each(at, entry, key, str) if isinstance(entry, dict) else ():
            if name not in known:
                yield positions.problem(
                    at_name, f"unknown {kind} `{name}`", one_of(list(known)), did_you_mean(name, known)
                )


def _tasks(data: Any, positions: Positions, folder: Path) -> Iterator[Problem]:
    own_kinds = benchmarks.KINDS
    for family, at, entry in ((side, *pair) for side in FAMILIES for pair in _entries(data, "benchmarks", side)):
        for at_task, task in _each(at, entry, "task", str):
            if entry.get("source") is not None or (task in own_kinds and own_kinds[task].source):
                yield from _own(at, entry, family, positions, folder)
            elif task in own_kinds and task not in _task_names():
                words = f"`{task}` asks for data of your own"
                yield positions.problem(at_task, words, "a `source`", f"{{task: {task}, source: path:FILE}}")
            elif own_keys := [key for key in OWN_KEYS if entry.get(key) is not None]:
                words = f"`{own_keys[0]}` is for data of your own, and `{task}` has no `source`"
                yield positions.problem((*at, own_keys[0]), words, "", f"remove `{own_keys[0]}`", on_key=True)
            elif task not in _task_names():
                names = [*_task_names()]
                yield positions.problem(at_task, f"unknown task `{task}`", one_of(names), did_you_mean(task, names))
            elif family not in benchmarks.families(task):
                fit = " and ".join(benchmarks.families(task))
                yield positions.problem(at_task, f"`{task}` is for {fit} models", f"a task for {family} models")


def _own(at: At, entry: dict[str, Any], family: str, positions: Positions, folder: Path) -> Iterator[Problem]:
    """Report what is wrong with an entry over the user's own data, before these are read."""
    task = entry["task"]
    kind = benchmarks.KINDS.get(task, benchmarks.KINDS[LM_EVAL])
    if entry.get("source") is not None:
        yield from _located((*at, "source"), entry["source"], positions, folder)
    if family not in kind.families:
        fit = " and ".join(kind.families)
        yield positions.problem((*at, "task"), f"`{task}` is for {fit} models", f"a task for {family} models")
    for key in (*OWN_KEYS, "num_fewshot"):
        if entry.get(key) is not None and key not in kind.takes:
            taken = one_of(list(kind.takes)) if kind.takes else "none of these keys"
            yield positions.problem((*at, key), f"`{task}` takes no `{key}`", taken, f"remove `{key}`", on_key=True)
    if isinstance(metric := entry.get("metric"), str) and "metric" in kind.takes and metric not in kind.metrics:
        yield positions.problem((*at, "metric"), f"`{task}` has no `{metric}`", one_of(list(kind.metrics)))
    columns, known = entry.get("columns"), [*kind.columns, *kind.optional]
    for role in columns if isinstance(columns, dict) and "columns" in kind.takes else ():
        if role not in known:
            hint = did_you_mean(role, known)
            message = f"a record of `{task}` has no `{role}`"
            yield positions.problem((*at, "columns", role), message, one_of(known), hint, on_key=True)
    length, stride = entry.get("length") or kind.length, entry.get("stride")
    if isinstance(length, int) and isinstance(stride, int) and stride > length:
        message = f"a `stride` of {stride:,} leaves out text between windows of {length:,}"
        yield positions.problem((*at, "stride"), message, f"at most {length:,}")


@functools.cache
def _task_names() -> dict[str, None]:
    return dict.fromkeys(benchmarks.names())  # thousands, read from a file


def _under(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _blocks(data: Any) -> list[tuple[At, dict[str, Any]]]:
    """Return the mappings under `runtime`, which is one or a list of them, each with its path."""
    alone = _under(data, "runtime")
    return [(("runtime",), alone)] if isinstance(alone, dict) else _entries(data, "runtime")


def _written_steps(data: Any) -> list[tuple[At, dict[str, Any]]]:
    """Return the steps of ``variants``, alone or in lists, each with its path."""
    entries = _under(data, "variants")
    indexed = enumerate(entries if isinstance(entries, list) else [])
    steps = [pair for index, entry in indexed for pair in steps_of(index, entry)]
    return [(at, step) for at, step in steps if isinstance(step, dict)]


def _entries(data: Any, *keys: str) -> list[tuple[At, dict[str, Any]]]:
    """Return the mappings in the list that ``keys`` leads to, each with its path; what is not a mapping is left out."""
    for key in keys:
        data = _under(data, key)
    if not isinstance(data, list):
        return []
    return [((*keys, index), entry) for index, entry in enumerate(data) if isinstance(entry, dict)]


def _each(at: At, entry: dict[str, Any], key: str, *kinds: type) -> Iterator[tuple[At, Any]]:
    """Yield the values of these kinds under ``key``, which holds a list or a single item, each with its path."""
    value = entry.get(key)
    listed = isinstance(value, list)
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, kinds) and (bool in kinds or not isinstance(item, bool)):
            yield ((*at, key, index) if listed else (*at, key)), item
