"""How a run's records reach the ledger: in batches, at intervals that grow with what a batch takes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsebench.errors import LedgerError

INGEST_PAUSE = 30
"""How many times the CPU time of the last ingest the parent waits before the next: that time grows with the ledger.
On a busy machine its wall time may be minutes, and who queries the ledger meanwhile would see nothing of an hour."""

Ingest = Callable[[list[tuple[str, dict[str, Any]]], Callable[[LedgerError], object]], object]
"""Takes records, each with its file, into the ledger in one transaction, and calls a function with each refusal."""


class RecordFeed:
    """Gathers the files of new records, and brings them into the ledger; ``left_out`` is called with each refusal."""

    def __init__(self, ingest: Ingest, left_out: Callable[[LedgerError], object]) -> None:
        self.ingest, self.left_out = ingest, left_out
        self.waiting: list[Path] = []
        self.last_ingest = time.monotonic()
        self.ingest_seconds = 0.0

    def flush_if_due(self) -> None:
        """Ingest if the last time is so long ago that this takes little of the run."""
        if self.waiting and time.monotonic() - self.last_ingest > INGEST_PAUSE * self.ingest_seconds:
            started = time.process_time()
            self.flush()
            self.ingest_seconds, self.last_ingest = time.process_time() - started, time.monotonic()

    def flush(self, last: bool = False) -> None:
        """Bring the records since the last ingest into the ledger, in one transaction.

        While another process holds the file, they wait for the next time. ``last``: there is none; raise LedgerError.
        """
        try:
            if self.waiting:
                self.ingest([(str(path), json.loads(path.read_text())) for path in self.waiting], self.left_out)
            self.waiting = []
        except LedgerError:
            if last:
                raise
