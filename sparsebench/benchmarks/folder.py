"""A user's folder of lm-eval task files: read as data, so that no file runs code.

lm-eval's own reader lets a file name any Python code (``!function`` and every other YAML tag), a metric that `evaluate`
downloads as a script, and templates that reach Python objects. Files that name code or such a metric are refused;
templates run in Jinja's sandbox.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import BenchmarkError
from sparsebench.manifest.problems import did_you_mean

_REFUSED = {
    "class": "names Python code",
    "use_prompt": "names another file, or a package",
    "unsafe_code": "runs what a model writes",
    "custom_dataset": "names Python code",
}
_WAY_OUT = "write it without, or as a plugin (docs/howto/own-benchmark.md), which is code that you trust"
Files = dict[Path, dict[str, Any]]
"""Task files by their paths within the folder."""


def definitions(folder: Path, task: str) -> Files:
    """Return every task file of a folder, checked; one of them must declare ``task``, as a task or as a group.

    Raises BenchmarkError naming the file and the key.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: a file, where a folder of lm-eval's task files is needed", "name the folder")
    found = {path.relative_to(folder): _read(path) for path in sorted(folder.glob("**/*.yaml"))}
    names = {str(one[key]) for one in found.values() for key in ("task", "group") if isinstance(one.get(key), str)}
    if task not in names:
        there = f"it has {', '.join(sorted(names)[:20])}" if names else "no .yaml file in it declares a `task`"
        raise BenchmarkError(f"{folder}: no task {task!r} in it", did_you_mean(task, names) or there)
    for path, one in found.items():
        _check(folder, path, one, found)
    return found


def load(folder: Path, task: str) -> dict[str, Any]:
    """Load the task, or the group with its subtasks, as ``TaskManager.load`` does. Raises what lm-eval raises."""
    import yaml
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as copy:
        # lm-eval reads a copy of what was checked: the folder's own files may change meanwhile.
        for path, one in definitions(folder, task).items():
            (Path(copy) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(copy) / path).write_text(yaml.safe_dump(_located(folder, one)), encoding="utf-8")
            _check_metrics(folder / path, one)
        return dict(TaskManager(include_path=copy, include_defaults=False).load([task]))


@contextmanager
def sandboxed() -> Iterator[None]:
    """Run lm-eval's templates in Jinja's sandbox, where they reach values but not the Python objects behind them."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    stock = utils.env
    safe = ImmutableSandboxedEnvironment(
        loader=stock.loader, undefined=stock.undefined, keep_trailing_newline=stock.keep_trailing_newline
    )
    safe.filters, utils.env = stock.filters, safe
    try:
        yield
    finally:
        utils.env = stock


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        with bounded.uncollected():
            found = yaml.safe_load(bounded.read(path, BenchmarkError, bounded.MANIFEST))
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        line = mark.line + 1 if mark else 1
        tag = str(error.problem).rpartition("for the tag ")[2] or "a tag"
        raise BenchmarkError(f"{path}:{line}: {tag} names Python code, which is not run", _WAY_OUT) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchmarkError(f"{path}: not YAML ({reason})", "mend it, or take it out of the folder") from error
    if not isinstance(found, dict):
        raise BenchmarkError(f"{path}: it holds no mapping", "mend it, or take it out of the folder")
    return found


def _check(folder: Path, path: Path, one: Mapping[str, Any], every: Files) -> None:
    """Refuse keys that run code, and an ``include`` of a file outside the folder."""
    where = folder / path
    for key, value in _keys(one):
        if key in _REFUSED and value not in (None, False):
            raise BenchmarkError(f"{where}: `{key}` {_REFUSED[key]}, which is not allowed here", _WAY_OUT)
        if key == "hf_evaluate" and value:
            raise BenchmarkError(f"{where}: `hf_evaluate` runs a script of the hub's", "take a metric of lm-eval's own")
    included = one.get("include", [])
    for name in included if isinstance(included, list) else [included]:
        if Path(where.parent / str(name)).resolve() not in {(folder / other).resolve() for other in every}:
            raise BenchmarkError(f"{where}: it includes {name}, which is no file of this folder", "copy it there")


def _keys(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(key), inner) for key, inner in value.items())
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def _check_metrics(path: Path, one: Mapping[str, Any]) -> None:
    """Refuse a metric that is not lm-eval's own: `evaluate` would run a script of that name."""
    from lm_eval.api.registry import metric_registry

    for entry in one.get("metric_list") or []:
        name = entry.get("metric") if isinstance(entry, Mapping) else None
        if name is not None and name not in metric_registry:
            raise BenchmarkError(f"{path}: {name!r} is no metric of lm-eval's", "take one of lm-eval's own")


def _located(folder: Path, value: Any) -> Any:
    """Make the folder's data files absolute paths: lm-eval resolves paths from the current folder."""
    if isinstance(value, Mapping):
        return {
            key: _files(folder, one) if key == "data_files" else _located(folder, one) for key, one in value.items()
        }
    return [_located(folder, one) for one in value] if isinstance(value, list) else value


def _files(folder: Path, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _files(folder, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_files(folder, one) for one in value]
    return str((folder / value).absolute()) if isinstance(value, str) and (folder / value).is_file() else value
