"""Messages as lines of JSON: how a rank sends them to the process that started it, and how received lines are cut."""

from __future__ import annotations

import json
import os
from typing import Any


def complete_lines(buffer: bytes, received: bytes) -> tuple[list[bytes], bytes]:
    """Return the lines that are whole now that more was ``received``, and the beginning of the next one."""
    *lines, rest = (buffer + received).split(b"\n")
    return lines, rest


class Channel:
    """Writes JSON lines, and reads one byte after a message that waits for the parent."""

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # a compiler that outlives the rank must not keep the channel open
        self.descriptor = descriptor

    def send(self, kind: str, wait: bool = False, **content: Any) -> None:
        """Send one message; with ``wait``, return only when the parent has taken it.

        Raises SystemExit where the parent is gone before that.
        """
        line = json.dumps({"kind": kind, "wait": wait, **content}).encode() + b"\n"
        while line:
            line = line[os.write(self.descriptor, line) :]
        if wait and not os.read(self.descriptor, 1):
            raise SystemExit("the parent is gone")
