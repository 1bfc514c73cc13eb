"""A real rank in which something goes wrong at its third timed step: what, and in which rank, the environment says."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsebench.runtime import rank
from sparsebench.runtime.latency import Peers

STEPS = 3


def fault(kind: str) -> None:
    """Never returns well."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "hang":
        time.sleep(600)
    elif kind == "memory":
        import resource

        import torch

        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
        torch.empty(2**33).fill_(1)
    elif kind == "eat":
        held = []
        while True:
            held.append(b"x" * 2**24)


def main() -> int:
    """As ``sparsebench.runtime.rank``, with the fault."""
    kind, _, place = os.environ["FAULT"].partition("@")
    right, count = Peers.timed, 0

    def timed(self: Peers, step: Callable[[], Any]) -> Any:
        nonlocal count
        count += 1
        if count == STEPS and place == sys.argv[2]:
            fault(kind)
        return right(self, step)

    Peers.timed = timed  # type: ignore[method-assign]
    return rank.main(sys.argv[1:])


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
