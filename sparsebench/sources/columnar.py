"""Reading the rows of Arrow files, as `datasets` writes them, and of Parquet files, within limits.

A few bytes of such a file may stand for any number of values, so what it unpacks to is bounded before it is unpacked.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sparsebench import bounded
from sparsebench.errors import SourceError
from sparsebench.manifest.problems import did_you_mean

_ROWS = 64
"""Largest number of rows that are unpacked at once."""
_SHARED = re.compile(r"(?!^)(dictionary|run_end_encoded)<")
"""In Arrow's name of a type: values that are stored once and may stand in many places of one row."""


def arrow(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of an Arrow file or stream, of which only the columns that ``fields`` need, if any are named.

    Raises SourceError for one that is damaged or unpacks to too much.
    """
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            # An Arrow file is eight bytes, then a stream, then an index.
            start = 8 if file.read(6) == b"ARROW1" else 0
            file.seek(start)
            _check_unpacked_bytes(path, sum(map(_declared_bytes, pa.ipc.MessageReader.open_stream(file))))
            file.seek(start)
            reader = pa.ipc.open_stream(file)
            columns = _columns(path, reader.schema.names, fields)
            yield from _unpacked(path, (batch.select(columns) for batch in reader))
    except (pa.ArrowException, OSError, OverflowError, struct.error) as error:
        raise unreadable(path, "Arrow", error) from error


def parquet(path: Path, fields: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file as ``arrow`` does."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as reader:
            columns = _columns(path, reader.schema_arrow.names, fields)
            groups = [reader.metadata.row_group(number) for number in range(reader.num_row_groups)]
            _check_unpacked_bytes(path, sum(group.total_byte_size for group in groups))
            yield from _unpacked(path, reader.iter_batches(_ROWS, columns=columns))
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise unreadable(path, "Parquet", error) from error


def _unpacked(path: Path, batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Yield the rows of Arrow's batches, few at a time: a value stored once in a dictionary may occur in every row."""
    import pyarrow as pa

    total = 0
    for batch in batches:
        batch.validate(full=True)
        _refuse_shared(path, batch.schema)
        dictionary_columns = [field.name for field in batch.schema if pa.types.is_dictionary(field.type)]
        longest = sum(batch[name].dictionary.nbytes for name in dictionary_columns)
        step = max(1, min(_ROWS, bounded.FREE_BYTES // (longest + 1)))
        for start in range(0, batch.num_rows, step):
            rows = batch.slice(start, step)
            if dictionary_columns:
                decoded = [
                    rows[name].dictionary_decode() if name in dictionary_columns else rows[name]
                    for name in rows.schema.names
                ]
                rows = pa.RecordBatch.from_arrays(decoded, rows.schema.names)
            total += rows.nbytes
            _check_unpacked_bytes(path, total)
            yield from rows.to_pylist()


def _refuse_shared(path: Path, schema: Any) -> None:
    """Refuse columns of which one row, stored in a few bytes, may unpack to any size."""
    for field in schema:
        if _SHARED.search(str(field.type)):
            problem = f"{path}: the column {field.name!r} is {str(field.type)[:200]}, which may unpack to any size"
            raise SourceError(problem, "write it as plain texts, or lists of texts")


def _declared_bytes(message: Any) -> int:
    """Return how many bytes an Arrow message's body says it unpacks to. Arrow itself allocates them unchecked.

    The metadata are a flatbuffer (Message.fbs): a table begins with the offset back to its list of fields.
    """
    data, body = memoryview(message.metadata), message.body

    def field(table: int, slot: int) -> int:
        """Return the offset of a table's field, 0 if the table lacks it."""
        fields = table - struct.unpack_from("<i", data, table)[0]
        (size,) = struct.unpack_from("<H", data, fields)
        (offset,) = struct.unpack_from("<H", data, fields + 4 + 2 * slot) if 4 + 2 * slot < size else (0,)
        return int(offset) and table + int(offset)

    def follow(offset: int) -> int:
        return offset + int(struct.unpack_from("<I", data, offset)[0])

    if message.type == "schema" or body is None:
        return 0
    batch = follow(field(follow(0), 2))
    if message.type == "dictionary":
        batch = follow(field(batch, 1))
    if not field(batch, 3):
        return int(body.size)
    buffers = follow(field(batch, 2))
    (count,) = struct.unpack_from("<I", data, buffers)
    total = 0
    for number in range(count):
        begin, size = struct.unpack_from("<qq", data, buffers + 4 + 16 * number)
        total += max(size, struct.unpack_from("<q", body, begin)[0]) if size > 8 else 0
    return total


def _check_unpacked_bytes(path: Path, total: int) -> None:
    """Raise SourceError if ``total`` bytes of values are too many for a columnar file of this size."""
    if total > (limit := bounded.unpacked_limit(path.stat().st_size)):
        raise SourceError(
            f"{path}: unpacks to more than {limit / bounded.MB:,.0f} MB, the limit for {bounded.UNPACKED_RATIO} times its size",
            "keep the column with the text alone, as JSON Lines",
        )


def _columns(path: Path, names: list[str], fields: tuple[str, ...]) -> list[str]:
    columns = []
    for field in fields:
        parents = (name for name in names if field.startswith(f"{name}."))
        column = field if field in names else next(parents, None)
        if column is None:
            raise missing_field(str(path), field, names)
        columns.append(column)
    return list(dict.fromkeys(columns)) or names


def missing_field(where: str, field: str, names: list[str]) -> SourceError:
    """Return the error that ``where`` lacks a field; ``names`` are those that it has."""
    existing = f"there is {', '.join(names)[:500]}" if names else "it leads to a value that has no fields"
    hint = f"{did_you_mean(field, names)} {existing}; `field` names it".strip()
    return SourceError(f"{where}: no field {field!r}", hint)


def unreadable(path: Path, kind: str, error: Exception) -> SourceError:
    """Return the error that a file cannot be read as its suffix says."""
    reason = " ".join(str(error).split())[:200]
    return SourceError(
        f"{path}: not readable as {kind} ({reason})",
        "rename it if its suffix is wrong (it decides how a file is read), or fetch it again",
    )
