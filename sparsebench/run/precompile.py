"""Compiles what ranks share, once per machine, while the first jobs run: a timed job would have to wait for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from sparsebench import children
from sparsebench.plan.cells import Cell
from sparsebench.runtime import shm
from sparsebench.sources import Cache


def compiler(cells: Iterable[Cell], temporary: str, device: str = "cpu") -> subprocess.Popen[bytes] | None:
    """Start a process, leader of its group, that compiles what ``cells`` will need; None where they need nothing.

    Its temporary files lie in the folder ``temporary``. Its exit code is not read: the job that needs the result
    compiles again what is missing, or says why it cannot.
    """
    settings = (cell.settings for cell in cells if "ranks" in cell.settings)
    if not any("nodes" not in one and shm.used(one["engine"], one["ranks"], device) for one in settings):
        return None
    quiet = subprocess.DEVNULL
    command, variables = children.command(__name__), os.environ | children.imports() | {"TMPDIR": temporary}
    return subprocess.Popen(command, env=variables, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)


if __name__ == "__main__":
    shm.ensure(Cache())
