"""Opening the database file: who may, for how long one waits, and what each refusal means.

DuckDB lets one process write and then locks everybody out, so both writers and readers open, work and close at once,
and wait with jitter for whoever holds the lock.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench import environment
from sparsebench.errors import LedgerError, NoLedgerError, UserError
from sparsebench.paths import unlinked

if TYPE_CHECKING:
    import duckdb

Config = dict[str, str | bool | int | float | list[str]]
STORAGE = "v1.4.0"
"""The storage format of new ledgers: older DuckDB clients can open them."""
BIRTH = 1.0
"""Seconds for which a file without a valid header may be one that another process is just creating."""
_INVALID = "not a valid DuckDB database"
_DAMAGE = (
    "Corrupt database",
    "Could not read enough bytes",
    "does not match stored checksum",
    "Failed to load metadata",
)
_SCHEMA = "base"
"""The schema of our tables; DuckDB calls a database by the name of its file, and one of both would be ambiguous."""
_HOLDER = re.compile(r"held in (.+?) \(PID (\d+)\)")
ABANDONED: list[duckdb.DuckDBPyConnection] = []
"""Connections whose call does not come back: to close one would be to wait for it."""
MEMORY = 4_000_000_000
"""Bytes that a query may take at most; half of the machine's if that is less. Nothing is spilled to the disk."""
_ALONE: Config = {
    "max_temp_directory_size": "0B",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_SEALED: Config = _ALONE | {"enable_external_access": "false", "lock_configuration": "true"}
"""A ledger may be a stranger's: whatever it holds, its connection reaches no other file."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays KeyboardInterrupt: of what a signal's handler raises while a query runs DuckDB makes an error of its own."""
    import duckdb

    try:
        yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


@contextmanager
def writer(path: Path, patience: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that may write this one file, which is created where there is none, and reaches nothing else.

    Waits up to ``patience`` seconds for the lock. Raises LedgerError for what DuckDB refuses, UserError where it would be
    written through a link.
    """
    import duckdb

    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in ("", ".wal", ".tmp"):  # DuckDB's write-ahead log, and the folder for what memory does not hold
        unlinked(path.with_name(path.name + ending))
    connection = _open(path, False, _SEALED | {"storage_compatibility_version": STORAGE}, patience)
    try:
        with interruptible():
            yield connection
    except duckdb.Error as error:
        if is_damage(error):
            raise damaged(path, error) from error
        raise LedgerError(
            f"{path}: {str(error).splitlines()[0]}",
            "a record, or this file, is not as sparsebench writes it: make the ledger anew, and leave that record out",
        ) from error
    finally:
        connection.close()


@contextmanager
def reader(path: Path, patience: float, outlet: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that reads this one file and reaches nothing else, but for the folder ``outlet`` that it may write to."""
    if not path.is_file():
        raise NoLedgerError(
            f"no ledger at {path}", "make one with `sparsebench run MANIFEST` or `sparsebench ingest FOLDER`"
        )
    connection = _open(path, True, (_SEALED if outlet is None else _ALONE) | {"memory_limit": f"{memory()}B"}, patience)
    try:
        if outlet is not None:
            # Once access is off DuckDB takes no folder, and of options given together it sets that one first.
            folder = str(outlet.resolve()).replace("'", "''")
            connection.execute(f"SET allowed_directories = ['{folder}']")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        if connection not in ABANDONED:
            connection.close()


def memory() -> int:
    """Bytes that a query may take."""
    return min(MEMORY, environment.memory()[0] // 2)


def _open(path: Path, read_only: bool, config: Config, patience: float) -> duckdb.DuckDBPyConnection:
    import duckdb

    if path.stem.lower() == _SCHEMA:
        raise UserError(f"{path}: no ledger can be called {path.name}, because its tables are", "give it another name")
    started, pause = time.monotonic(), 0.02
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=config)
        except duckdb.Error as error:
            # A ConnectionException here means that this very process has it open the other way.
            holder = _HOLDER.search(str(error))
            unfinished = _INVALID in str(error) and time.monotonic() < started + BIRTH
            if not holder and not unfinished and not isinstance(error, duckdb.ConnectionException):
                raise _broken(path, error) from error
            if time.monotonic() >= started + max(patience, BIRTH if unfinished else 0.0):
                who = f"process {holder[2]} ({Path(holder[1]).name})" if holder else "another thread of this process"
                raise LedgerError(
                    f"{path}: locked by {who} for more than {patience:g} s", f"wait until {who} has finished, or end it"
                ) from error
        time.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(2 * pause, 0.5)


def refuse_other(path: Path) -> None:
    """Refuse what cannot be a ledger, before anything is made of it or beside it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a folder or a device, not a ledger", "name a file with --ledger")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(12)[8:] != b"DUCK":
                raise UserError(f"{path}: not a DuckDB file", "name another file with --ledger")


def is_damage(error: Exception) -> bool:
    """Whether DuckDB found a file that is not as it wrote it."""
    import duckdb

    text = str(error)
    return isinstance(error, duckdb.SerializationException) or any(words in text for words in _DAMAGE)


def damaged(path: Path, error: Exception) -> LedgerError:
    """The error for such a file: the records beside it hold all that it held."""
    records = path.parent / "records"
    return LedgerError(
        f"{path}: damaged ({str(error).splitlines()[0]})",
        f"its records rebuild it: move it away, then sparsebench ingest {records} --ledger {path}",
    )


def _broken(path: Path, error: Exception) -> LedgerError:
    if is_damage(error):
        return damaged(path, error)
    reason = str(error).splitlines()[0].removeprefix("IO Error: ")
    if _INVALID in reason or "newer" in reason.lower():
        return LedgerError(f"{path}: {reason}", "name another file with --ledger, or upgrade duckdb")
    return LedgerError(f"{path}: cannot be opened ({reason})", "check that the folder exists and may be written")
