"""Ray as a launcher of ranks: starts them on a placement group's nodes, prints their last lines and how they ended.

It runs on the first node, beside the job that wants the ranks. On each other node a Ray task, which holds that node's
whole share of the group, starts them. Ranks end with the process that started them, and that process with the launcher.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sparsebench import children, leftovers
from sparsebench.errors import MeasureError
from sparsebench.runtime.hosts import Hosts
from sparsebench.runtime.launch import GRACE_SECONDS, TAIL_LINES

NAMESPACE = "sparsebench"
"""The Ray namespace in which our placement groups have names."""
UNHURRIED = {"env_vars": {"RAY_worker_niceness": "0"}}
"""Ray runs tasks at a niceness of 15: whatever else a node does would go before what is timed."""
SIGNALLED = r"^rank {} died of signal (\d+)$"
"""The line that reports a rank that a signal ended; ``nodes`` searches for it."""

Ended = tuple[int, int, str]
"""A rank, its exit code (negative: a signal), and the last lines that it printed."""


def command(group: str, where: Hosts, port: str, call: Sequence[str]) -> list[str]:
    """Return the command that starts ``python -m sparsebench.runtime.rank CALL…`` for each rank of ``where``.

    It ends with this process. ``group`` is the placement group as ``ADDRESS/NAME``, with the cluster's address;
    ``port`` is a port of the first node, where the ranks meet.
    """
    return children.command(__name__, group, where[0][0], port, where[0][1], *call)


def on_bundle(ray: Any, group: Any, index: int) -> dict[str, Any]:
    """Return the options of a Ray task that holds one node's whole share of a placement group."""
    share = ray.util.placement_group_table(group)["bundles"][index]
    chosen = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, index)
    return {
        "num_cpus": share["CPU"], "num_gpus": share.get("GPU", 0), "scheduling_strategy": chosen, "max_retries": 0,
    }  # fmt: skip


def addresses(ray: Any, group: Any) -> list[str]:
    """Return the addresses by which other nodes reach a placement group's nodes, in the order of its bundles.

    Raises MeasureError where one of them is gone.
    """
    table = ray.util.placement_group_table(group)
    if table["state"] != "CREATED":
        raise MeasureError(f"a node of the placement group is gone: Ray calls the group {table['state']}")
    known = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes()}
    nodes = table["bundles_to_node_id"]
    return [known[nodes[index]] for index in sorted(nodes)]


def start_ranks(numbers: Sequence[int], settings: Mapping[str, str], call: Sequence[str]) -> Iterator[Ended]:
    """Start these ranks on this node; yield each when it has ended. ``settings`` are extra environment variables."""
    leftovers.sweep()
    with leftovers.temporary() as folder, ThreadPoolExecutor(len(numbers)) as pool:
        started: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for local, rank in enumerate(numbers):
                own = {"RANK": str(rank), "LOCAL_RANK": str(local), "LOCAL_SIZE": str(len(numbers)), "TMPDIR": folder}
                with (Path(folder) / f"rank-{rank}.log").open("wb") as said:
                    started[rank] = subprocess.Popen(
                        children.command("sparsebench.runtime.rank", *call),
                        env={**os.environ, **children.imports(), **settings, **own}, cwd="/", start_new_session=True,
                        stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                    )  # fmt: skip
            waiting = {pool.submit(process.wait): rank for rank, process in started.items()}
            for ended in as_completed(waiting):
                rank = waiting[ended]
                lines = (Path(folder) / f"rank-{rank}.log").read_text(errors="replace").splitlines()
                yield rank, ended.result(), "\n".join(lines[-TAIL_LINES:])
        finally:
            for process in started.values():
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)


def start_there(
    address: str, numbers: Sequence[int], settings: Mapping[str, str], call: Sequence[str]
) -> Iterator[Ended]:
    """Start ranks in a Ray task; gloo connects by the interface that has the node's ``address`` for Ray."""
    yield from start_ranks(numbers, {**settings, **interface(address)}, call)


def interface(address: str) -> dict[str, str]:
    """Return the environment variable that has gloo use the interface with ``address``, unless the user set another.

    By itself gloo takes the address that this machine's name resolves to, which other machines may not reach. The
    result is empty where no interface has the address.
    """
    import psutil

    names = [name for name, known in psutil.net_if_addrs().items() if any(one.address == address for one in known)]
    return {"GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", names[0])} if names else {}


def main(words: Sequence[str]) -> int:
    """Start all ranks, wait until they have ended or one has failed, and return the exit code."""
    import ray

    group, first, port, each, *call = words
    cluster, _, name = group.rpartition("/")
    ray.init(
        address=cluster, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", runtime_env=UNHURRIED
    )  # fmt: skip
    placed = ray.util.get_placement_group(name)
    try:
        where = addresses(ray, placed)
    except MeasureError as error:
        print(error)
        return 1
    nodes, slots = len(where), int(each)
    numbers = [range(node * slots, (node + 1) * slots) for node in range(nodes)]
    settings = {"WORLD_SIZE": str(nodes * slots), "MASTER_ADDR": first, "MASTER_PORT": port}
    heard: queue.Queue[Ended] = queue.Queue()

    def follow(index: int, ended: Iterable[Ended]) -> None:
        left = set(numbers[index])
        try:
            for one in ended:
                left.discard(one[0])
                heard.put(one)
        except Exception as error:  # of any kind: nobody else would report these ranks
            raised = isinstance(error, ray.exceptions.RayTaskError) or not isinstance(error, ray.exceptions.RayError)
            cause = getattr(error, "cause", None) or error
            why = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0]}"
            code, what = (1, "cannot run its ranks") if raised else (-signal.SIGKILL, "is gone")
            for rank in left:
                heard.put((rank, code, f"node {where[index]} {what}: {why}"))

    def there(index: int) -> Iterator[Ended]:
        asked = ray.remote(start_there).options(**on_bundle(ray, placed, index), num_returns="streaming")
        yield from map(ray.get, asked.remote(where[index], numbers[index], settings, call))

    for index in range(nodes):
        ended = there(index) if index else start_there(where[0], numbers[0], settings, call)
        threading.Thread(target=follow, args=(index, ended), daemon=True).start()
    return _reported(heard.get, nodes * slots)


def _reported(heard: Callable[..., Ended], ranks: int) -> int:
    """Print how each rank ended until all have, or for GRACE_SECONDS after one has failed; return the exit code."""
    code, until = 0, float("inf")
    for _ in range(ranks):
        try:
            rank, ending, said = heard(timeout=max(0.0, until - time.monotonic()) if code else None)
        except queue.Empty:
            break
        for line in said.splitlines():
            print(f"rank {rank}: {line}")
        if ending:
            code, until = 1, min(until, time.monotonic() + GRACE_SECONDS)
            words = f"died of signal {-ending}" if ending < 0 else f"ended with exit code {ending}"
            print(f"rank {rank} {words}", flush=True)
    return code


if __name__ == "__main__":
    from sparsebench.runtime import ray_launcher  # Ray sends functions by module name, which must not be __main__

    code = 1
    try:
        code = ray_launcher.main(sys.argv[1:])
        import ray

        ray.shutdown()
    except Exception:
        traceback.print_exc()  # os._exit below prints nothing
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Not an orderly exit: threads may wait for ranks, which end only with this process.
        os._exit(code)
