"""The exception tree. Every error names the culprit, says what was wrong and what to do.

SparsebenchError
├── UserError             the input was wrong; the command exits with 2
│   ├── ManifestError     one or more problems in a manifest, all shown at once
│   ├── SourceError       a model or data source cannot be found, fetched or trusted
│   │   └── HubUnreachableError   the model hub does not answer (in sources/hub)
│   └── QueryError        SQL that the ledger refuses
├── CellError             one cell cannot finish; it becomes a record and the rest goes on
│   ├── ModelError        a checkpoint that cannot be read or does not fit its family; on the command line 2
│   ├── UnsupportedError  nobody's mistake: this combination does not exist (status `unsupported`)
│   ├── StorageError      a packed file that is broken or does not round-trip; on the command line 2
│   ├── MeasureError      a runtime measurement that cannot be believed
│   │   └── ParityError   one variant's output under an engine is too far from the plain model's
│   └── BenchmarkError    a task that cannot be scored
├── LedgerError           the database is locked, foreign, damaged or newer than this program
│   ├── RecordError       a record that the ledger cannot take; the others can come in
│   └── NoLedgerError     there is none where one was named; the command exits with 2
└── Interrupted           Ctrl-C; everything finished is kept; the command exits with 130
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^/\s]*@")


def redacted(text: str) -> str:
    """Return ``text`` without the user names and passwords that addresses of mirrors and proxies may hold."""
    return _USERINFO.sub("***@", text)


class _Redacting:
    """A text stream that redacts what is written to it."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        return self.stream.write(redacted(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def redact_stderr() -> None:
    """Keep the secrets in addresses of the environment out of all that this process prints to stderr or its log.

    Libraries print addresses too, in warnings and tracebacks. Call this before they are imported: they keep the stream.
    """
    has_secret = any(redacted(value) != value for value in os.environ.values())
    if has_secret and not isinstance(sys.stderr, _Redacting):
        sys.stderr = _Redacting(sys.stderr)  # type: ignore[assignment]


class SparsebenchError(Exception):
    """Base of all errors of this program.

    ``message`` says what was wrong and where, ``hint`` what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(redacted(message))
        self.message = redacted(message)
        self.hint = redacted(hint) if hint else hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str | None]]:
        return type(self), (self.message, self.hint)


class UserError(SparsebenchError):
    """The input was wrong: nothing was measured, nothing is retried."""

    exit_code = 2


class SourceError(UserError):
    """A source cannot be found, fetched or trusted."""


class QueryError(UserError):
    """SQL that the ledger refuses."""


class CellError(SparsebenchError):
    """One cell cannot finish; the run records why and goes on."""


class ModelError(CellError):
    """A checkpoint that cannot be read or does not fit its family."""

    exit_code = 2


class UnsupportedError(CellError):
    """A combination that does not exist; recorded as ``unsupported``, not as a failure."""


@dataclass(frozen=True)
class Refusal:
    """Why something cannot be done, with the culprit's name, and the way out."""

    reason: str
    way_out: str = ""

    def error(self) -> UnsupportedError:
        """Return it as an error, to be raised where the thing was asked for."""
        return UnsupportedError(self.reason, self.way_out or None)


class StorageError(CellError):
    """A stored model that is broken or does not round-trip."""

    exit_code = 2


class MeasureError(CellError):
    """A runtime measurement that cannot be believed."""


class ParityError(MeasureError):
    """A variant's output under an engine is too far from the plain model's; another variant's may not be."""


class BenchmarkError(CellError):
    """A task that cannot be scored."""


class LedgerError(SparsebenchError):
    """The ledger is locked, foreign, damaged, or newer than this program."""


class RecordError(LedgerError):
    """A record that cannot be read, or that is not as this program writes it."""


class NoLedgerError(LedgerError):
    """There is no ledger where one was named."""

    exit_code = 2


class Interrupted(SparsebenchError):
    """The user stopped the run; everything finished is kept."""

    exit_code = 130


@contextmanager
def library_errors(prefix: str, hint: str, error_type: type[SparsebenchError] = ModelError) -> Iterator[None]:
    """Turn what a library raises in the block, given a stranger's file, into an ``error_type`` that begins with ``prefix``.

    For UserError, whose caller writes files, an OSError stays as it is.

    transformers and similar libraries raise errors of any type for an unexpected file, so none is named here.
    """
    try:
        yield
    except SparsebenchError:
        raise
    except Exception as error:
        if error_type is UserError and isinstance(error, OSError):
            raise
        if crashed := known_crash(error):
            raise crashed from error
        reason = " ".join(str(error).split())[:300] or "it says nothing"
        raise error_type(f"{prefix}: {reason} ({type(error).__name__})", hint) from error


MEMORY_PHRASES = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "std::bad_alloc", "out of memory",
    "status_alloc_failed", "insufficient resources",
)  # fmt: skip
"""How torch, its allocators, the system and NVIDIA's libraries report that memory is exhausted."""


def mentions(error: BaseException, phrases: tuple[str, ...]) -> bool:
    """Return whether a library's or the system's error has one of ``phrases`` (in lower case) in its text."""
    text = str(error).lower()
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in phrases)


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's or the system's error says, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on the machine or on a GPU."""
    return isinstance(error, MemoryError) or mentions(error, MEMORY_PHRASES)


INSTALL_MEASURE = (
    "install all that measuring needs: pip install 'sparsebench[measure]', or in the project's folder '.[measure]'"
)


def known_crash(error: BaseException) -> SparsebenchError | None:
    """Return exhausted memory, a missing library or the panic of one in Rust as an error of ours; None for other errors."""
    message = first_line(error)
    if out_of_memory(error):
        return MeasureError(f"memory ran out: {message}", "close other programs, or use a smaller model or more memory")
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("sparsebench"):
        return UserError(f"{error.name} is not installed", INSTALL_MEASURE)
    # Such a library, as tokenizers is, panics with a BaseException, and has printed the panic itself.
    if type(error).__name__ == "PanicException":
        hint = "a file of the model (often tokenizer.json) may be damaged: fetch the model again, or use another"
        return UserError(f"a library crashed: {message}", hint)
    return None


def system_error(error: OSError, cache: Path) -> SparsebenchError:
    """Return what the system refused as an error of ours, with the file that it names and the way out.

    ``cache`` is where this program keeps what can be made again; for a file in it, the error blames the cache.
    """
    file_name = error.filename2 if error.filename2 is not None else error.filename
    path = Path(os.fsdecode(file_name)) if isinstance(file_name, str | bytes) else None
    reason = (error.strerror or str(error)).lower()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({path})" if path else ""
        return SparsebenchError(f"the disk is full{where}: what is finished is kept", "free some and run again")
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        return SparsebenchError(f"the system refuses: {reason}", "close other programs, or raise its limit (ulimit)")
    if path and path.is_relative_to(cache):
        return UserError(
            f"{path}: {reason}: the cache {cache} cannot be used", "make it yours, or name another: SPARSEBENCH_CACHE"
        )
    if error.errno == errno.ENAMETOOLONG:
        return UserError(f"{path}: {reason}", "give it a shorter name")
    return UserError(f"{path or 'a file'}: {reason}", "name a path that exists and that you can read and write")
