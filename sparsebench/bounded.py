"""Reading files of strangers within limits: no small file may cost minutes or gigabytes.

Most limits stand here. Beyond a limit an error of the caller's kind is raised, which names the file, its line where
there is one, and the limit.
"""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import resource
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from sparsebench.errors import ModelError, SparsebenchError

ErrorType = type[SparsebenchError]
_FETCH_AGAIN = "fetch the file again"
MB = 1_000_000
MANIFEST_BYTES = MB // 2
"""Bytes of a manifest; those that are shipped have less than 5,000."""
YAML_NODES = 10_000
"""Keys and values of a manifest; those that aliases repeat count each time."""
KEY_CHARACTERS = 200
"""Characters of a manifest's key."""
CELLS, CELLS_A_MODEL = 200_000, 2_000
"""Cells of a manifest: CELLS, or CELLS_A_MODEL for each of its models if that is more. A run does at most CELLS."""
JSON_BYTES = 32 * MB
"""Bytes of a JSON file, and characters of a line: large indexes of shards have 10 MB, records and documents less."""
TOKENIZER_BYTES = 4 * JSON_BYTES
"""Bytes of a tokenizer.json: those with 256,000 tokens have 33 MB."""
PLAN_BYTES = 5 * JSON_BYTES
"""Bytes of a plan's uncompressed record: one of CELLS cells has up to 150 MB."""
HEADER_BYTES = 100 * MB
"""Bytes of a safetensors header: the limit of the safetensors library itself."""
JSON_VALUES = 2_000_000
"""Values of a JSON text, counted by the commas and brackets in it: each may take a hundred bytes of memory."""
TEXT_CHARACTERS = MB // 10
"""Characters of a text in a record, and of a word for a tokenizer, whose time may grow with the square of a word."""
DEPTH = 100
"""Lists and objects within each other."""
SPARSE_FILE_BYTES = 4000 * MB
"""Bytes above which a file must take up room on the disk, at least for a part of it."""
QUERY_CHARACTERS = MB
"""Characters of a file with a query for the ledger; the report's longest have less than 10,000."""
MOST_ITEMS, MOST_PROCESSES = 10_000_000, 1_024
"""The largest count that a command or a notebook's function takes: of tokens, sequences, samples or documents (MOST_ITEMS), and
of processes or examples in a prompt (MOST_PROCESSES)."""
WHEEL_FILES = 10_000
"""Files that are taken out of a wheel."""
CSV_COLUMNS = 10_000
"""Columns of a CSV file."""
FREE_BYTES, UNPACKED_RATIO, UNPACKED_BYTES = 8 * MB, 200, 4000 * MB
"""A compressed file may unpack to FREE_BYTES, or to UNPACKED_RATIO times its size if that is more; text to no more than
UNPACKED_BYTES. Compressed records grow up to 110 times: a hundred variants have the same documents."""
TENSOR_BYTES, TENSOR_RATIO, SHARD_BYTES = 256 * MB, 1000, 4000 * MB
"""A stored tensor may unpack to TENSOR_BYTES, or to TENSOR_RATIO times its stored size if that is more. All tensors of a
file together may unpack to SHARD_BYTES, or to TENSOR_RATIO times its size."""

PATTERN_SECONDS, DOCUMENT_SECONDS, PATTERN_BYTES = 1.0, 0.001, 256 * MB
"""CPU time of a stranger's templates and patterns: PATTERN_SECONDS, and DOCUMENT_SECONDS for every document that one is
used on. PATTERN_BYTES is how many more bytes a use may take than the process has."""


def unpacked_limit(packed_bytes: int) -> int:
    """Return to how many bytes a compressed file of ``packed_bytes`` may unpack."""
    return max(FREE_BYTES, UNPACKED_RATIO * packed_bytes)


def read(path: Path, error_type: ErrorType = ModelError, limit: int = JSON_BYTES) -> bytes:
    """Return the bytes of a file. Raises ``error_type`` for one of more than ``limit`` bytes, or that cannot be read."""
    refuse_special(path, error_type)
    try:
        with path.open("rb") as file:
            # All that is asked for is allocated at once, so do not ask for the limit of a short file.
            content = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise error_type(f"{path}: {error.strerror}", "name a readable file") from error
    if len(content) > limit:
        raise error_type(
            f"{path}: more than {limit / MB:g} MB, the limit for such a file", "see that it is the right file"
        )
    return content


def read_into(path: Path, buffer: memoryview, begin: int) -> int:
    """Fill ``buffer`` from byte ``begin`` of a file on; return how many bytes there were, fewer where the file ends."""
    done = 0
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while done < len(buffer) and (count := file.readinto(buffer[done:])):
            done += count
    return done


def refuse_special(path: Path, error_type: ErrorType) -> None:
    """Raise ``error_type`` for a path that exists and is no file: a pipe would be read without end."""
    if path.exists() and not path.is_file():
        raise error_type(f"{path}: a folder, a pipe or a device, not a file", "name a file")


def refuse_long(value: Any, where: Path | str, error_type: ErrorType, hint: str) -> None:
    """Raise ``error_type`` for a JSON value with a text, or a key, longer than TEXT_CHARACTERS."""
    pending = [value]
    while pending:
        nested = pending.pop()
        if isinstance(nested, dict | list):
            pending += [*nested, *nested.values()] if isinstance(nested, dict) else nested
        elif isinstance(nested, str) and len(nested) > TEXT_CHARACTERS:
            raise error_type(f"{where}: a text of more than {TEXT_CHARACTERS:,} characters: {nested[:20]}…", hint)


def read_json(path: Path, error_type: ErrorType = ModelError, hint: str = _FETCH_AGAIN, limit: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file."""
    return parse_json(read(path, error_type, limit), path, error_type, hint, limit)


def read_object(
    path: Path, error_type: ErrorType = ModelError, hint: str = _FETCH_AGAIN, limit: int = JSON_BYTES
) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ``error_type`` for any other value."""
    value = read_json(path, error_type, hint, limit)
    if not isinstance(value, dict):
        raise error_type(f"{path}: it holds no object but a {type(value).__name__}", hint)
    return value


def parse_json(text: str | bytes, where: Path | str, error_type: ErrorType, hint: str, limit: int = JSON_BYTES) -> Any:
    """Return the value of a JSON text from ``where``. A text with a larger ``limit`` may also hold more values.

    Raises ``error_type`` for a text that is not JSON, holds too many values or is nested too deep.
    """
    most_values = JSON_VALUES * limit // JSON_BYTES
    try:
        text = text if isinstance(text, str) else text.decode()
        if len(text) > most_values and sum(map(text.count, ",[{")) > most_values:
            raise error_type(f"{where}: more than {most_values:,} values, the limit for JSON", hint)
        with without_collection():
            value = json.loads(text)
        _check_depth(value)
    except RecursionError:
        raise error_type(f"{where}: nested more than {DEPTH} deep, the limit for JSON", hint) from None
    except ValueError as error:
        raise error_type(f"{where}: not JSON ({error})", hint) from error
    return value


@contextmanager
def without_collection() -> Iterator[None]:
    """Collect no garbage meanwhile: finalizers of others that run near the limit of recursion would fail."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass
class Allowance:
    """The CPU time that is left to a stranger's templates and patterns, which `re` and Jinja run without limits.

    It is this thread's own time: a busy machine takes none of it. The limit on memory is Linux's, on addresses.
    ``culprit`` is what is in use, the innermost, since ``begun``.
    """

    seconds_left: float = PATTERN_SECONDS
    culprit: str = ""
    begun: float = 0

    @contextmanager
    def use(self, culprit: str, error_type: ErrorType, documents: int = 1) -> Iterator[None]:
        """Raise ``error_type``, naming the culprit, where the block takes more time or memory than it may.

        A block within another adds to its time, and is named where it fails. Only a main thread can be interrupted, so
        others are refused.
        """
        if threading.current_thread() is not threading.main_thread():
            raise error_type(
                f"{culprit}: its time can be limited in a program's main thread only", "score it from there"
            )
        extra, outer_culprit = DOCUMENT_SECONDS * documents, self.culprit
        self.seconds_left, self.culprit = self.seconds_left + extra, culprit
        if not outer_culprit:
            self.begun = time.thread_time()
        deadline = self.begun + min(self.seconds_left, PATTERN_SECONDS + extra)
        try:
            with nullcontext() if outer_culprit else _limited(deadline):
                yield
            is_over, offender = time.thread_time() - self.begun > self.seconds_left, culprit
        except _TimeUp as interruption:
            is_over, offender = True, interruption.culprit or culprit
            interruption.culprit = offender
            if outer_culprit:
                raise
        except MemoryError:
            raise error_type(f"{culprit}: more than {PATTERN_BYTES / MB:g} MB of memory", "make it simpler") from None
        finally:
            self.culprit = outer_culprit
            if not outer_culprit:
                self.seconds_left -= time.thread_time() - self.begun
        if is_over:
            seconds = f"{PATTERN_SECONDS:g} s of CPU time and {DOCUMENT_SECONDS * 1000:g} ms for each document"
            raise error_type(f"{offender}: more than {seconds}", "make it simpler")


class _TimeUp(BaseException):
    """Nobody's `except Exception` ends it. ``culprit`` is the innermost that was in use."""

    culprit = ""


_TICK = 0.05


@contextmanager
def _limited(deadline: float) -> Iterator[None]:
    """Raise _TimeUp in the block at every tick after this thread's time ``deadline``; let it take PATTERN_BYTES more.

    `re` and long integers look for signals while they compute.
    """
    if time.thread_time() > deadline:
        raise _TimeUp
    armed = True

    def tick(*_: Any) -> None:
        if armed and time.thread_time() > deadline:
            raise _TimeUp

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + PATTERN_BYTES
    previous_handler, started = signal.signal(signal.SIGALRM, tick), time.monotonic()
    seconds_left, interval = signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (limit if soft < 0 else min(soft, limit), hard))
            yield
        finally:
            armed = False
    finally:
        seconds_left = max(seconds_left - (time.monotonic() - started), 1e-6) if seconds_left else 0
        signal.setitimer(signal.ITIMER_REAL, seconds_left, interval)
        signal.signal(signal.SIGALRM, previous_handler or signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def lines(path: Path, error_type: ErrorType, newline: str | None = None) -> Iterator[str]:
    """Yield the lines of a UTF-8 text, unpacked where its name ends in .gz or .zst; ``newline`` is that of ``open``."""
    with open_text(path, error_type, newline) as file:
        number = 0
        while line := file.readline(JSON_BYTES + 1):
            number += 1
            if len(line) > JSON_BYTES:
                raise error_type(
                    f"{path}:{number}: a line of more than {JSON_BYTES / MB:g} million characters", "split the line"
                )
            yield line


def read_text(
    path: Path, error_type: ErrorType, limit: int = JSON_BYTES, hint: str = "as JSON Lines it may be longer"
) -> str:
    """Return the whole of a UTF-8 text of at most ``limit`` characters, unpacked where its name ends in .gz or .zst."""
    with open_text(path, error_type) as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise error_type(f"{path}: more than {limit / MB:g} million characters", hint)
    return text


@contextmanager
def open_text(path: Path, error_type: ErrorType, newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 text as ``lines`` does.

    Raises ``error_type`` for a file that is no UTF-8, or whose suffix promises a compressed one that it is not.
    """
    refuse_special(path, error_type)
    with path.open("rb") as packed:
        suffix = path.suffix.lower()
        try:
            if suffix in (".gz", ".zst"):
                # Unpacking is fast and what follows is not, so the size is checked first.
                _check_unpacked_size(packed, suffix, path, error_type)
                packed.seek(0)
            # Spreadsheets write a byte-order mark.
            yield io.TextIOWrapper(_unpacked(packed, suffix), encoding="utf-8-sig", newline=newline)
        except UnicodeDecodeError as error:
            byte = error.object[error.start]  # its position is that in a piece of the file
            hint = "save it as UTF-8, or rename it if its suffix is wrong"
            raise error_type(f"{path}: not UTF-8 text (it has the byte {byte:#04x})", hint) from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            hint = "copy the file again, or rename it if its suffix is wrong"
            raise error_type(f"{path}: not a whole gzip file ({error})", hint) from error


def _unpacked(packed: BinaryIO, suffix: str) -> Any:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=packed)
    if suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().stream_reader(packed, closefd=False)
    return packed


def _check_unpacked_size(packed: BinaryIO, suffix: str, path: Path, error_type: ErrorType) -> None:
    """Raise ``error_type`` where a compressed file unpacks to more than it may, or a zstd file was cut short."""
    bytes_left = limit = min(UNPACKED_BYTES, unpacked_limit(path.stat().st_size))
    for size in _zst_sizes(packed, path, error_type) if suffix == ".zst" else _gz_sizes(packed):
        bytes_left -= size
        if bytes_left < 0:
            raise error_type(
                f"{path}: unpacks to more than {limit / MB:,.0f} MB, the limit for its size "
                f"({UNPACKED_RATIO} times that, at least {FREE_BYTES / MB:g} MB and at most {UNPACKED_BYTES / MB:g} MB)",
                "unpack it yourself if you trust it",
            )


def _gz_sizes(packed: BinaryIO) -> Iterator[int]:
    plain = gzip.GzipFile(fileobj=packed)
    while size := len(plain.read(1 << 20)):
        yield size


def _zst_sizes(packed: BinaryIO, path: Path, error_type: ErrorType) -> Iterator[int]:
    """Yield how much each piece of a zstd file unpacks to. Raises ``error_type`` for a file that was cut short.

    zstd's stream reader would take that for a file which ends there.
    """
    import zstandard

    frame = None
    try:
        # A thousand bytes may unpack to 32 MB.
        while chunk := packed.read(1024):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield len(frame.decompress(chunk))
                chunk = b""
                if frame.eof:
                    chunk, frame = frame.unused_data, None
    except zstandard.ZstdError as error:
        raise error_type(f"{path}: not a whole zstd file ({error})", "copy the file again") from error
    if frame or not packed.tell():
        raise error_type(f"{path}: not a whole zstd file (it was cut short)", "copy the file again")


def _check_depth(value: Any) -> None:
    """Raise RecursionError for a value nested too deep for the recursive code of others."""
    level: list[Any] = [[value]]
    for _ in range(DEPTH + 1):
        children = [child for parent in level for child in (parent.values() if isinstance(parent, dict) else parent)]
        level = [child for child in children if isinstance(child, dict | list)]
        if not level:
            return
    raise RecursionError
