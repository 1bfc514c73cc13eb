"""What the test's own process does while it is watched: the files it opens, whom it asks, the time and memory it takes."""

import ctypes
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError

SECONDS, BYTES = 5.0, 500_000_000
"""Of CPU and memory, at most, for one hostile input. A loaded machine is two or three times as slow as an idle one."""
ASKING = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec")
_IN_OPEN, _EVENT = 0x20, struct.Struct("iIII")

_logs: list[list[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _logs:
        return
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[0] != "<template>":
        _logs[-1].append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in ASKING:
        _logs[-1].append(f"{event} {arguments}")


sys.addaudithook(_audit)  # a hook cannot be taken away again


@contextmanager
def audited() -> Iterator[list[str]]:
    """List the files that Python opens meanwhile, by their real paths, and its connections and programs."""
    _logs.append(log := [])
    try:
        yield log
    finally:
        _logs.pop()


@contextmanager
def opened(folder: Path) -> Iterator[set[str]]:
    """Name the files below a folder that anything opens, C++ too, by whatever name; the set is filled at the end."""
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    names = {
        library.inotify_add_watch(descriptor, os.fsencode(path), _IN_OPEN): path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
    }
    log: set[str] = set()
    try:
        yield log
        while True:
            try:
                events = os.read(descriptor, 1 << 16)
            except BlockingIOError:
                break
            start = 0
            while start < len(events):
                number, _, _, length = _EVENT.unpack_from(events, start)
                log.add(names[number])
                start += _EVENT.size + length
    finally:
        os.close(descriptor)


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[0]) * 1024


@contextmanager
def cheap(seconds: float = SECONDS, size: int = BYTES) -> Iterator[None]:
    """Assert that what happens takes little CPU time and memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, begun = _memory("VmRSS"), time.process_time()
    try:
        yield
    finally:
        spent, taken = time.process_time() - begun, _memory("VmHWM") - before
        assert spent < seconds, f"{spent:.1f} s of CPU"
        assert taken < size, f"{taken / 1e6:.0f} MB of memory"


@contextmanager
def refused(*names: object, kind: type[SparsebenchError] = SparsebenchError) -> Iterator[None]:
    """Expect an error that names these, for little time and memory."""
    with cheap(), pytest.raises(kind) as caught:
        yield
    for name in names:
        assert str(name) in str(caught.value)
    assert len(str(caught.value)) < 20_000
