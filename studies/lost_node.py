"""Kills one of two Ray nodes in the quickstart, and compares what is left with a run on this machine that nobody disturbs.

    python -m studies.lost_node --folder DIR

Both nodes are on this machine, with one processor each. Timed stages are left out: their results are no node's alone. The
node is killed while it works and 20 records are there. Prints what differs; exit code 1 if anything does, or if no job was
started again.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from studies.homes import ROOT, begin, compare
from tests.run.test_cluster import PATIENT, at_work

STAGES = ("make", "structure", "storage", "benchmarks")
ONLY = [word for stage in STAGES for word in ("--only", f"stage={stage}")]
RECORDS = 20


def main() -> int:
    """Do what was asked for; how the command ends."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="work here; kept")
    folder: Path = parser.parse_args().folder
    wanted = begin(folder / "undisturbed", ROOT / "quickstart.yaml")
    started = time.monotonic()
    if wanted.start(*ONLY).wait():
        raise SystemExit(f"the undisturbed run failed:\n{wanted.said.read_text()}")
    print(f"undisturbed: {len(wanted.statuses())} cells in {time.monotonic() - started:.0f} s", flush=True)
    home = begin(folder / "killed", wanted.manifest, wanted)
    os.environ |= {**PATIENT, "SPARSEBENCH_CACHE": str(home.folder / "cache")}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        second = nodes.add_node(num_cpus=1)
        started, process = time.monotonic(), home.start("--executor", "ray", "--address", nodes.address, *ONLY)
        while process.poll() is None and not (len(home.statuses()) >= RECORDS and at_work(second)):
            time.sleep(0.05)
        print(f"killed a node after {len(home.statuses())} records", flush=True)
        nodes.remove_node(second, allow_graceful=False)
        code = process.wait()
    finally:
        nodes.shutdown()
    again = "started again" in home.said.read_text()
    differences = list(compare(home, wanted))
    print(
        f"exit code {code}, {len(home.statuses())} cells in {time.monotonic() - started:.0f} s, started again: {again}"
    )
    print(*(f"! {kind}: {what}" for kind, what in differences), sep="\n")
    return int(bool(code or differences or not again))


if __name__ == "__main__":
    sys.exit(main())
