"""The ledger's writer: open, insert, close, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb

from sparsebench import provenance, records
from sparsebench.errors import RecordError
from sparsebench.ledger import connect, derive, incoming, query, schema, sqlfiles
from sparsebench.ledger.batches import batched
from sparsebench.records import Reject, raise_error

LocatedRecord = tuple[str, dict[str, Any]]
"""A record, with its file and line."""
BATCH, BATCH_BYTES = 4096, 32_000_000
"""The most records, and the most bytes of records, of one transaction of a rebuild, so that memory stays bounded. Each
transaction looks for missing comparisons among all scores of the ledger: many small ones would take quadratic time."""


class Ledger:
    """One DuckDB file. Nothing is held open between calls."""

    def __init__(self, path: Path, lock_timeout: float = 30.0) -> None:
        """Name the file; ``lock_timeout`` is how many seconds to wait for another process to release it."""
        self.path = Path(path)
        self.lock_timeout = lock_timeout

    def ingest(self, new_records: Iterable[dict[str, Any]], from_workspace: bool = False) -> int:
        """Add records as they are and return how many were new. A record that is there already changes nothing.

        With ``from_workspace``, those with the origin of this workspace count as its own. Intervals and comparisons that the new
        outcomes make possible are computed in the same transaction. Raises LedgerError when the file stays locked, is
        foreign, or newer than this program, and RecordError for records that are not as sparsebench writes them.
        """
        with _blaming_records():
            json_texts = [json.dumps(record, allow_nan=False) for record in new_records]
        if not json_texts:
            return 0
        parameters = {"records": json_texts, "own": provenance.origin(self.path.parent) if from_workspace else ""}
        with connect.writer(self.path, self.lock_timeout) as connection:
            schema.upgrade(connection, self.path)
            with _blaming_records():
                connection.execute("BEGIN")
                connection.execute(sqlfiles.read("ingest/incoming"), parameters)
                ((added,),) = connection.execute("SELECT count(*) FROM incoming").fetchall()
                for name in sqlfiles.folder("ingest"):
                    if name != "ingest/incoming":
                        connection.execute(sqlfiles.read(name))
                if connection.execute(sqlfiles.read("unusable")).fetchone():
                    raise ValueError("a score without its task, its metric, its value or the number of its documents")
                connection.execute("DROP TABLE incoming")
                connection.execute("DROP TABLE described")
                derive.derive(connection)
            connection.execute("COMMIT")
        return int(added)

    def conflicts(self) -> list[str]:
        """Return a line for each record that says otherwise than the record of its cell that counts."""
        if not self.path.exists():
            return []
        rows = query.run(self.path, sqlfiles.read("conflicts"), lock_timeout=self.lock_timeout).rows
        return [line for (line,) in rows]

    def catch_up(self, folder: Path, reject: Reject = raise_error) -> int:
        """Add the records that a killed run left in ``folder`` without ingesting them, and return how many.

        ``reject`` is used as in ``rebuild``.
        """
        if not self.path.exists():
            return 0
        with connect.writer(self.path, self.lock_timeout) as connection:
            schema.upgrade(connection, self.path)
            rows = connection.execute("SELECT key, status, own, started_at FROM base.records").fetchall()
        known: dict[tuple[str, str], set[tuple[bool, datetime]]] = {}
        for key, status, own, started_at in rows:
            known.setdefault((key, status), set()).add((own, started_at))
        origin = provenance.origin(self.path.parent)
        paths = [
            path
            for key, status in sorted(records.statuses(folder).items())
            if _is_missing(path := folder / f"{key}.{status}.json", status, known.get((key, status), set()), origin)
        ]
        return sum(self.verify_and_add(batch, reject) for batch in _in_batches(records.located_records(paths, reject)))

    def rebuild(self, folders: Sequence[Path], reject: Reject = raise_error) -> int:
        """Add every record below ``folders`` to what the ledger holds, and return how many were accepted.

        Without a ledger file this makes the ledger anew; another machine's records are merged into it. If ``reject`` is
        given, it is called for each record that cannot be ingested, and the others are added. Otherwise the first such
        record raises RecordError.
        """
        home = (self.path.parent / "records").resolve()
        return sum(
            self.verify_and_add(batch, reject, from_workspace=home in (path.resolve(), *path.resolve().parents))
            for path in map(Path, folders)
            for batch in _in_batches(records.located_records([path], reject))
        )

    def verify_and_add(self, batch: Sequence[LocatedRecord], reject: Reject, from_workspace: bool = True) -> int:
        """Add records, each with its path, and return how many were accepted; ``reject`` is used as in ``rebuild``.

        ``from_workspace`` says that they come from the workspace's own folder. Records whose score is not what their
        outcomes give are left out.
        """
        accepted = []
        for where, record in batch:
            try:
                incoming.check_score(record, where)
            except RecordError as error:
                reject(error)
            else:
                accepted.append((where, record))
        return self._add(accepted, reject, from_workspace)

    def _add(self, batch: Sequence[LocatedRecord], reject: Reject, from_workspace: bool) -> int:
        """Add records; those that DuckDB refuses are found by bisection."""
        try:
            self.ingest((record for _, record in batch), from_workspace)
            return len(batch)
        except RecordError as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._add(batch[:half], reject, from_workspace) + self._add(batch[half:], reject, from_workspace)
            reject(RecordError(f"{batch[0][0]}: {error.message}", error.hint))
            return 0


def _is_missing(path: Path, status: str, known: Collection[tuple[bool, datetime]], origin: str) -> bool:
    """Return whether a file's record is not among those ``known`` of its cell and status: whether own, and the start.

    The workspace's own result is taken for the file's: no run makes it again. A stranger's is not, and a cell may
    fail again. What cannot be read is missing, so that it is reported.
    """
    if not known:
        return True
    if status == "done" and any(own for own, _ in known):
        return False
    try:
        made_by, started_at = records.origin_and_start(path)
    except RecordError:
        return True
    return (made_by == origin != "", started_at) not in known


def _in_batches(stream: Iterable[LocatedRecord]) -> Iterator[list[LocatedRecord]]:
    # A small record counts as the part that it has of a transaction.
    return batched(stream, lambda located: max(len(json.dumps(located[1])), BATCH_BYTES // BATCH), BATCH_BYTES)


@contextmanager
def _blaming_records() -> Iterator[None]:
    """Raise RecordError for records that DuckDB or the statistics refuse; the ledger itself was opened and is sound."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except (duckdb.Error, ArithmeticError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, duckdb.Error) and connect.is_damage(error):
            raise
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise RecordError(
            f"not a record as sparsebench writes it ({reason})", "remove the file, or copy it again"
        ) from error
