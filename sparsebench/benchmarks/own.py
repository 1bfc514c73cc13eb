"""Benchmarks over data of one's own: a manifest's entry with a ``source``, as a row like those of the table.

Where the data lie is no part of what is asked: a cell's settings hold the hash of their content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded, sources
from sparsebench.benchmarks.catalog import (
    FAMILIES,
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
from sparsebench.manifest.schema import LM_EVAL
from sparsebench.sources.text import each_text, read_records, suffix_of

if TYPE_CHECKING:
    from sparsebench.manifest.schema import Family


_UNPACKED, _TOKEN, _FIRST = 3, 4, 100
"""For estimates: how much a compressed text grows, bytes of a token, lines that are looked at."""
WINDOW, MASKED_WINDOW = 1024, 128
"""Tokens of a window of text for a decoder, and for a masked language model, where nothing says."""


@dataclass(frozen=True)
class OwnTaskKind:
    """What can be asked of data of one's own.

    ``columns`` are the parts of a record, which are the names of its columns unless an entry says otherwise; ``takes`` are
    the keys of an entry that mean something here; ``length`` is the tokens where an entry says none (of a text, or the model's
    maximum where that is less); ``source`` is the data where an entry names none.
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
        FAMILIES, "harness", "acc", "1/choices", "your questions: which of the choices is likeliest",
        columns=("context", "choices", "gold"), takes=("columns", "name", "num_fewshot"),
    ),
    "generation": OwnTaskKind(
        ("decoder", "encoder-decoder"), "generation", "exact_match", "open", "your questions: the answer as it should be",
        columns=("input", "target"), takes=("columns", "metric", "length", "name"),
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
    LM_EVAL: OwnTaskKind(FAMILIES, "harness", "", "none", "a task of your folder of lm-eval's files", "", takes=("num_fewshot",)),
}  # fmt: skip
"""By the name that a manifest's `task` has; any other, with a `source`, is a task of a folder of lm-eval's files."""


def kind_of(task: str) -> str:
    """The kind of an entry that has a source."""
    return task if task in KINDS else LM_EVAL


@dataclass(frozen=True)
class OwnData:
    """What is asked of data of one's own: ``content`` is the hash of the data, ``source`` where they lie on this machine.

    ``columns`` are pairs (part of a record, name of its column), those of the same name left out.
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
        """From what ``settings`` gives, a cell's part."""
        columns = tuple((part, name) for part, name in settings.get("columns", {}).items())
        return cls(**{**settings, "columns": columns}, source=source)

    def settings(self) -> dict[str, Any]:
        """What a cell's settings say of it; what is not said is left out, so that a new key leaves old ids alone."""
        found = dataclasses.asdict(self) | {"columns": dict(self.columns)}
        return {key: value for key, value in found.items() if value and key != "source"}

    @property
    def label(self) -> str:
        """Where the data come from, without this machine's folders."""
        kept = sources.parse(self.source)
        return f"path:{Path(kept.location).name}" if kept.kind == "path" else kept.text

    def row(self, name: str) -> Benchmark:
        """The row that stands for it under a name. Its number of documents is not known: 0."""
        kind, named = KINDS[self.kind], dict(self.columns)
        fields = tuple(named.get(part, part) for part in kind.columns) or ((self.field,) if self.field else ())
        metric = self.metric or kind.metric
        scale: Scale = "continuous" if metric != kind.metric else kind.scale
        chance: ChanceRule = "none" if metric == "word_error_rate" else kind.chance
        return Benchmark(
            name, kind.families, kind.adapter, metric, chance, 0, kind.description, scale,
            tokens=self.length or kind.length, data=(self.source,), fields=fields, form=kind.form, stride=self.stride,
        )  # fmt: skip

    @property
    def window(self) -> int | None:
        """The window that a model must take: what an entry says, or what is published; a default may be cut to what it takes."""
        return self.length or (KINDS[self.kind].length if KINDS[self.kind].form == "published" else None)

    def fetch(self, cache: sources.Cache) -> Path:
        """The file, or the folder. Raises BenchmarkError where it is not what the plan was made for."""
        source = sources.parse(self.source)
        path = sources.fetch(source, cache)
        if source.kind == "path" and self.content != content(source, cache):
            raise BenchmarkError(f"{self.label}: it has changed since the run began", "run again")
        return path

    def inspect(self, name: str, cache: sources.Cache) -> None:
        """Read the beginning of data on this machine's disk; what has yet to be fetched is not looked at.

        Raises SourceError or BenchmarkError where it does not hold what is asked for.
        """
        source = sources.parse(self.source)
        if source.kind != "path":
            return
        path, row = sources.fetch(source, cache), self.row(name)
        if self.kind == LM_EVAL:
            definitions(path, name)
        elif row.form in ("passages", "published"):
            next(each_text(path, *row.fields), None)
        else:
            record = next(read_records(path, *row.fields), None)
            part(name, str(path), 1, record, row.fields)

    def about(self, cache: sources.Cache) -> int:
        """About how many documents, or windows of text, data on this machine's disk have, by their size; 0: nobody knows yet."""
        source, row = sources.parse(self.source), self.row("")
        if source.kind != "path" or self.kind == LM_EVAL:
            return 0
        path = sources.fetch(source, cache)
        size = path.stat().st_size * (_UNPACKED if path.suffix in (".gz", ".zst") else 1)
        if row.form != "records":
            return max(1, size // _TOKEN // (self.stride or row.tokens or WINDOW))
        if suffix_of(path) not in (".jsonl", ".ndjson", ".csv", ".tsv"):
            return 0
        first = [len(line.encode()) for line in islice(bounded.lines(path, BenchmarkError), _FIRST)]
        return size * len(first) // max(1, sum(first))


def row_of(settings: Mapping[str, Any]) -> Benchmark | None:
    """The row of what a cell's settings ask for; None for what lm-eval alone knows."""
    if "own" in settings:
        return OwnData.read(settings["own"]).row(settings["task"])
    return all_tasks().get(settings["task"])


def default_name(task: str, source: sources.Source) -> str:
    """What a task over a source is called where nobody says: ``perplexity-notes`` for ``path:notes.jsonl``."""
    if task == WIKITEXT2 or kind_of(task) == LM_EVAL:
        return task
    last = re.split(r"[/\\]", source.file or source.location or source.parts[-1].inner)[-1]
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", last.split(".")[0] or last).strip("-")
    return f"{task}-{stem}"[:64]


def content(source: sources.Source, cache: sources.Cache) -> str:
    """A short hash of what the source holds, and of its suffix, by which it is read. Raises SourceError."""
    fingerprint = sources.fingerprint(source, cache)
    read_by = suffix_of(Path(source.location)) if source.kind == "path" else source.name or source.file
    return hashlib.sha256(f"{fingerprint}\0{read_by}".encode()).hexdigest()[:20]


def part(task: str, where: str, number: int, record: Any, fields: tuple[str, ...]) -> list[Any]:
    """The values of a record's columns. Raises BenchmarkError that names the column that is missing, and those there are."""
    found = record if isinstance(record, Mapping) else {}
    missing = [name for name in fields if name not in found]
    if missing:
        there = ", ".join(map(str, found))[:500] or "none"
        raise BenchmarkError(
            f"task {task}: {where} has no column {missing[0]!r} in record {number}",
            f"it has: {there}; `columns` says which is which",
        )
    return [found[name] for name in fields]


def rows(task: str, path: Path, fields: tuple[str, ...]) -> list[list[Any]]:
    """Every record's columns, in order. Raises BenchmarkError for a file without any."""
    found = [
        part(task, str(path), number, record, fields) for number, record in enumerate(read_records(path, *fields), 1)
    ]
    if not found:
        raise BenchmarkError(f"task {task}: {path} holds no record", "name a file with data")
    return found
