"""Nodes of a cluster for one job: a Ray placement group with all CPUs and GPUs of each, which ends with the job."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from sparsebench.errors import Interrupted, UserError
from sparsebench.plan.cells import Job
from sparsebench.plan.jobs import nodes_of, ranks_of
from sparsebench.runtime.nodes import on_bundle
from sparsebench.units import counted

POLL_SECONDS = 1
"""How often a waiting group is looked at. Ray takes whole seconds."""
NODE_START_TIMEOUT = 300
"""How long a node may take to start a process of ours and import this package."""


def bundles(nodes: Sequence[dict[str, Any]], node_count: int, ranks: int, gpu: bool) -> list[dict[str, float]]:
    """Return what a job with ``ranks`` on ``node_count`` nodes asks of each: all CPUs and, with ``gpu``, all GPUs.

    ``nodes`` are Ray's live nodes; the largest are asked for. A node must have a CPU for each of its ranks and, with
    ``gpu``, a GPU. Raises UserError where too few nodes do.
    """
    ranks_per_node = float(ranks // node_count)
    kinds = ("GPU", "CPU") if gpu else ("CPU",)
    resources = [node["Resources"] for node in nodes]
    fitting_nodes = [node for node in resources if all(node.get(kind, 0.0) >= ranks_per_node for kind in kinds)]
    if len(fitting_nodes) < node_count:
        requirement = " and ".join(counted(ranks_per_node, kind) for kind in reversed(kinds))
        capacities = "; ".join(
            f"{node['NodeName']} ({', '.join(counted(node['Resources'].get(kind, 0.0), kind) for kind in reversed(kinds))})"
            for node in nodes
        )
        raise UserError(
            f"nodes: {node_count}: {ranks} ranks need {node_count} nodes with {requirement} each; {len(fitting_nodes)} of "
            f"this cluster's {len(nodes)} can hold them: {capacities or 'none'}",
            "start Ray on more nodes, or ask for fewer ranks or nodes",
        )
    fitting_nodes.sort(key=lambda node: [node.get(kind, 0.0) for kind in kinds], reverse=True)
    return [{kind: node[kind] for kind in kinds} for node in fitting_nodes[:node_count]]


class PlacementGroup:
    """The nodes of one job. Use as a context manager: entering it waits for the nodes, as long as enough of them live.

    Set ``given_up`` when nobody wants the job any more. Ray itself removes the group if this process dies.
    """

    def __init__(self, ray: Any, job: Job, gpu: bool, live_nodes: Callable[[], list[dict[str, Any]]]) -> None:
        self.ray, self.job, self.gpu, self.live_nodes = ray, job, gpu, live_nodes
        self.name = ""
        self.given_up = False

    def __enter__(self) -> PlacementGroup:
        """Wait for the nodes.

        Raises UserError where the cluster has too few nodes left, Interrupted where the job is given up.
        """
        while not self._placed():
            pass
        return self

    def __exit__(self, *_: object) -> None:
        self.ray.util.remove_placement_group(self.group)

    def _placed(self) -> bool:
        """Ask for the nodes and wait for them; return False where they must be asked for anew.

        Other nodes are the largest by then, and perhaps none has what was asked for.
        """
        requested, placed = self._bundles(), False
        self.name = f"sparsebench-{uuid.uuid4().hex}"
        self.group = self.ray.util.placement_group(requested, strategy="STRICT_SPREAD", name=self.name)
        try:
            while not (placed := self.group.wait(POLL_SECONDS)) and self._bundles() == requested:
                if self.given_up:
                    raise Interrupted("given up while it waited for nodes")
            return placed
        finally:
            if not placed:
                self.__exit__()

    def _bundles(self) -> list[dict[str, float]]:
        return bundles(self.live_nodes(), nodes_of(self.job), ranks_of(self.job), self.gpu)

    def first_node_options(self) -> dict[str, Any]:
        """Return the options of the job's own task, which has the first node."""
        return on_bundle(self.ray, self.group, 0)
