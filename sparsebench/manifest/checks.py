"""What only shows across a manifest or beside it: names that match, files that exist, checkpoints that fit.

These checks read the plain data, not the validated manifest, so that they speak even when other keys are wrong.
What later rooms know (methods, tasks, sources, families) is handed in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sparsebench.errors import SourceError
from sparsebench.manifest.nodes import At, Positions
from sparsebench.manifest.problems import Problem, did_you_mean, one_of
from sparsebench.manifest.schema import BLOCK, FAMILIES, Source, is_nm, pattern_sparsity, sparsity_conflict

FamilyOf = Callable[[Mapping[str, Any]], str | None]
_SOURCE: TypeAdapter[Any] = TypeAdapter(Source)


@dataclass(frozen=True)
class Checks:
    """What later rooms know.

    ``method_names`` and its like list what exists, ``parse_source`` raises SourceError for a notation that it
    cannot read, ``family_of`` tells the family of a config.json, or None where it cannot.
    ``task_families`` tells whom a known task is for, ``granularities`` what a known method can compare weights within.
    """

    method_names: Callable[[], Collection[str]]
    engine_names: Callable[[], Collection[str]]
    format_names: Callable[[], Collection[str]]
    task_names: Callable[[], Collection[str]]
    parse_source: Callable[[Any], object]
    family_of: FamilyOf
    task_families: Callable[[str], Collection[str]] | None = None
    granularities: Callable[[str], Collection[str]] | None = None


def cross_checks(data: Any, positions: Positions, folder: Path, checks: Checks | None) -> Iterator[Problem]:
    """Every problem that pydantic does not see; ``folder`` is what relative paths start from."""
    yield from _models(data, positions, folder, checks)
    yield from _filters(data, positions)
    yield from _sweeps(data, positions)
    yield from _runtime(data, positions)
    yield from _hostfiles(data, positions, folder)
    if checks:
        yield from _methods(data, positions, checks)
        yield from _named(_blocks(data), "engines", "engine", checks.engine_names, positions)
        yield from _named(
            [(("storage",), _under(data, "storage"))], "formats", "format", checks.format_names, positions
        )
        yield from _tasks(data, positions, checks)


def contradiction(
    positions: Positions, at: At, family: str, config: Mapping[str, Any], where: str, family_of: FamilyOf
) -> Problem | None:
    """A model's ``family`` against the one that a config.json shows; ``at`` is the model's place."""
    true = family_of(config)
    if true is None or true == family:
        return None
    message = f"`{family}`, but {where} (model_type `{config.get('model_type')}`) describes a model of another family"
    return positions.problem((*at, "family"), message, f"`{true}`", "correct `family`, or name another checkpoint")


def local_path(source: object, folder: Path) -> Path | None:
    """The file or folder that a ``path:`` source means, or None for another kind of source."""
    if not isinstance(source, str) or not source.strip().startswith("path:"):
        return None
    return folder / os.path.expanduser(source.strip().removeprefix("path:"))


def siblings(path: Path) -> list[str]:
    """What lies beside a path, as far as one may look."""
    try:
        return os.listdir(path.parent)
    except (OSError, ValueError):
        return []


def _models(data: Any, positions: Positions, folder: Path, checks: Checks | None) -> Iterator[Problem]:
    seen: dict[str, At] = {}
    for at, model in _entries(data, "models"):
        for place, name in _each(at, model, "name", str):
            if name in seen:
                line = positions.problem(seen[name], "").line
                message = f"a second model called `{name}`; the first is on line {line}"
                yield positions.problem(place, message, "every model under a name of its own")
            seen.setdefault(name, place)
        yield from _source(at, model, positions, folder, checks)
        config, family = model.get("architecture"), model.get("family")
        if isinstance(config, dict) and "model_type" not in config:
            message = "`architecture` has no `model_type`"
            yield positions.problem((*at, "architecture"), message, "a model's config.json, `model_type` included")
        elif isinstance(config, dict) and family in FAMILIES and checks:
            found = contradiction(positions, at, family, config, "`architecture`", checks.family_of)
            yield from [found] if found else []


def _source(
    at: At, model: dict[str, Any], positions: Positions, folder: Path, checks: Checks | None
) -> Iterator[Problem]:
    source, at_source = model.get("source"), (*at, "source")
    if source == "random" and model.get("architecture") is None:
        message = "`random` weights need an `architecture`"
        yield positions.problem(at_source, message, "`architecture:` with the contents of the model's config.json")
    path = local_path(source, folder)
    if path and not os.path.exists(path):
        hint = did_you_mean(path.name, siblings(path)) or f"it would be {path}: paths start from the manifest's folder"
        yield positions.problem(at_source, "no such file or folder", "a path that exists", hint)
    elif checks and _well_formed(source):
        try:
            checks.parse_source(source)
        except SourceError as error:
            yield positions.problem(at_source, error.message, "", error.hint or "")


def _well_formed(source: object) -> bool:
    """Text, or a mapping of the right shape: pydantic tells what is wrong with any other."""
    try:
        _SOURCE.validate_python(source)
    except ValidationError:
        return False
    return True


def _filters(data: Any, positions: Positions) -> Iterator[Problem]:
    """`models:` lists, which must name models, and under a family models of that family."""
    models = _entries(data, "models")
    families = {name: model.get("family") for at, model in models for _, name in _each(at, model, "name", str)}
    places = [(at, entry, "") for at, entry in [*_entries(data, "sparsify"), *_blocks(data)]]
    places += [(at, entry, family) for family in FAMILIES for at, entry in _entries(data, "benchmarks", family)]
    for at, entry, family in places:
        for place, name in _each(at, entry, "models", str):
            if name not in families:
                yield positions.problem(
                    place, f"no model is called `{name}`", one_of(list(families)), did_you_mean(name, families)
                )
            elif family and families[name] in FAMILIES and families[name] != family:
                fitting = [other for other, its in families.items() if its == family]
                message = f"`{name}` is of family `{families[name]}`, these are tasks for `{family}`"
                yield positions.problem(place, message, one_of(fitting) if fitting else f"a model of family `{family}`")


def _sweeps(data: Any, positions: Positions) -> Iterator[Problem]:
    """Patterns against sparsities; pydantic sees this too, but only once everything else in the entry is right."""
    for at, entry in _entries(data, "sparsify"):
        patterns = [text for _, text in _each(at, entry, "pattern", str)] or ["unstructured"]
        shares = [share for _, share in _each(at, entry, "sparsity", int, float)]
        readable = shares and all(text == "unstructured" or is_nm(text) or BLOCK.fullmatch(text) for text in patterns)
        if readable and (error := sparsity_conflict(patterns, shares)):
            words = error.context or {}
            yield positions.problem((*at, "sparsity"), words["message"], words["expected"], words["hint"])


def _runtime(data: Any, positions: Positions) -> Iterator[Problem]:
    """What is measured must be among what is made."""
    entries = _entries(data, "sparsify")
    methods = {text: "" for at, entry in entries for _, text in _each(at, entry, "method", str)}
    shares = {0, *(share for at, entry in entries for _, share in _each(at, entry, "sparsity", int, float))}
    patterns = [text for at, entry in entries for _, text in _each(at, entry, "pattern", str)]
    shares |= {pattern_sparsity(text) for text in patterns if is_nm(text)}
    made = ", ".join(f"{share:g}" for share in sorted(shares) if 0 <= share <= 1)
    for at, block in _blocks(data):
        for place, name in _each(at, block, "methods", str):
            if name not in methods:
                message = f"no `sparsify` entry has the method `{name}`"
                yield positions.problem(place, message, one_of(list(methods)), did_you_mean(name, methods))
        for place, share in _each(at, block, "sparsity", int, float):
            if 0 <= share <= 1 and share not in shares:
                yield positions.problem(place, f"no `sparsify` entry has the sparsity {share:g}", f"one of {made}")


def _hostfiles(data: Any, positions: Positions, folder: Path) -> Iterator[Problem]:
    for at, block in _blocks(data):
        for place, name in _each(at, block, "hostfile", str):
            path = folder / os.path.expanduser(name)
            if not path.is_file():
                hint = did_you_mean(path.name, siblings(path)) or "paths start from the manifest's folder"
                yield positions.problem(place, "no such file", "a file of `NAME slots=N` lines", hint)


def _methods(data: Any, positions: Positions, checks: Checks) -> Iterator[Problem]:
    for at, entry in _entries(data, "sparsify"):
        for place, name in _each(at, entry, "method", str):
            if name not in (names := sorted(checks.method_names())):
                hint = "the dense model is always part of a run" if name == "dense" else did_you_mean(name, names)
                yield positions.problem(place, f"unknown method `{name}`", one_of(names), hint)
            elif checks.granularities:
                fit = list(checks.granularities(name))
                for at_scope, scope in _each(at, entry, "granularity", str):
                    if scope in ("global", "layer", "row") and scope not in fit:
                        yield positions.problem(at_scope, f"`{name}` has no granularity `{scope}`", one_of(fit))


def _named(
    entries: Iterable[tuple[At, Any]], key: str, kind: str, known: Callable[[], Collection[str]], positions: Positions
) -> Iterator[Problem]:
    """Values of ``key`` that are no name of their kind."""
    for at, entry in entries:
        for place, name in _each(at, entry, key, str) if isinstance(entry, dict) else ():
            if name not in (names := list(known())):
                yield positions.problem(place, f"unknown {kind} `{name}`", one_of(names), did_you_mean(name, names))


def _tasks(data: Any, positions: Positions, checks: Checks) -> Iterator[Problem]:
    families = checks.task_families or (lambda task: FAMILIES)
    for family, at, entry in ((side, *pair) for side in FAMILIES for pair in _entries(data, "benchmarks", side)):
        for place, task in _each(at, entry, "task", str):
            if task not in checks.task_names():
                names = [*checks.task_names()]
                yield positions.problem(place, f"unknown task `{task}`", one_of(names), did_you_mean(task, names))
            elif family not in families(task):
                fit = " and ".join(families(task))
                yield positions.problem(place, f"`{task}` is for {fit} models", f"a task for {family} models")


def _under(data: Any, key: str) -> Any:
    return data.get(key) if isinstance(data, dict) else None


def _blocks(data: Any) -> list[tuple[At, dict[str, Any]]]:
    """The mappings under `runtime`, which is one or a list of them, each with its place."""
    alone = _under(data, "runtime")
    return [(("runtime",), alone)] if isinstance(alone, dict) else _entries(data, "runtime")


def _entries(data: Any, *way: str) -> list[tuple[At, dict[str, Any]]]:
    """The mappings in the list that ``way`` leads to, each with its place; what is not a mapping is left out."""
    for key in way:
        data = _under(data, key)
    if not isinstance(data, list):
        return []
    return [((*way, index), entry) for index, entry in enumerate(data) if isinstance(entry, dict)]


def _each(at: At, entry: dict[str, Any], key: str, *kinds: type) -> Iterator[tuple[At, Any]]:
    """The values of these kinds under ``key``, which holds a list or one of its items, each with its place."""
    value = entry.get(key)
    listed = isinstance(value, list)
    for index, item in enumerate(value if isinstance(value, list) else [value]):
        if isinstance(item, kinds) and not isinstance(item, bool):
            yield ((*at, key, index) if listed else (*at, key)), item
