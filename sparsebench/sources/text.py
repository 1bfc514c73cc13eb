"""Text out of a data file: plain text, JSON, JSONL, CSV (each also gzipped), Arrow as `datasets` writes it, Parquet.

A record is a mapping, or a text by itself. A field may be nested (``doc.passage``); a list on the way to it yields
each of its entries.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, NoReturn

from sparsebench.errors import SourceError

Record = str | Mapping[str, Any]
DEFAULT_FIELD = "text"
"""What a record's text is called where nobody says."""


@dataclass(frozen=True)
class Texts:
    """The distinct texts of a source in their order, one entry per field and row, and what was left out."""

    rows: tuple[tuple[str, ...], ...]
    empty: int
    repeated: int


def read_texts(path: Path, *fields: str) -> Texts:
    """The texts of one field, or tuples of several; without a field a plain text, or the field ``text`` of records.

    A row with an empty text is left out, and so is one that repeats an earlier row exactly. Raises SourceError: the
    file, the field and the fields that exist, where it is missing; a value that is not text; no text at all.
    """
    rows: dict[tuple[str, ...], None] = {}
    seen = empty = 0
    for number, record in enumerate(read_records(path, *(fields or (DEFAULT_FIELD,))), start=1):
        for row in _rows(record, fields, f"{path}: record {number}"):
            seen += 1
            if all(text.strip() for text in row):
                rows.setdefault(row)
            else:
                empty += 1
    if not rows:
        raise SourceError(f"{path}: it holds no text", "name a file with text, and with `field` where that stands")
    return Texts(tuple(rows), empty, seen - empty - len(rows))


def read_records(path: Path, *fields: str) -> Iterator[Record]:
    """The file's records one after another; of a columnar file only the columns that ``fields`` need, if any are named.

    Plain text gives its paragraphs, which blank lines part; its lines where there is no blank line. The suffix
    decides what the file is; one that is unknown is plain text. Raises SourceError where the file is none of this.
    """
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())[:5]
        raise SourceError(f"{path}: a folder, where a data file is needed", f"name one file: {', '.join(names)}")
    suffix = next((part.lower() for part in reversed(path.suffixes) if part.lower() != ".gz"), "")
    try:
        yield from _READERS.get(suffix, _paragraphs)(path, fields)
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
        _unreadable(path, suffix.removeprefix(".") or "text", error)


def _open(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _paragraphs(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    if fields and fields != (DEFAULT_FIELD,):
        raise SourceError(
            f"{path}: plain text has no field {fields[0]!r}", "leave `field` out; JSONL, Arrow and Parquet have fields"
        )
    with _open(path) as file:
        parted = _is_parted(file)
    with _open(path) as file:
        paragraph: list[str] = []
        for line in file:
            if line.strip():
                paragraph.append(line.rstrip("\n"))
            if paragraph and not (parted and line.strip()):
                yield "\n".join(paragraph)
                paragraph = []
        if paragraph:
            yield "\n".join(paragraph)


def _is_parted(lines: Iterable[str]) -> bool:
    """Whether a blank line stands between two that are not."""
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
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _record(_parsed(line, path, f"{path}:{number}"), f"{path}:{number}")


def _json(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    """A list's entries; anything else is one record."""
    with _open(path) as file:
        whole = _parsed(file.read(), path, str(path))
    for number, value in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield _record(value, f"{path}: entry {number}")


def _csv(path: Path, _: tuple[str, ...]) -> Iterator[Record]:
    with _open(path) as file:
        for row in csv.DictReader(file, delimiter="\t" if ".tsv" in map(str.lower, path.suffixes) else ","):
            yield {name: value for name, value in row.items() if isinstance(name, str)}


def _arrow(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                stored = pa.ipc.open_file(file)
                batches: Iterable[Any] = (stored.get_batch(place) for place in range(stored.num_record_batches))
            else:
                file.seek(0)
                stored = batches = pa.ipc.open_stream(file)
            columns = _columns(path, stored.schema.names, fields)
            for batch in batches:
                yield from batch.select(columns).to_pylist()
    except (pa.ArrowException, OSError) as error:
        _unreadable(path, "Arrow", error)


def _parquet(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as stored:
            columns = _columns(path, stored.schema_arrow.names, fields)
            for batch in stored.iter_batches(columns=columns):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        _unreadable(path, "Parquet", error)


_READERS: Mapping[str, Callable[[Path, tuple[str, ...]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".arrow": _arrow,
    ".parquet": _parquet,
}


def _columns(path: Path, names: list[str], fields: tuple[str, ...]) -> list[str]:
    found = []
    for field in fields:
        column = next((name for name in names if field == name or field.startswith(f"{name}.")), None)
        if column is None:
            _missing(str(path), field, names)
        found.append(column)
    return list(dict.fromkeys(found)) or names


def _parsed(text: str, path: Path, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SourceError(
            f"{where}: not JSON ({error})", f"correct it, or give {path.name} the suffix it is"
        ) from error


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, str | dict):
        raise SourceError(
            f"{where}: a {type(value).__name__}, where a text or an object is needed", "one record a line"
        )
    return value


def _rows(record: Record, fields: tuple[str, ...], where: str) -> Iterator[tuple[str, ...]]:
    if isinstance(record, str):
        if fields and fields != (DEFAULT_FIELD,):
            raise SourceError(f"{where}: a text by itself, without a field {fields[0]!r}", "leave `field` out")
        yield (record,)
        return
    columns = [_texts(record, field, field, where) for field in fields or (DEFAULT_FIELD,)]
    for row in zip_longest(*columns):
        if None in row:
            counts = ", ".join(f"{field} {len(texts)}" for field, texts in zip(fields, columns, strict=True))
            raise SourceError(f"{where}: the fields do not pair up ({counts} texts)", "name fields of equal length")
        yield row


def _texts(value: Any, rest: str, field: str, where: str) -> list[str]:
    """The texts that ``rest``, what is left of ``field``, leads to."""
    if isinstance(value, list):
        return [text for entry in value for text in _texts(entry, rest, field, where)]
    if not rest:
        if value is None:
            return [""]
        if isinstance(value, str):
            return [value]
        raise SourceError(f"{where}: its field {field!r} is a {type(value).__name__}, not text", "name a field of text")
    if not isinstance(value, Mapping):
        return [""] if value is None else _missing(where, field, [])
    if rest in value:
        return _texts(value[rest], "", field, where)
    name, _, below = rest.partition(".")
    if below and name in value:
        return _texts(value[name], below, field, where)
    return _missing(where, field, [field.removesuffix(rest) + str(key) for key in value])


def _missing(where: str, field: str, names: list[str]) -> NoReturn:
    close = difflib.get_close_matches(field, names, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    there = f"there is {', '.join(names)}" if names else "it leads to a value that has no fields"
    raise SourceError(f"{where}: no field {field!r}", f"{meant}{there}; `field` names it")


def _unreadable(path: Path, kind: str, error: Exception) -> NoReturn:
    reason = " ".join(str(error).split())[:200]
    raise SourceError(
        f"{path}: not readable as {kind} ({reason})", "give it its true suffix, or fetch it again"
    ) from error
