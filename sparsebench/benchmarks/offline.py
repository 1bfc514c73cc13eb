"""lm-eval's task objects over local data: our task files with every path made real."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from sparsebench import sources
from sparsebench.benchmarks.catalog import TASKS, definition, located
from sparsebench.benchmarks.contract import TaskSpec
from sparsebench.benchmarks.index import tasks_folder


def serves(spec: TaskSpec) -> bool:
    """Whether the task can be scored from local data; examples may come from a split that only the hub has."""
    task = TASKS.get(spec.task)
    return task is not None and bool(task.examples or not spec.num_fewshot)


def load(name: str, cache: sources.Cache) -> dict[str, Any]:
    """The task, or the group with its subtasks, as ``TaskManager.load`` gives them. Raises what lm-eval raises."""
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        write(name, cache, Path(folder))
        return dict(TaskManager(include_path=folder, include_defaults=False).load([name]))


def write(name: str, cache: sources.Cache, folder: Path) -> None:
    """Write the files of a task for lm-eval to read: one, or those of a group and its subtasks."""
    import yaml

    ours = dict(definition(name))
    stock = tasks_folder() / ours.pop("include")
    if TASKS[name].parts == 1:
        _write(folder / f"{name}.yaml", stock, _with_paths(ours, "", cache))
        return
    for file in sorted(stock.parent.glob("*.yaml")):
        subject = yaml.safe_load(file.read_text(encoding="utf-8")).get("dataset_name")
        _write(folder / file.name, file, _with_paths(ours, subject, cache) if subject else {})


def _with_paths(ours: dict[str, Any], subject: str, cache: sources.Cache) -> dict[str, Any]:
    """Our keys with files in place of sources, ``{dataset_name}`` filled in."""
    files = {}
    for split, text in ours["dataset_kwargs"]["data_files"].items():
        source, inner = located(text)
        files[split] = str(sources.fetch(sources.parse(source), cache) / inner.format(dataset_name=subject))
    kwargs = (
        {"data_files": files}
        if "custom_dataset" in ours
        else {**ours["dataset_kwargs"], "data_files": files, "cache_dir": str(cache.root / "datasets")}
    )
    return {**ours, "dataset_kwargs": kwargs}


def _write(path: Path, stock: Path, ours: dict[str, Any]) -> None:
    import yaml

    function = ours.pop("custom_dataset", None)
    text = yaml.safe_dump({"include": str(stock), **ours})
    # No plain YAML value says that it names a function.
    path.write_text(text + (f"custom_dataset: !function {function}\n" if function else ""), encoding="utf-8")
