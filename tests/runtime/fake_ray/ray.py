"""Stands in for Ray under its launcher: a placement group of two nodes, both this machine, whose tasks are threads.

The ranks are those of ``fake_launcher``. FAKE_STATE is the group's; FAKE_LOSS, a name among ``LOSSES``, is what becomes of what
is asked of the second node; with FAKE_ABSENCE there is no cluster.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sparsebench import children

RANK = Path(__file__).parent.parent / "fake_launcher.py"
ADDRESS = "127.0.0.1"


class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = OSError(28, "No space left on device")


class GetTimeoutError(RayError):
    pass


exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, GetTimeoutError=GetTimeoutError)
LOSSES = {
    "node": RayError("the raylet died"),
    "raised": RayTaskError("ray::start_there()\n  File"),
    "silent": GetTimeoutError("timed out"),
}


def init(**asked: Any) -> None:
    if os.environ.get("FAKE_ABSENCE"):
        raise ConnectionError("no cluster there")
    assert asked["address"] == "head:6379"
    children.command = lambda module, *words: [sys.executable, str(RANK), "rank", *words]  # type: ignore[assignment]


def shutdown() -> None:
    pass


def nodes() -> list[dict[str, Any]]:
    return [{"NodeID": name, "NodeManagerAddress": ADDRESS} for name in "ab"]


def get(one: Any, timeout: float | None = None) -> Any:
    if timeout and os.environ.get("FAKE_LOSS") == "silent":
        raise LOSSES["silent"]
    return one


def get_runtime_context() -> Any:
    return SimpleNamespace(gcs_address="head:6379")


class Remote:
    def __init__(self, function: Any) -> None:
        self.function = function

    def options(self, **asked: Any) -> Remote:
        assert asked["scheduling_strategy"] == ("group", 1) and asked["num_cpus"] == 2 and asked["max_retries"] == 0
        return self

    def remote(self, *words: Any) -> Any:
        if loss := os.environ.get("FAKE_LOSS"):
            return self.lost(LOSSES[loss])
        return self.function(*words)

    def lost(self, error: Exception) -> Any:
        raise error
        yield


def remote(function: Any) -> Remote:
    return Remote(function)


util = SimpleNamespace(
    get_placement_group={"name": "group"}.__getitem__,
    placement_group_table=lambda group: {
        "state": os.environ.get("FAKE_STATE", "CREATED"),
        "bundles": {0: {"CPU": 2.0}, 1: {"CPU": 2.0}},
        "bundles_to_node_id": {0: "a", 1: "b"},
    },
    scheduling_strategies=SimpleNamespace(PlacementGroupSchedulingStrategy=lambda group, index: (group, index)),
)
