"""Benchmarks over the user's own data: a manifest's entry with a ``source``, as a `Benchmark` like those of the table.

A cell's settings hold the hash of the data's content, not their path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from sparsebench import bounded, sources
from sparsebench.benchmarks.catalog import (
    LM_EVAL_FAMILIES,
    WIKITEXT2,
    WIKITEXT2_TEST,
    Benchmark,
    ChanceRule,
    Form,
    Scale,
    all_tasks,
)
from sparsebench.benchmarks.folder import definitions
from sparsebench.errors import BenchmarkError
from sparsebench.manifest.names import LM_EVAL, Family
from sparsebench.manifest.problems import did_you_mean
from sparsebench.sources.text import each_text, read_records, suffix_of

_GROWTH = 3
"""How many times its size a compressed text has when unpacked, for estimates."""
_TOKEN_BYTES = 4
_SAMPLED_LINES = 100
WINDOW, MASKED_WINDOW = 1024, 128
"""Default tokens per window of text, for a decoder and for a masked language model."""


@dataclass(frozen=True)
class OwnTaskKind:
    """A kind of benchmark that the user's own data can be scored with.

    ``columns`` are the roles of a record's values, and the names of its columns unless an entry renames them. ``takes`` are the
    manifest keys that such an entry accepts. ``length`` is the default length in tokens, which for a window of passages
    is cut to the model's maximum. ``source`` is the default data. ``optional`` are columns that a file may lack, and
    ``metrics`` what an entry may choose from.
    """

    families: tuple[Family, ...]
    adapter: str
    metric: str
    chance: ChanceRule
    description: str
    form: Form = "records"
    scale: Scale = "0/1"
    columns: tuple[str, ...] = ()
    takes: tuple[str, ...] = ("columns", "name")
    length: int | None = None
    source: str = ""
    optional: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()


KINDS: Mapping[str, OwnTaskKind] = {
    "perplexity": OwnTaskKind(
        ("decoder",), "perplexity", "perplexity", "none", "perplexity of your text; lower is better", "passages",
        "continuous", takes=("field", "length", "stride", "name"), length=WINDOW,
    ),
    WIKITEXT2: OwnTaskKind(
        ("decoder",), "perplexity", "perplexity", "none", "WikiText-2 as papers report it", "published", "continuous",
        takes=("field", "length", "stride", "name"), length=2048, source=WIKITEXT2_TEST,
    ),
    "pseudo_perplexity": OwnTaskKind(
        ("encoder",), "pseudo_perplexity", "pseudo_perplexity", "none", "pseudo-perplexity of your text; lower is better",
        "passages", "continuous", takes=("field", "length", "name"), length=MASKED_WINDOW,
    ),
    "choices": OwnTaskKind(
        LM_EVAL_FAMILIES, "harness", "acc", "1/choices", "your questions: which of the choices is likeliest",
        columns=("context", "choices", "gold"), takes=("columns", "name", "num_fewshot"),
    ),
    "generation": OwnTaskKind(
        ("decoder", "encoder-decoder"), "generation", "exact_match", "open", "your questions: the answer as it should be",
        columns=("input", "target"), takes=("columns", "metric", "length", "name"),
        metrics=("exact_match", "f1", "rouge_l", "chrf", "word_error_rate"),
    ),
    "classify": OwnTaskKind(
        LM_EVAL_FAMILIES, "classification", "acc", "majority", "your labelled texts: what the model's own head makes of them",
        columns=("text", "label"), takes=("columns", "metric", "name"), optional=("text_pair",),
        metrics=("acc", "macro_f1", "pearson", "spearman"),
    ),
    "similarity": OwnTaskKind(
        ("encoder",), "pairs", "spearman", "uncorrelated", "your pairs: Spearman's correlation of cosine similarity and score",
        scale="continuous", columns=("sentence1", "sentence2", "score"),
    ),
    "probe": OwnTaskKind(
        ("encoder",), "probe", "acc", "1/choices", "your classes: a linear probe on sentence vectors", scale="continuous",
        columns=("text", "label"),
    ),
    "tags": OwnTaskKind(
        ("encoder",), "tagging", "entity_f1", "open", "your sentences: F1 over entities, by the head's tags of their words",
        scale="continuous", columns=("tokens", "tags"),
    ),
    LM_EVAL: OwnTaskKind(
        LM_EVAL_FAMILIES, "harness", "", "none", "a task of your folder of lm-eval's files", "", takes=("num_fewshot",)
    ),
}  # fmt: skip
"""Each kind by a manifest's `task`. Any other `task` with a `source` is a task of a folder of lm-eval's files."""


_CHANCE: Mapping[str, ChanceRule] = {"word_error_rate": "none", "pearson": "uncorrelated", "spearman": "uncorrelated"}
"""The chance rules of metrics that differ from their kind's."""


def kind_of(task: str) -> str:
    """Return the kind of a manifest's entry that has a source."""
    return task if task in KINDS else LM_EVAL


@dataclass(frozen=True)
class OwnData:
    """The user's own data and how they are scored.

    ``content`` is the hash of the data; ``source`` is where they are on this machine. ``columns`` are pairs (role in a
    record, name of its column), only for columns that are renamed.
    """

    kind: str
    content: str
    field: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    length: int | None = None
    stride: int | None = None
    metric: str | None = None
    source: str = dataclasses.field(default="", compare=False)

    @classmethod
    def read(cls, settings: Mapping[str, Any], source: str = "") -> OwnData:
        """Restore an instance from the part of a cell's settings that ``settings`` returned."""
        columns = tuple((role, name) for role, name in settings.get("columns", {}).items())
        return cls(**{**settings, "columns": columns}, source=source)

    def settings(self) -> dict[str, Any]:
        """Return its part of a cell's settings. Empty values are left out, so that a new key leaves old ids alone."""
        settings = dataclasses.asdict(self) | {"columns": dict(self.columns)}
        return {key: value for key, value in settings.items() if value and key != "source"}

    @property
    def label(self) -> str:
        """The data's source without this machine's folders."""
        source = sources.parse(self.source)
        return f"path:{Path(source.location).name}" if source.kind == "path" else source.text

    @property
    def metric_used(self) -> str:
        """The metric: the entry's or its kind's."""
        return self.metric or KINDS[self.kind].metric

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that are read."""
        kind, column_by_role = KINDS[self.kind], dict(self.columns)
        roles = (*kind.columns, *(role for role in kind.optional if role in column_by_role))
        return tuple(column_by_role.get(role, role) for role in roles) or ((self.field,) if self.field else ())

    @property
    def form(self) -> Form:
        """The form of the data."""
        return KINDS[self.kind].form

    @property
    def tokens(self) -> int | None:
        """The length of a window or of an output: the entry's or its kind's."""
        return self.length or KINDS[self.kind].length

    def benchmark(self, name: str) -> Benchmark:
        """Return the benchmark under a name. The number of documents is 0: it is not known."""
        kind, metric = KINDS[self.kind], self.metric_used
        scale: Scale = "continuous" if metric != kind.metric else kind.scale
        chance = _CHANCE.get(metric, kind.chance)
        return Benchmark(
            name, kind.families, kind.adapter, metric, chance, 0, kind.description, scale,
            tokens=self.tokens, data=(self.source,), fields=self.fields, form=self.form, stride=self.stride,
        )  # fmt: skip

    @property
    def window(self) -> int | None:
        """The window in tokens that a model must take: the entry's or the published one; None if it may be cut."""
        return self.tokens if self.form == "published" else self.length

    def fetch(self, cache: sources.Cache) -> Path:
        """Return the file or folder. Raises BenchmarkError if its content has changed since the plan was made."""
        source = sources.parse(self.source)
        path = sources.fetch(source, cache)
        if source.kind == "path" and self.content != content(source, cache):
            raise BenchmarkError(f"{self.label}: it has changed since the run began", "run again")
        return path

    def inspect(self, name: str, cache: sources.Cache) -> None:
        """Read the beginning of the data, unless they have yet to be fetched.

        Raises SourceError or BenchmarkError if they lack what the task reads.
        """
        source = sources.parse(self.source)
        if source.kind != "path":
            return
        path = sources.fetch(source, cache)
        if self.kind == LM_EVAL:
            if path.is_file():
                files = [kind for kind in KINDS if kind != LM_EVAL]
                near = did_you_mean(name, files)
                raise BenchmarkError(
                    f"task {name}: {path} is a file, where a folder of lm-eval's task files is needed",
                    f"{near} tasks that take a file: {', '.join(files)}".strip(),
                )
            definitions(path, name)
        elif self.form in ("passages", "published"):
            if next(each_text(path, *self.fields), None) is None:
                raise _no_records(name, path)
        else:
            record = next(read_records(path, *self.fields), None)
            if record is None:
                raise _no_records(name, path)
            column_values(name, str(path), 1, record, self.fields)

    def estimate_documents(self, cache: sources.Cache) -> int:
        """Estimate the number of documents, or windows of text, from the size of a local file; 0 if unknown."""
        source = sources.parse(self.source)
        if source.kind != "path" or self.kind == LM_EVAL:
            return 0
        path = sources.fetch(source, cache)
        size = path.stat().st_size * (_GROWTH if path.suffix.lower() in (".gz", ".zst") else 1)
        if self.form != "records":
            return max(1, size // _TOKEN_BYTES // (self.stride or self.tokens or WINDOW))
        if suffix_of(path) not in (".jsonl", ".ndjson", ".csv", ".tsv"):
            return 0
        line_bytes = [len(line.encode()) for line in islice(bounded.lines(path, BenchmarkError), _SAMPLED_LINES)]
        return size * len(line_bytes) // max(1, sum(line_bytes))


def find_benchmark(task: str, own_data: OwnData | None) -> Benchmark | None:
    """Return the benchmark of a name: that of the user's own data, or the table's; None if only lm-eval has it."""
    return own_data.benchmark(task) if own_data else all_tasks().get(task)


def benchmark_of(settings: Mapping[str, Any]) -> Benchmark | None:
    """Return the benchmark in a cell's settings; None for a task that only lm-eval has."""
    return find_benchmark(settings["task"], OwnData.read(settings["own"]) if "own" in settings else None)


def default_name(task: str, source: sources.Source) -> str:
    """Return the default name of a task over a source: ``perplexity-notes`` for ``path:notes.jsonl``."""
    if task == WIKITEXT2 or kind_of(task) == LM_EVAL:
        return task
    inner = source.parts[-1].inner if source.parts else source.text
    last = re.split(r"[/\\]", source.name or source.file or source.location or inner)[-1]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", last.split(".")[0] or last).strip("-")
    # Of a name in another script nothing is left.
    return f"{task}-{stem or hashlib.sha256(last.encode(errors='surrogatepass')).hexdigest()[:8]}"[:64]


def content(source: sources.Source, cache: sources.Cache) -> str:
    """Return a short hash of the source's content and of the suffix that decides how it is read. Raises SourceError."""
    fingerprint = sources.fingerprint(source, cache)
    read_by = suffix_of(Path(source.location)) if source.kind == "path" else source.name or source.file
    return hashlib.sha256(f"{fingerprint}\0{read_by}".encode()).hexdigest()[:20]


def column_values(task: str, where: str, number: int, record: Any, fields: tuple[str, ...]) -> list[Any]:
    """Return the values of a record's columns. Raises BenchmarkError, naming a missing column and those there are."""
    columns = record if isinstance(record, Mapping) else {}
    missing = [name for name in fields if name not in columns]
    if missing:
        column_names = ", ".join(map(str, columns))[:500] or "none"
        raise BenchmarkError(
            f"task {task}: {where} has no column {missing[0]!r} in record {number}",
            f"it has: {column_names}; `columns` says which is which",
        )
    return [columns[name] for name in fields]


def records(task: str, path: Path, fields: tuple[str, ...]) -> list[list[Any]]:
    """Return every record's columns, in order. Raises BenchmarkError for a file without records."""
    values = [
        column_values(task, str(path), number, record, fields)
        for number, record in enumerate(read_records(path, *fields), 1)
    ]
    if not values:
        raise _no_records(task, path)
    return values


def _no_records(task: str, path: Path) -> BenchmarkError:
    return BenchmarkError(f"task {task}: {path} holds no record", "name a file with data")


def has_text(value: Any) -> bool:
    """Return whether a record's value is text that is not blank."""
    return isinstance(value, str) and bool(value.strip())


def unusable(task: str, number: int, column: str, value: Any, expected: str) -> BenchmarkError:
    """Return the error for a record, numbered from 1, with a ``value`` other than what is ``expected``, such as a text."""
    return BenchmarkError(
        f"task {task}: record {number}: {column} is {str(value)[:40]!r}, not {expected}",
        "mend it, or leave the record out",
    )
