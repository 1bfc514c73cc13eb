"""lm-eval's task over a stranger's file: its data, and limits on templates, patterns and what they write.

The data are read by this package: `datasets` would follow addresses, unpack archives, decode images from anywhere and
count each use with a request. Imported only to score: lm-eval and pandas are heavy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import yaml
from datasets import Dataset, concatenate_datasets
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval import utils
from lm_eval.api.registry import filter_registry, metric_registry
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager, _factory

from sparsebench import bounded
from sparsebench.benchmarks.folder import MOST_CHOICES, SUFFIXES, check, data_files, definitions
from sparsebench.errors import BenchmarkError, library_errors
from sparsebench.paths import temporary_folder
from sparsebench.sources.text import read_records, suffix_of

_HINT = "mend the task file"


def load_task(folder: Path, task: str) -> dict[str, Any]:
    """Load the task, or the group with its subtasks, as ``TaskManager.load`` does. Raises what lm-eval raises."""
    stock = _factory.ConfigurableTask
    with temporary_folder() as name:
        copy = Path(name)
        # lm-eval reads a copy of what was checked: the folder's own files may change meanwhile.
        for path, settings in definitions(folder, task).items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text(yaml.safe_dump(settings), encoding="utf-8")
        try:
            _factory.ConfigurableTask = partial(FolderTask, TaskFolder(folder, copy))  # type: ignore[misc]
            loaded = dict(TaskManager(include_path=name, include_defaults=False).load([task]))
        finally:
            _factory.ConfigurableTask = stock  # type: ignore[misc]
    if not all(isinstance(loaded_task, FolderTask) for loaded_task in loaded["tasks"].values()):
        raise BenchmarkError(f"{folder}: this lm-eval makes tasks in an unknown way", "install the version in README")
    return loaded


@contextmanager
def sandboxed() -> Iterator[None]:
    """Run lm-eval's templates in Jinja's sandbox, where they reach values but not the Python objects behind them."""
    stock = utils.env
    safe = ImmutableSandboxedEnvironment(
        loader=stock.loader, undefined=stock.undefined, keep_trailing_newline=stock.keep_trailing_newline
    )
    safe.filters, utils.env = stock.filters, safe
    try:
        yield
    finally:
        utils.env = stock


@dataclass
class TaskFolder:
    """A folder whose tasks are being loaded; ``copy`` is where lm-eval reads its files. Tasks share time and data."""

    path: Path
    copy: Path
    allowance: bounded.Allowance = field(default_factory=bounded.Allowance)
    tables: dict[str, Dataset] = field(default_factory=dict)

    def where(self, settings: Mapping[str, Any]) -> str:
        """Return the file that defines a task, or the task's name where a group defines it."""
        file = Path(str((settings.get("metadata") or {}).get("config_source")))
        if file.is_relative_to(self.copy):
            return str(self.path / file.relative_to(self.copy))
        return f"{self.path}: {settings.get('task')}"

    def table(self, path: Path, kind: str, settings: Mapping[str, Any]) -> Dataset:
        """Return a data file's records, read once for all tasks."""
        key = f"{kind} {settings} {path}"
        if key not in self.tables:
            self.tables[key] = read_table(path, kind, settings)
        return self.tables[key]


class FolderTask(ConfigurableTask):
    """A task that reads its folder's data only, and whose templates and patterns run within the folder's allowance."""

    def __init__(self, folder: TaskFolder, config: dict[str, Any]) -> None:
        self.folder, self.where = folder, folder.where(config)
        check(folder.path, self.where, config)
        for entry in config.get("metric_list") or []:
            self._check_known("metric", entry.get("metric"), metric_registry)
        for pipeline in config.get("filter_list") or []:
            for step in pipeline.get("filter") or []:
                self._check_known("function", step.get("function"), filter_registry)
        with library_errors(self.where, _HINT, BenchmarkError):
            super().__init__(config=config)

    def _check_known(self, key: str, name: Any, registry: Any) -> None:
        """Refuse what is not lm-eval's own: `evaluate` would run a script of a metric's name."""
        if name not in registry:
            raise BenchmarkError(f"{self.where}: `{key}`: lm-eval has no {name!r}", "take one of lm-eval's own")

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the data files that the task names."""
        kind, settings = self.config.dataset_path, dataset_kwargs or {}
        files = data_files(self.folder.path, self.where, settings)
        if not files or kind is None:
            missing = "dataset_path" if kind is None else "dataset_kwargs.data_files"
            raise BenchmarkError(
                f"{self.where}: `{missing}` is missing", "name the folder's own data; nothing is fetched"
            )
        self.dataset = {
            split: concatenate_datasets([self.folder.table(path, kind, settings) for path in paths])
            for split, paths in files.items()
        }

    def aggregation(self) -> dict[str, Any]:
        """Return lm-eval's functions, each within the allowance."""
        return {
            name: lambda items, aggregate=aggregate: self._within("metric_list", aggregate, items, documents=len(items))
            for name, aggregate in super().aggregation().items()
        }

    def apply_filters(self) -> Any:
        """Filter what the model wrote."""
        return self._within("filter_list", super().apply_filters, documents=len(self.instances))

    def _within(self, key: str, function: Any, *args: Any, documents: int = 1, **keywords: Any) -> Any:
        culprit = f"{self.where}: `{key}`"
        with (
            library_errors(culprit, _HINT, BenchmarkError),
            self.folder.allowance.use(culprit, BenchmarkError, documents),
        ):
            result = function(*args, **keywords)
            _refuse_large(culprit, result)
            return result


def _limited(name: str, key: str) -> Any:
    def method(self: FolderTask, *args: Any, **keywords: Any) -> Any:
        return self._within(key, getattr(super(FolderTask, self), name), *args, **keywords)

    return method


for _name, _key in {
    "doc_to_text": "doc_to_text",
    "doc_to_target": "doc_to_target",
    "doc_to_choice": "doc_to_choice",
    "doc_to_prefix": "gen_prefix",
    "resolve_field": "description",
    "fewshot_context": "num_fewshot",
    "process_results": "metric_list",
}.items():
    setattr(FolderTask, _name, _limited(_name, _key))


def _refuse_large(culprit: str, result: Any) -> None:
    """Refuse a text that takes a tokenizer minutes, and too many choices or answers."""
    if isinstance(result, list):
        if len(result) > MOST_CHOICES:
            raise BenchmarkError(f"{culprit}: more than {MOST_CHOICES:,} of a document", "leave the document out")
        for item in result:
            _refuse_large(culprit, item)
    elif isinstance(result, str) and _is_long(result):
        limits = f"{10 * bounded.TEXT_CHARACTERS:,} characters, or {bounded.TEXT_CHARACTERS:,} without a space"
        raise BenchmarkError(f"{culprit}: a text of more than {limits}", "shorten it, or leave the document out")


def _is_long(text: str) -> bool:
    return len(text) > bounded.TEXT_CHARACTERS and (
        len(text) > 10 * bounded.TEXT_CHARACTERS or max(map(len, text.split()), default=0) > bounded.TEXT_CHARACTERS
    )


def read_table(path: Path, kind: str, settings: Mapping[str, Any]) -> Dataset:
    """Return a data file's records. Numbers in CSV are numbers, a text by itself is a record's ``text``.

    Raises BenchmarkError for a file whose suffix is of another kind, and SourceError for one that cannot be read.
    """
    if suffix_of(path) not in SUFFIXES[kind]:
        raise BenchmarkError(f"{path}: its suffix is not one of {kind}: {', '.join(SUFFIXES[kind])}", "rename it")
    if kind == "csv":
        next(read_records(path), None)  # refuses what would cost pandas minutes
        separator = settings.get("delimiter") or settings.get("sep") or ("\t" if suffix_of(path) == ".tsv" else ",")
        header = settings.get("header", "infer")
        with bounded.open_text(path, BenchmarkError) as file:
            table = pandas.read_csv(file, sep=separator, names=settings.get("column_names"), header=header)
        return Dataset.from_pandas(table, preserve_index=False)
    if kind == "text":
        rows: Any = (line.rstrip("\n") for line in bounded.lines(path, BenchmarkError))
    else:
        rows = read_records(path)
    records = [record if isinstance(record, Mapping) else {"text": record} for record in rows]
    names = dict.fromkeys(name for record in records for name in record)
    return Dataset.from_dict({name: [record.get(name) for record in records] for name in names})
