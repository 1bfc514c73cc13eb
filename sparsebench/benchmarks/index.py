"""lm-eval's task files: the names of its tasks, found without importing it, and our versions over local data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import all_tasks, definition, split_source
from sparsebench.benchmarks.contract import TaskSpec
from sparsebench.errors import INSTALL_MEASURE, BenchmarkError
from sparsebench.paths import temporary_folder
from sparsebench.sources.cache import read_json, write_json

_KEY = re.compile(rb"""^["']?(task|group|class|include)["']?:[ \t]*([^\s#].*?)[ \t\r]*(?:[ \t]#.*)?$""", re.MULTILINE)
GROUP = ""
"""Stands in the index instead of a file for a group of tasks."""


def task_names() -> tuple[str, ...]:
    """Return every task name that ``score`` takes, our own first."""
    return tuple(dict.fromkeys([*all_tasks(), *stock_files()]))


def is_task(name: str, cache: sources.Cache | None = None) -> bool:
    """Return whether a task of this name exists: one of our own, or one of lm-eval's tasks and groups."""
    return name in all_tasks() or name in stock_files(cache)


def stock_files(cache: sources.Cache | None = None) -> Mapping[str, str]:
    """Return lm-eval's tasks and groups by name, each task with its file under lm-eval's tasks folder.

    Raises BenchmarkError when lm-eval is not installed.
    """
    from importlib.metadata import version

    root = tasks_folder()
    cache_file = (cache or sources.Cache()).root / "lm_eval_tasks" / f"{version('lm_eval')}.json"
    files = read_json(cache_file)
    if files is None:
        files = _scan(root)
        write_json(cache_file, files)
    return files


def tasks_folder() -> Path:
    """Return the folder of lm-eval's task files. Raises BenchmarkError when lm-eval is not installed."""
    from importlib.util import find_spec

    spec = find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise BenchmarkError("lm-eval is not installed", INSTALL_MEASURE)
    return Path(spec.submodule_search_locations[0]) / "tasks"


def _scan(root: Path) -> dict[str, str]:
    files: dict[str, str] = {}
    for path in sorted(root.glob("**/*.yaml")):
        name, is_group = _declared_name(path)
        if name:
            files.setdefault(name, GROUP if is_group else path.relative_to(root).as_posix())
    return files


def _declared_name(path: Path) -> tuple[str, bool]:
    """Return the name that a task file declares, itself or through what it includes ("": none); whether it is a group's."""
    declared: dict[str, str] = {}
    for key, value in _KEY.findall(path.read_bytes()):
        declared.setdefault(key.decode(), value.decode().strip("\"'"))
    # A task made by a class may name its group beside itself.
    if "group" in declared and "class" not in declared:
        return declared["group"], True
    if "task" in declared:
        return declared["task"], False
    included = path.parent / declared["include"] if "include" in declared else None
    return _declared_name(included) if included and included.is_file() else ("", False)


def has_local_data(spec: TaskSpec) -> bool:
    """Return whether the task can be scored from local data; examples in its prompt may need a split on the hub."""
    task = spec.benchmark
    return task is not None and bool(task.examples or not spec.num_fewshot)


def load(name: str, cache: sources.Cache) -> dict[str, Any]:
    """Load the task, or the group with its subtasks, as ``TaskManager.load`` does. Raises what lm-eval raises."""
    from datasets import config
    from lm_eval.tasks import TaskManager

    counts = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # `datasets` would tell a server that a file of this machine was read
    try:
        with temporary_folder() as folder:
            write(name, cache, Path(folder))
            return dict(TaskManager(include_path=folder, include_defaults=False).load([name]))
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counts


def write(name: str, cache: sources.Cache, folder: Path) -> None:
    """Write the files of a task for lm-eval to read: one, or those of a group and its subtasks."""
    import yaml

    settings = dict(definition(name))
    stock_file = tasks_folder() / settings.pop("include")
    if all_tasks()[name].parts == 1:
        _write(folder / f"{name}.yaml", stock_file, _with_paths(settings, "", cache))
        return
    for file in sorted(stock_file.parent.glob("*.yaml")):
        subject = yaml.safe_load(file.read_text(encoding="utf-8")).get("dataset_name")
        _write(folder / file.name, file, _with_paths(settings, subject, cache) if subject else {})


def _with_paths(settings: dict[str, Any], subject: str, cache: sources.Cache) -> dict[str, Any]:
    """Return our keys with files instead of sources, fetched, and with ``{dataset_name}`` filled in."""
    files = {}
    for split, text in settings["dataset_kwargs"]["data_files"].items():
        source, inner = split_source(text)
        files[split] = str(sources.fetch(sources.parse(source), cache) / inner.format(dataset_name=subject))
    kwargs: dict[str, Any] = {"data_files": files}
    if "custom_dataset" not in settings:
        kwargs = {**settings["dataset_kwargs"], **kwargs, "cache_dir": str(cache.root / "datasets")}
    return {**settings, "dataset_kwargs": kwargs}


def _write(path: Path, stock_file: Path, settings: dict[str, Any]) -> None:
    import yaml

    function = settings.pop("custom_dataset", None)
    text = yaml.safe_dump({"include": str(stock_file), **settings})
    # A function's tag has to be appended by hand: safe_dump cannot write it.
    path.write_text(text + (f"custom_dataset: !function {function}\n" if function else ""), encoding="utf-8")
