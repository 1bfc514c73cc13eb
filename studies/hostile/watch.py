"""Who opens the canaries and who asks the network: Linux's inotify, and a listener that answers nothing."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from pathlib import Path

_IN_OPEN, _EVENT = 0x20, struct.Struct("iIII")


class Watch:
    """Notes which files below a folder are opened, whatever name they are reached by. Linux only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Watch:
        library = ctypes.CDLL(None, use_errno=True)
        self.descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "inotify cannot be had: this command needs Linux")
        self.names = {}
        for path in sorted(self.folder.rglob("*")):
            number = library.inotify_add_watch(self.descriptor, os.fsencode(path), _IN_OPEN)
            self.names[number] = path.relative_to(self.folder).as_posix()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def opened(self) -> set[str]:
        """The names of the files that were opened since the watch began."""
        found: set[str] = set()
        while True:
            try:
                events = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return found
            place = 0
            while place < len(events):
                number, _, _, length = _EVENT.unpack_from(events, place)
                found.add(self.names.get(number, "?"))
                place += _EVENT.size + length


class Listener:
    """A port that notes the first line of every request and closes the connection: the hub and the proxy of a sandbox."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __enter__(self) -> Listener:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    said = connection.recv(4096)
                except OSError:
                    said = b""
            self.asked.append(said.split(b"\r\n")[0].decode(errors="replace") or "a connection")
