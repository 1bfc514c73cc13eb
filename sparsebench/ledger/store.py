"""The ledger's writer: open, insert, close, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sparsebench import records
from sparsebench.ledger import connect, derive, migrate, sqlfiles

BATCH = 64
"""Records per transaction of a rebuild, so that memory stays bounded."""


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
            migrate.upgrade(connection, self.path)
            connection.execute("BEGIN")
            connection.execute(sqlfiles.read("ingest/incoming"), {"records": texts})
            row = connection.execute("SELECT count(*) FROM incoming").fetchone()
            for name in sqlfiles.folder("ingest"):
                if name != "ingest/incoming":
                    connection.execute(sqlfiles.read(name))
            connection.execute("DROP TABLE incoming")
            derive.derive(connection)
            connection.execute("COMMIT")
        return row[0] if row else 0

    def catch_up(self, folder: Path) -> int:
        """Add the records of one folder that a killed run left there without bringing them in; how many."""
        if not self.path.exists():
            return 0
        with connect.writer(self.path, self.patience) as connection:
            migrate.upgrade(connection, self.path)
            known = set(connection.execute("SELECT key, status FROM base.records").fetchall())
        missing = sorted(records.statuses(folder).items() - known)
        return self.ingest(records.read_cell(folder, key, status) for key, status in missing)

    def rebuild(self, folders: Sequence[Path]) -> int:
        """Add every record below ``folders``, on top of what the ledger holds; how many were read.

        Run on no file it makes the ledger anew, on another machine's records it merges them.
        """
        count = 0
        stream = records.read([Path(folder) for folder in folders])
        while batch := list(islice(stream, BATCH)):
            self.ingest(batch)
            count += len(batch)
        return count
