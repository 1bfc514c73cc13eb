"""A run on two nodes of Ray's, both on this machine, of which one is killed: the ledger is that of a local run."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.attack import begin, compare, undisturbed

pytestmark = pytest.mark.long
pytest.importorskip("ray", reason="Ray is not installed: pip install sparsebench[ray]")
PATIENT = {
    "RAY_raylet_start_wait_time_s": "300", "RAY_worker_register_timeout_seconds": "300", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}  # fmt: skip
"""For machines on which much else goes on."""


def at_work(node: Any) -> bool:
    """Whether a job of ours runs below a node's raylet."""
    with suppress(psutil.Error):
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        words = (word for one in raylet.children(recursive=True) for word in one.cmdline())
        return any(word in ("sparsebench.run.worker", "sparsebench.run.forkserver") for word in words)
    return False


def test_a_node_that_is_killed_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    wanted, seconds = undisturbed(tmp_path, 1)
    for name, value in PATIENT.items():
        monkeypatch.setenv(name, value)
    home = begin(tmp_path / "ray", wanted.manifest, wanted)
    # As where nodes start: what they compile lies in the same cache then.
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(home.folder / "cache"))
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        second = nodes.add_node(num_cpus=2)
        process = home.start("--executor", "ray", "--address", nodes.address)
        until = time.monotonic() + 20 * seconds + 300
        while not at_work(second) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        nodes.remove_node(second, allow_graceful=False)
        assert process.wait(20 * seconds + 300) == 0, home.said.read_text()
        assert "started again" in home.said.read_text()
        assert list(compare(home, wanted)) == []
    finally:
        nodes.shutdown()
