"""One run per ledger at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsebench.errors import UserError
from sparsebench.paths import create


@contextmanager
def exclusive(ledger: Path) -> Iterator[None]:
    """Hold the ledger's run lock. Raises UserError naming the process that holds it. Freed by the system if we die."""
    ledger.parent.mkdir(parents=True, exist_ok=True)
    path = ledger.with_name(f".{ledger.name}.lock")
    with create(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"process {holder} is running on {ledger}", "wait for it, or name another file with --ledger"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
