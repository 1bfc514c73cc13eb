"""Runs on two nodes of Ray's, both on this machine: one node is killed, and the ledger is that of a local run; and ranks of one
model lie on both."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparsebench.ledger import query
from studies.homes import MARK, ROOT, Home, begin, compare, undisturbed

pytestmark = pytest.mark.long
pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
PATIENT = {
    "RAY_raylet_start_wait_time_s": "300", "RAY_worker_register_timeout_seconds": "300", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
}  # fmt: skip
"""For machines on which much else goes on."""


def raylet(node: Any) -> int:
    """The number of a node's raylet, below which its tasks are."""
    return int(node.all_processes["raylet"][0].process.pid)


def at_work(node: Any) -> bool:
    """Whether a job of ours runs below a node's raylet."""
    with suppress(psutil.Error):
        words = (word for one in psutil.Process(raylet(node)).children(recursive=True) for word in one.cmdline())
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
        said = home.said.read_text()
        assert "started again" in said and "state-dump" not in said
        assert list(compare(home, wanted)) == []
    finally:
        nodes.shutdown()


SPREAD = """\
version: 1
models:
  - {{name: g2p-t5, source: "path:{root}/examples/g2p/model", family: encoder-decoder, dtype: float32}}
runtime:
  engines: deepspeed
  ranks: 2
  nodes: 2
  workloads: {{batch: 1, prompt: 8, generate: 2}}
  samples: 4
  processes: 1
structure: null
storage: null
"""
SECONDS = 90.0
"""So long what takes seconds may take on a busy machine."""


def eventually(home: Home, found: Callable[[], Any]) -> Any:
    """What is found at last."""
    until = time.monotonic() + SECONDS
    while not (last := found()):
        assert time.monotonic() < until, home.said.read_text()
        time.sleep(0.1)
    return last


def ours(home: Home) -> Iterator[psutil.Process]:
    """Processes of modules of this package, on any node."""
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            marked = one.status() != psutil.STATUS_ZOMBIE and one.environ().get(MARK) == str(home.folder)
            if marked and any(word.startswith("sparsebench.") for word in one.cmdline()):
                yield one


def ranks_of(home: Home) -> dict[str, psutil.Process]:
    """Both ranks, by number, once there are two."""
    found = {}
    for one in ours(home):
        with suppress(psutil.Error):
            if "sparsebench.runtime.rank" in one.cmdline():
                found[one.environ()["RANK"]] = one
    return found if len(found) == 2 else {}


@contextmanager
def on_a_core(number: int) -> Iterator[None]:
    """What is started meanwhile has one core of this machine, as a node of its own would."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[number % len(before)]})
    yield
    os.sched_setaffinity(0, before)


def left_in_memory() -> set[str]:
    """What lies in shared memory, but for Ray's own."""
    return {one.name for one in Path("/dev/shm").iterdir() if not one.name.startswith(("plasma", "sem.", "ray"))}


@contextmanager
def two_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A cluster of two nodes of a core each, behind a head without any, and these nodes."""
    import ray
    from ray.cluster_utils import Cluster

    with on_a_core(0):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        workers = []
        for number in range(2):
            with on_a_core(number):
                workers.append(cluster.add_node(num_cpus=1))
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, workers
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_ranks_of_one_model_lie_on_two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    (manifest := tmp_path / "spread.yaml").write_text(SPREAD.format(root=ROOT))
    home = Home(tmp_path / "home", manifest)
    own = {"SPARSEBENCH_CACHE": str(home.folder / "cache"), "GLOO_SOCKET_IFNAME": None, MARK: str(home.folder)}
    for name, value in (PATIENT | own).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    shared = left_in_memory()
    with two_nodes() as (nodes, workers):

        def groups() -> list[str]:
            return [one["state"] for one in ray.util.placement_group_table().values()]

        def gone() -> bool:
            return set(groups()) <= {"REMOVED"} and not list(ours(home))

        # A rank that is killed is named, with its signal; the other ends.
        with on_a_core(0):  # timed cells need machines of one class
            process = home.start("--executor", "ray", "--address", nodes.address)
        ranks = eventually(home, lambda: ranks_of(home))
        assert groups() == ["CREATED"]
        killed = time.monotonic()
        ranks["1"].kill()
        (key,) = eventually(home, lambda: [key for key, status in home.statuses().items() if status == "failed"])
        assert re.search("rank 1 of 2 on [0-9.]+ died of SIGKILL", home.reason(key, "failed"))
        assert time.monotonic() - killed < 20
        assert not ranks["0"].is_running()
        # Ctrl-C while the next job's ranks work: nothing is left of it.
        eventually(home, lambda: ranks_of(home))
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 130, home.said.read_text()
        eventually(home, gone)
        # Undisturbed.
        with on_a_core(0):
            process = home.start("--executor", "ray", "--address", nodes.address, "--retry-failed")
        assert process.wait(3 * SECONDS) == 0, home.said.read_text()
        eventually(home, gone)
        assert len(groups()) == 4
        for view in ("latency", "memory"):
            rows = query.run(home.ledger, f"SELECT DISTINCT workload, engine, ranks FROM {view}").rows
            assert list(rows) == [("b1 p8 g2 on 2 nodes", "deepspeed", 2)]
        assert set(home.statuses().values()) == {"done"}
        # A node that is killed takes its rank along, which is named; what then asks for two nodes is told that there is one.
        manifest.write_text(manifest.read_text().replace("generate: 2", "generate: 3"))
        with on_a_core(0):
            process = home.start("--executor", "ray", "--address", nodes.address)
        above = {one.pid for one in eventually(home, lambda: ranks_of(home))["1"].parents()}
        killed = time.monotonic()
        nodes.remove_node(next(one for one in workers if raylet(one) in above), allow_graceful=False)
        assert process.wait(SECONDS) == 1, home.said.read_text()
        assert time.monotonic() - killed < 30
        reasons = [home.reason(key, "failed") for key, status in home.statuses().items() if status == "failed"]
        weighed, timed = sorted(reasons)
        assert re.search("rank 1 of 2 on [0-9.]+ died of SIGKILL", timed)
        assert "nodes: 2: 2 ranks need 2 nodes with 1 CPU each; 1 of this cluster's 2" in weighed
        eventually(home, gone)
        assert left_in_memory() <= shared
