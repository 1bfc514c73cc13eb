"""Ray's part in ranks on several nodes: a task for each node but the first, which starts that node's ranks.

The first node is this one: the job that wants the ranks runs there and holds it. A task holds its node's whole share of
the placement group. Ranks end with the process that started them, and that process with this one.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsebench.errors import MeasureError, first_line
from sparsebench.runtime.launch import Event, NodeRanks
from sparsebench.runtime.results import Setting

NAMESPACE = "sparsebench"
"""The Ray namespace in which our placement groups have names."""
USUAL_PRIORITY = {"env_vars": {"RAY_worker_niceness": "0"}}
"""Ray runs tasks at a niceness of 15: whatever else a node does would go before what is timed."""


def join(ray: Any, address: str | None, include_dashboard: bool | None = None) -> None:
    """Have this process join the cluster at ``address``, or start one. Raises what ``ray.init`` raises."""
    ray.init(
        address=address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env=USUAL_PRIORITY,
        include_dashboard=include_dashboard,
    )
    # Ray prints a lost node's whole state to our standard output; no setting stops it. The loss is reported by us.
    if worker := getattr(getattr(ray, "_private", None), "worker", None):
        worker.print_to_stdstream = lambda *_, **__: None


def on_bundle(ray: Any, group: Any, index: int) -> dict[str, Any]:
    """Return the options of a Ray task that holds one node's whole share of a placement group."""
    share = ray.util.placement_group_table(group)["bundles"][index]
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group, index)
    return {
        "num_cpus": share["CPU"], "num_gpus": share.get("GPU", 0), "scheduling_strategy": strategy, "max_retries": 0,
    }  # fmt: skip


def check_alive(ray: Any, group: Any) -> dict[str, Any]:
    """Return Ray's table of a placement group. Raises MeasureError where one of its nodes is gone."""
    table: dict[str, Any] = ray.util.placement_group_table(group)
    if table["state"] != "CREATED":
        raise MeasureError(f"a node of the placement group is gone: Ray calls the group {table['state']}")
    return table


def addresses(ray: Any, group: Any) -> tuple[str, ...]:
    """Return the addresses by which other nodes reach a placement group's nodes, in the order of its bundles.

    Raises MeasureError where one of them is gone.
    """
    node_ids = check_alive(ray, group)["bundles_to_node_id"]
    address_of = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes()}
    return tuple(address_of[node_ids[index]] for index in sorted(node_ids))


class RemoteRanks(NodeRanks):
    """The ``ranks`` of a setting on another machine, a node of its; used as ``NodeRanks`` is.

    Entering it raises MeasureError where this process cannot join the cluster, or a node is gone.
    """

    def __enter__(self) -> RemoteRanks:
        import ray

        cluster_address, _, name = self.setting.group.rpartition("/")
        try:
            if not ray.is_initialized():
                join(ray, cluster_address)
            group = ray.util.get_placement_group(name)
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise MeasureError(f"no way to the cluster at {cluster_address}: {error}", "see `ray status`") from error
        check_alive(ray, group)
        task = ray.remote(node_events).options(**on_bundle(ray, group, self.node_index), num_returns="streaming")
        self.stream: Any = task.remote(self.spec, self.setting, self.node_index, self.entry)
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Have Ray kill the process that started the ranks, and with it the ranks."""
        import ray

        ray.cancel(self.stream, force=True)

    def events(self) -> Iterator[Event]:
        """Yield what the node's ``NodeRanks`` yields; where Ray loses it, how all its other ranks ended."""
        import ray

        running_ranks = set(self.ranks)
        try:
            for reference in self.stream:
                event = ray.get(reference)
                if event["kind"] == "ended":
                    running_ranks.discard(event["rank"])
                yield event
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.RayTaskError):
                cause, code, what = error.cause or error, 1, "cannot run its ranks"
            else:
                cause, code, what = error, -signal.SIGKILL, "is gone"
            why = f"node {self.setting.nodes[self.node_index]} {what}: {type(cause).__name__}: {first_line(cause)}"
            ended = {"kind": "ended", "code": code, "lines": [why], "out_of_memory": False}
            yield from ({**ended, "rank": rank} for rank in running_ranks)


def node_events(spec: Mapping[str, Any], setting: Setting, node_index: int, entry: Sequence[str]) -> Iterator[Event]:
    """Run the ranks of the setting's node ``node_index`` here, and yield their events: the body of a Ray task."""
    with NodeRanks(spec, setting, node_index, entry) as node:
        yield from node.events()
