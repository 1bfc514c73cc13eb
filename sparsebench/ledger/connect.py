"""Opens the database file: waits for its lock, restricts what the connection can reach, and explains each refusal.

While one process writes, DuckDB locks out all others. So writers and readers open, work and close without delay, and
wait with jitter for the process that holds the lock.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from sparsebench import environment
from sparsebench.errors import LedgerError, NoLedgerError, UserError
from sparsebench.paths import refuse_link

Config = dict[str, str | bool | int | float | list[str]]
STORAGE = "v1.4.0"
"""The storage format of new ledgers, which older DuckDB clients can open."""
CREATION_SECONDS = 1.0
"""Seconds for which a file without a valid header is taken for one that another process is just creating."""
_INVALID = "not a valid DuckDB database"
_DAMAGE = (
    "Corrupt database",
    "Could not read enough bytes",
    "does not match stored checksum",
    "Failed to load metadata",
)
_SCHEMA = "base"
"""The schema of our tables. DuckDB names a database after its file, up to the first dot (one at the beginning aside): a
file of this name would make names ambiguous."""
_HOLDER = re.compile(r"held in (.+?) \(PID (\d+)\)")
STUCK_CONNECTIONS: list[duckdb.DuckDBPyConnection] = []
"""Connections whose call does not return: closing one would wait for that call."""
MOST_MEMORY = 4_000_000_000
"""The most memory, in bytes, of a query; half of the machine's if that is less. Nothing is spilled to the disk."""
_NO_EXTENSIONS: Config = {
    "max_temp_directory_size": "0B",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_SEALED: Config = _NO_EXTENSIONS | {"enable_external_access": "false", "lock_configuration": "true"}
"""A ledger may come from a stranger: whatever it holds, its connection reaches no other file."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt for Ctrl-C: DuckDB turns what a signal handler raises in a query into its own error."""
    try:
        yield
    except (RuntimeError, duckdb.InterruptException) as error:
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise


@contextmanager
def writer(path: Path, lock_timeout: float) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection that may write this one file, which is created if missing, and reaches nothing else.

    Waits up to ``lock_timeout`` seconds for the lock. Raises LedgerError for what DuckDB refuses, and UserError where a
    link would be written through.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in ("", ".wal", ".tmp"):  # DuckDB's write-ahead log, and the folder for what memory does not hold
        refuse_link(path.with_name(path.name + ending))
    connection = _open(path, False, _SEALED | {"storage_compatibility_version": STORAGE}, lock_timeout)
    try:
        with interruptible(), explaining_damage(path):
            yield connection
    except duckdb.Error as error:
        raise LedgerError(
            f"{path}: {str(error).splitlines()[0]}",
            "a record or the ledger is malformed: rebuild the ledger without that record "
            "(sparsebench ingest FOLDER --ledger NEW.duckdb)",
        ) from error
    finally:
        connection.close()


@contextmanager
def reader(path: Path, lock_timeout: float, writable_folder: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection that reads this one file, may write to the folder ``writable_folder``, and reaches nothing else."""
    if not path.is_file():
        raise NoLedgerError(
            f"no ledger at {path}", "make one with `sparsebench run MANIFEST` or `sparsebench ingest FOLDER`"
        )
    config = (_SEALED if writable_folder is None else _NO_EXTENSIONS) | {"memory_limit": f"{query_memory()}B"}
    connection = _open(path, True, config, lock_timeout)
    try:
        if writable_folder is not None:
            # DuckDB accepts no folder once access is off, and of options given together it turns access off first.
            folder = str(writable_folder.resolve()).replace("'", "''")
            connection.execute(f"SET allowed_directories = ['{folder}']")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
        yield connection
    finally:
        if connection not in STUCK_CONNECTIONS:
            connection.close()


def query_memory() -> int:
    """Return how many bytes of memory a query may take."""
    return min(MOST_MEMORY, environment.memory()[0] // 2)


def _open(path: Path, read_only: bool, config: Config, lock_timeout: float) -> duckdb.DuckDBPyConnection:
    if path.name.lstrip(".").partition(".")[0].lower() == _SCHEMA:
        raise UserError(
            f"a ledger cannot be named {path.name}: `{_SCHEMA}` is the schema of its tables", "give it another name"
        )
    started, pause = time.monotonic(), 0.02
    while True:
        try:
            with explaining_damage(path):
                return duckdb.connect(str(path), read_only=read_only, config=config)
        except duckdb.Error as error:
            # A ConnectionException here means that this very process has the file open in the other mode.
            holder = _HOLDER.search(str(error))
            is_being_created = _INVALID in str(error) and time.monotonic() < started + CREATION_SECONDS
            if not holder and not is_being_created and not isinstance(error, duckdb.ConnectionException):
                reason = str(error).splitlines()[0].removeprefix("IO Error: ")
                raise LedgerError(
                    f"{path}: cannot be opened ({reason})",
                    "see that its folder may be written, name another file with --ledger, or upgrade duckdb",
                ) from error
            if time.monotonic() >= started + max(lock_timeout, CREATION_SECONDS if is_being_created else 0.0):
                owner = f"process {holder[2]} ({Path(holder[1]).name})" if holder else "another thread of this process"
                raise LedgerError(
                    f"{path}: locked by {owner} for more than {lock_timeout:g} s",
                    f"wait until {owner} has finished, or end it",
                ) from error
        time.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(2 * pause, 0.5)


def check_is_ledger(path: Path) -> None:
    """Raise UserError for a path that cannot be a ledger, before anything is written to it or beside it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: a folder or a device, not a ledger", "name a file with --ledger")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(12)[8:] != b"DUCK":
                raise UserError(f"{path}: not a DuckDB file", "name another file with --ledger")


def is_damage(error: Exception) -> bool:
    """Return whether the error says that the file is damaged: not as DuckDB wrote it."""
    return isinstance(error, duckdb.SerializationException) or any(words in str(error) for words in _DAMAGE)


@contextmanager
def explaining_damage(path: Path) -> Iterator[None]:
    """Turn DuckDB's errors about a damaged file into one with the way to rebuild it: the records beside it hold all."""
    try:
        yield
    except duckdb.Error as error:
        if not is_damage(error):
            raise
        raise LedgerError(
            f"{path}: damaged ({str(error).splitlines()[0]})",
            f"its records rebuild it: move it away, then sparsebench ingest {path.parent / 'records'} --ledger {path}",
        ) from error
