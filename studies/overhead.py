"""What a run itself takes beside its jobs: the processor time of `sparsebench run`, its own and no child's, over its wall time.

    python studies/overhead.py quickstart.yaml [--ledger LEDGER]

That is imports, the plan, the records' way into the ledger, and what is shown. With a new ledger every cell is run. Nothing else
should run beside it, because a busy machine makes the wall time longer and the share look smaller.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from contextlib import suppress

import psutil

EVERY = 1.0
"""Seconds between two looks: the last one misses so much of the end at most."""


def main() -> int:
    """Run the manifest, and print a row for studies/README.md; the run's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--ledger", default="out/overhead.duckdb")
    given = parser.parse_args()
    started, used = time.monotonic(), 0.0
    command = [sys.executable, "-m", "sparsebench", "run", given.manifest, "--ledger", given.ledger]
    with subprocess.Popen(command) as process:
        parent = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):
                times = parent.cpu_times()
                used = times.user + times.system
            time.sleep(EVERY)
    wall = time.monotonic() - started
    print(f"| {given.manifest} | {used:.1f} s of CPU | {wall:.0f} s | {used / wall:.2%} |")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
