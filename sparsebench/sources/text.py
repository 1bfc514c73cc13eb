"""Reading text from a data file: plain text, JSON, JSONL and CSV (each also as .gz or .zst), Arrow as `datasets` writes
it, and Parquet.

A record is a mapping, or a text by itself. A field may be nested (``doc.passage``). A list on the way to it yields each
of its entries.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import dropwhile, zip_longest
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import SourceError
from sparsebench.escape import is_text
from sparsebench.sources import columnar
from sparsebench.sources.columnar import missing_field, unreadable

Record = str | Mapping[str, Any]
DEFAULT_FIELD = "text"
"""The field of a record's text where none is named."""


@dataclass(frozen=True)
class Texts:
    """The distinct rows of a source in their order, each with one text per field, and how many rows were left out."""

    rows: tuple[tuple[str, ...], ...]
    empty: int
    repeated: int


_LONG_WORD = re.compile(rf"(?<!\S)\S{{{bounded.TEXT_CHARACTERS + 1}}}")


def read_texts(path: Path, *fields: str) -> Texts:
    """Read a file's rows, each a tuple with one text per field.

    Without a field, plain text gives its paragraphs and records give their field ``text``. A row with an empty text is
    left out, and so is one that repeats an earlier row exactly. Raises SourceError for a missing field (with the fields
    that exist), for a value that is not text, and for a file without any text.
    """
    return _distinct(
        each_text(path, *fields),
        f"{path}: it holds no text",
        "name a file with text, and with `field` where that stands",
    )


def _distinct(rows: Iterable[tuple[str, ...]], message: str, hint: str) -> Texts:
    """Keep each row once, without rows that have an empty text. Raises SourceError(``message``) if no row is left."""
    distinct: dict[tuple[str, ...], None] = {}
    count = empty = 0
    for row in rows:
        count += 1
        if all(text.strip() for text in row):
            distinct.setdefault(row)
        else:
            empty += 1
    if not distinct:
        raise SourceError(message, hint)
    return Texts(tuple(distinct), empty, count - empty - len(distinct))


def read_labelled(path: Path, field: str | None, label: str) -> Texts:
    """Read pairs of a record's text and its label, which may be a number. Rows are left out as in ``read_texts``.

    Raises SourceError as ``read_texts`` does, for a label that is neither a text nor a whole number, and for a record
    that has not exactly one text.
    """
    rows = _each_labelled(path, field or DEFAULT_FIELD, label)
    return _distinct(rows, f"{path}: it holds no text with a label", "name a file with both")


def _each_labelled(path: Path, field: str, label: str) -> Iterator[tuple[str, str]]:
    for number, record in enumerate(read_records(path, field, label), start=1):
        where = f"{path}: record {number}"
        if isinstance(record, str):
            raise SourceError(f"{where}: a text by itself, without a field {label!r}", "name a file of records")
        if label not in record:
            raise missing_field(where, label, list(map(str, record)))
        texts, label_value = _texts(record, field, field, where), record[label]
        if len(texts) != 1 or not (label_value is None or isinstance(label_value, str) or type(label_value) is int):
            problem = f"{len(texts)} texts" if len(texts) != 1 else f"a {type(label_value).__name__} as its {label!r}"
            raise SourceError(f"{where}: {problem}", "one text and one label a record")
        _refuse_untokenizable(texts[0], where)
        yield texts[0], "" if label_value is None else str(label_value)


def each_text(path: Path, *fields: str) -> Iterator[tuple[str, ...]]:
    """Yield every row as ``read_texts`` reads it, empty and repeated ones too."""
    names = fields or (DEFAULT_FIELD,)
    for number, record in enumerate(read_records(path, *names), start=1):
        where = f"{path}: record {number}"
        for row in _rows(record, names, where):
            for text in row:
                _refuse_untokenizable(text, where)
            yield row


def _refuse_untokenizable(text: str, where: str) -> None:
    """Refuse a text that no tokenizer takes (half a surrogate pair), or only in minutes (a very long word)."""
    if len(text) > bounded.TEXT_CHARACTERS and (word := _LONG_WORD.search(text)):
        problem = f"a word of more than {bounded.TEXT_CHARACTERS:,} characters, from {word[0][:20]!r} on"
        raise SourceError(f"{where}: {problem}", "leave this text out")
    if not is_text(text):
        problem = f"{where}: it holds half of a surrogate pair, such as \\ud800"
        raise SourceError(problem, "mend it, or leave this text out")


def read_records(path: Path, *fields: str) -> Iterator[Record]:
    """Yield the file's records; from a columnar file only the columns that ``fields`` need, if any are named.

    Plain text gives its paragraphs, which blank lines separate, or its lines if no blank line separates any of them.
    The suffix decides how the file is read; an unknown suffix means plain text. Raises SourceError for a folder and for
    a file that cannot be read as its suffix says.
    """
    bounded.refuse_special(path, SourceError)
    suffix = suffix_of(path)
    try:
        yield from _READERS.get(suffix, _paragraphs)(path, fields)
    except csv.Error as error:
        raise unreadable(path, suffix.removeprefix("."), error) from error


def suffix_of(path: Path) -> str:
    """Return the suffix that decides how a file is read, in lower case: ``.jsonl`` for ``notes.JSONL.gz``."""
    return next((part.lower() for part in reversed(path.suffixes) if part.lower() not in (".gz", ".zst")), "")


def is_plain(path: Path) -> bool:
    """Return whether a file is read as plain text, without records."""
    return suffix_of(path) not in _READERS


def _paragraphs(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    if wrong_field := _missing_from_plain(fields):
        hint = "leave `field` out; JSONL, Arrow and Parquet have fields"
        raise SourceError(f"{path}: plain text has no field {wrong_field!r}", hint)
    has_paragraphs = _has_paragraphs(bounded.lines(path, SourceError))
    paragraph: list[str] = []
    for line in bounded.lines(path, SourceError):
        if line.strip():
            paragraph.append(line.rstrip("\n"))
        if paragraph and not (has_paragraphs and line.strip()):
            yield "\n".join(paragraph)
            paragraph = []
    if paragraph:
        yield "\n".join(paragraph)


def _missing_from_plain(fields: tuple[str, ...]) -> str | None:
    """Return a field that a text by itself lacks; None where at most DEFAULT_FIELD is asked for, once."""
    if not fields or fields == (DEFAULT_FIELD,):
        return None
    return next((field for field in fields if field != DEFAULT_FIELD), DEFAULT_FIELD)


def _has_paragraphs(lines: Iterable[str]) -> bool:
    """Return whether a blank line stands between two lines that are not blank."""
    begun = blank = False
    for line in lines:
        if line.strip():
            if blank:
                return True
            begun = True
        else:
            blank = begun
    return False


def _json_lines(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    for number, line in enumerate(bounded.lines(path, SourceError), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield _record(_parse_json(line, path, where), where)


def _json(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    """Yield a list's entries; anything else is one record. JSON Lines, as C4's ``.json.gz`` hold, are read as such."""
    first_line = ""
    with suppress(SourceError):  # a line longer than is read at once: `read_text` below refuses it
        first_line = next((line for line in bounded.lines(path, SourceError) if line.strip()), "").strip()
    if first_line.startswith("{") and first_line.endswith("}"):
        yield from _json_lines(path, fields)
        return
    content = _parse_json(bounded.read_text(path, SourceError), path, str(path))
    for number, value in enumerate(content if isinstance(content, list) else [content], start=1):
        yield _record(value, f"{path}: entry {number}")


def _csv(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    delimiter = "\t" if suffix_of(path) == ".tsv" else ","
    # Python's own limit is 131,072 characters, fewer than a long document has.
    csv.field_size_limit(bounded.JSON_BYTES)

    def lines() -> Iterator[str]:
        for number, line in enumerate(bounded.lines(path, SourceError), start=1):
            if line.count(delimiter) > bounded.JSON_VALUES:
                raise SourceError(f"{path}:{number}: more than {bounded.JSON_VALUES:,} values", "shorten the line")
            yield line

    rows = csv.DictReader(dropwhile(str.isspace, lines()), delimiter=delimiter)
    if len(rows.fieldnames or ()) > bounded.CSV_COLUMNS:
        raise SourceError(f"{path}: more than {bounded.CSV_COLUMNS:,} columns", "keep the ones with text")
    for row in rows:
        yield {name: value for name, value in row.items() if isinstance(name, str)}


_READERS: Mapping[str, Callable[[Path, tuple[str, ...]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".arrow": columnar.arrow,
    ".parquet": columnar.parquet,
}


def _parse_json(text: str, path: Path, where: str) -> Any:
    return bounded.parse_json(
        text, where, SourceError, f"correct it, or rename {path.name}: its suffix decides how it is read"
    )


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, str | dict):
        problem = f"{where}: a {type(value).__name__}, where a text or an object is needed"
        raise SourceError(problem, "give records as texts or objects")
    return value


def _rows(record: Record, fields: tuple[str, ...], where: str) -> Iterator[tuple[str, ...]]:
    if isinstance(record, str):
        if wrong_field := _missing_from_plain(fields):
            raise SourceError(f"{where}: a text by itself, without a field {wrong_field!r}", "leave `field` out")
        yield (record,)
        return
    columns = [_texts(record, field, field, where) for field in fields]
    for row in zip_longest(*columns):
        if None in row:
            counts = ", ".join(f"{field} {len(texts)}" for field, texts in zip(fields, columns, strict=True))
            problem = f"{where}: the fields have different numbers of texts ({counts})"
            raise SourceError(problem, "name fields whose lists are equally long")
        yield row


def _texts(value: Any, key_path: str, field: str, where: str) -> list[str]:
    """Return the texts that ``key_path``, the part of ``field`` not yet followed, leads to."""
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry, key_path, field, where)]
    if value is None:
        return [""]
    if not key_path and isinstance(value, str):
        return [value]
    if not key_path:
        raise SourceError(f"{where}: its field {field!r} is a {type(value).__name__}, not text", "name a field of text")
    if not isinstance(value, Mapping):
        raise missing_field(where, field, [])
    if key_path in value:
        return _texts(value[key_path], "", field, where)
    name, _, below = key_path.partition(".")
    if below and name in value:
        return _texts(value[name], below, field, where)
    raise missing_field(where, field, [field.removesuffix(key_path) + str(key) for key in value])
