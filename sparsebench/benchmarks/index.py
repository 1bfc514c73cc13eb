"""The names of lm-eval's own tasks, found in its task files without importing it, and remembered per version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sparsebench.benchmarks.catalog import TASKS
from sparsebench.errors import BenchmarkError
from sparsebench.sources import Cache
from sparsebench.sources.cache import read_json, write_json

_KEY = re.compile(rb"""^["']?(task|group|class|include)["']?:[ \t]*([^\s#].*?)[ \t\r]*(?:[ \t]#.*)?$""", re.MULTILINE)
GROUP = ""
"""What stands in the index in place of a file, for a group of tasks."""


def names(cache: Cache | None = None) -> tuple[str, ...]:
    """Every task name that ``score`` takes, our own first."""
    return (*TASKS, *(name for name in stock(cache) if name not in TASKS))


def known(name: str, cache: Cache | None = None) -> bool:
    """Whether there is such a task: one of our own or one of lm-eval's tasks and groups."""
    return name in TASKS or name in stock(cache)


def stock(cache: Cache | None = None) -> Mapping[str, str]:
    """lm-eval's tasks and groups by name, each task with its file under lm-eval's tasks folder.

    Raises BenchmarkError when lm-eval is not installed.
    """
    from importlib.metadata import version

    root = tasks_folder()
    note = (cache or Cache()).root / "lm_eval_tasks" / f"{version('lm_eval')}.json"
    found = read_json(note)
    if found is None:
        found = _scan(root)
        write_json(note, found)
    return found


def tasks_folder() -> Path:
    """The folder of lm-eval's task files. Raises BenchmarkError when lm-eval is not installed."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError("lm-eval is not installed", "pip install lm_eval")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _scan(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(root.glob("**/*.yaml")):
        entry = _entry(path)
        if entry:
            name, is_group = entry
            found.setdefault(name, GROUP if is_group else path.relative_to(root).as_posix())
    return found


def _entry(path: Path) -> tuple[str, bool] | None:
    """The name that a task file declares, itself or through what it includes, and whether it is a group's."""
    declared: dict[str, str] = {}
    for key, value in _KEY.findall(path.read_bytes()):
        declared.setdefault(key.decode(), value.decode().strip("\"'"))
    # A task made by a class may name its group beside itself.
    if "group" in declared and "class" not in declared:
        return declared["group"], True
    if "task" in declared:
        return declared["task"], False
    included = path.parent / declared["include"] if "include" in declared else None
    return _entry(included) if included and included.is_file() else None
