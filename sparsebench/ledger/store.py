"""The ledger's writer: open, insert, close, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsebench import records
from sparsebench.errors import RecordError
from sparsebench.ledger import connect, derive, sqlfiles

Wrong = Callable[[RecordError], object]
"""Told of a record that cannot be taken."""
BATCH, BATCH_BYTES = 4096, 32_000_000
"""At most so many records, or bytes of them, per transaction of a rebuild, so that memory stays bounded. Each transaction looks
for missing comparisons among all scores of the ledger: many small ones would take a time that grows with its square."""


class Ledger:
    """One DuckDB file. Nothing is held open between calls."""

    def __init__(self, path: Path, patience: float = 30.0) -> None:
        """``patience`` is how many seconds to wait for another process to let go of the file."""
        self.path = Path(path)
        self.patience = patience

    def ingest(self, found: Iterable[dict[str, Any]]) -> int:
        """Add records; how many were new. A record that is there already changes nothing.

        Intervals and comparisons that the new outcomes make possible are computed in the same transaction.
        Raises LedgerError when the file stays locked, is foreign, or newer than this program.
        """
        texts = [json.dumps(record) for record in found]
        if not texts:
            return 0
        with connect.writer(self.path, self.patience) as connection:
            derive.upgrade(connection, self.path)
            with _blaming_records():
                connection.execute("BEGIN")
                connection.execute(sqlfiles.read("ingest/incoming"), {"records": texts})
                row = connection.execute("SELECT count(*) FROM incoming").fetchone()
                for name in sqlfiles.folder("ingest"):
                    if name != "ingest/incoming":
                        connection.execute(sqlfiles.read(name))
                if connection.execute(sqlfiles.read("unusable")).fetchone():
                    raise ValueError("a score without its task, its metric, its value or the number of its documents")
                connection.execute("DROP TABLE incoming")
                derive.derive(connection)
            connection.execute("COMMIT")
        return row[0] if row else 0

    def catch_up(self, folder: Path, wrong: Wrong | None = None) -> int:
        """Add the records of one folder that a killed run left there without bringing them in; how many.

        ``wrong`` as in ``rebuild``.
        """
        if not self.path.exists():
            return 0
        with connect.writer(self.path, self.patience) as connection:
            derive.upgrade(connection, self.path)
            known = set(connection.execute("SELECT key, status FROM base.records").fetchall())
        missing = sorted(records.statuses(folder).items() - known)
        paths = [folder / f"{key}.{status}.json" for key, status in missing]
        return sum(self._take(batch, wrong) for batch in _batches(records.located(paths, wrong)))

    def rebuild(self, folders: Sequence[Path], wrong: Wrong | None = None) -> int:
        """Add every record below ``folders``, on top of what the ledger holds; how many were taken.

        Run on no file it makes the ledger anew, on another machine's records it merges them. With ``wrong``, that is told
        of each record that cannot be taken, and the others come in; else the first one is raised as a RecordError.
        """
        stream = records.located([Path(folder) for folder in folders], wrong)
        return sum(self._take(batch, wrong) for batch in _batches(stream))

    def _take(self, batch: Sequence[tuple[str, dict[str, Any]]], wrong: Wrong | None) -> int:
        """Add records, each with its place; how many were taken. Where some cannot be, halves of halves find which."""
        try:
            self.ingest(record for _, record in batch)
            return len(batch)
        except RecordError as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._take(batch[:half], wrong) + self._take(batch[half:], wrong)
            named = RecordError(f"{batch[0][0]}: {error.message}", error.hint)
            if wrong is None:
                raise named from error
            wrong(named)
            return 0


def _batches(stream: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    batch: list[tuple[str, dict[str, Any]]] = []
    size = 0
    for where, record in stream:
        batch.append((where, record))
        size += len(json.dumps(record))
        if len(batch) == BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@contextmanager
def _blaming_records() -> Iterator[None]:
    """What DuckDB or the statistics refuse of records, as a RecordError; the ledger itself was opened and is sound."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except (duckdb.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, duckdb.Error) and connect.is_damage(error):
            raise
        said = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise RecordError(
            f"not a record as sparsebench writes it ({said[0][:200]})", "remove the file, or copy it again"
        ) from error
