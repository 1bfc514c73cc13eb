"""A user's folder of lm-eval task files: read as data, so that no file runs code, reads elsewhere or asks the network.

lm-eval's own reader lets a file name any Python code (``!function`` and every other YAML tag), a metric that `evaluate`
downloads as a script, data anywhere, and templates that reach Python objects. ``task_file`` says what a file may hold;
``folder_task`` reads the data and limits what templates and patterns take.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sparsebench import bounded
from sparsebench.benchmarks.task_file import WAY_OUT, check
from sparsebench.errors import BenchmarkError
from sparsebench.manifest.problems import did_you_mean

Files = dict[Path, dict[str, Any]]
"""Task files by their paths within the folder."""


def definitions(folder: Path, task: str) -> Files:
    """Return every task file of a folder, checked, with what it includes; one must declare ``task``, or a group of that name.

    Hidden files are left out, as in the folder's hash. Raises BenchmarkError naming the file and the key.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: a file, where a folder of lm-eval's task files is needed", "name the folder")
    paths = (path.relative_to(folder) for path in sorted(folder.glob("**/*.yaml")))
    allowance = bounded.Allowance()
    files = {
        path: _read(folder / path, allowance) for path in paths if not any(part.startswith(".") for part in path.parts)
    }
    for path, settings in files.items():
        check(folder, folder / path, settings)
    by_resolved_path = {(folder / path).resolve(): settings for path, settings in files.items()}
    files = {path: _merged(folder / path, by_resolved_path, set()) for path in files}
    groups: dict[str, list[Any]] = {}
    for path, settings in files.items():
        if members := _members(settings):
            if settings["group"] in groups:
                raise BenchmarkError(f"{folder / path}: `group` {settings['group']} is in two files", "rename one")
            groups[settings["group"]] = members
    names = {str(settings[key]) for settings in files.values() for key in ("task", "group") if _is_name(settings, key)}
    if task not in names:
        hint = f"it has {', '.join(sorted(names)[:20])}" if names else "no .yaml file in it declares a `task`"
        raise BenchmarkError(f"{folder}: no task {task!r} in it", did_you_mean(task, names) or hint)
    _count(folder, groups.get(task, []), groups, {task})
    return files


def _read(path: Path, allowance: bounded.Allowance) -> dict[str, Any]:
    text = bounded.read(path, BenchmarkError, bounded.MANIFEST)
    try:
        with bounded.uncollected(), allowance.use(str(path), BenchmarkError, 1 + len(text) // 1000):
            # As lm-eval reads it; libyaml also refuses what is nested too deep.
            settings = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        tag = str(error.problem).rpartition("for the tag ")[2] or "a tag"
        raise BenchmarkError(f"{path}:{line}: {tag} names Python code, which is not run", WAY_OUT) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{path}: not YAML ({reason})", "mend it, or take it out of the folder") from error
    if not isinstance(settings, dict):
        raise BenchmarkError(f"{path}: it holds no mapping", "mend it, or take it out of the folder")
    return settings


def _merged(path: Path, files: Files, seen: set[Path]) -> dict[str, Any]:
    """Return a file's keys over those of the files that it includes, as lm-eval merges them. Each may occur once.

    ``files`` are by their resolved paths.
    """
    seen.add(path.resolve())
    settings = files[path.resolve()]
    merged: dict[str, Any] = {}
    names = settings.get("include") or []
    for name in names if isinstance(names, list) else [names]:
        other = path.parent / name
        if other.resolve() not in files or other.resolve() in seen:
            what = "is included twice" if other.resolve() in seen else "is no task file of this folder"
            raise BenchmarkError(f"{path}: `include`: {name[:200]!r} {what}", "copy it there, and include it once")
        merged |= _merged(other, files, seen)
    return merged | {key: value for key, value in settings.items() if key != "include"}


def _is_name(settings: Mapping[str, Any], key: str) -> bool:
    return isinstance(settings.get(key), str)


def _members(settings: Any) -> list[Any]:
    """Return what a group consists of; empty for a task or a name."""
    members = settings.get("task") if isinstance(settings, Mapping) and _is_name(settings, "group") else None
    return members if isinstance(members, list) else []


def _count(folder: Path, members: list[Any], groups: Mapping[str, list[Any]], above: set[str]) -> int:
    """Return how many tasks and groups a group has within it. Raises BenchmarkError for a group within itself."""
    total = 0
    for member in members:
        name = member if isinstance(member, str) else str(member.get("group", member.get("task")))
        if name in above:
            raise BenchmarkError(f"{folder}: `group` {name} is within itself", "take it out of its own list")
        total += 1 + _count(folder, groups.get(name) or _members(member), groups, above | {name})
        if total > bounded.MEMBERS:
            raise BenchmarkError(f"{folder}: more than {bounded.MEMBERS:,} tasks in a `group`", "list fewer")
    return total
