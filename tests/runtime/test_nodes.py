"""Ranks on several nodes, which are all this machine: without Ray, and on a cluster of Ray's. The ranks are fakes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparsebench.errors import MeasureError, UnsupportedError
from sparsebench.runtime import Setting, Workload, all_reduce, launch, nodes, watch
from sparsebench.runtime import group as groups
from sparsebench.runtime.group import RankGroup
from sparsebench.runtime.launch import Event, NodeRanks
from sparsebench.runtime.nodes import RemoteRanks

FAKE = str(Path(__file__).with_name("fake_rank.py"))
NODES = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def imitated(hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second node's ranks are started here as well."""
    monkeypatch.setattr(groups, "RemoteRanks", NodeRanks)


def group(*actions: str, where: tuple[str, ...] = NODES, name: str = "") -> RankGroup:
    setting = Setting("hf", len(actions), Workload(), threads=1, nodes=where, group=name, device="cpu")
    return RankGroup({"actions": actions}, setting, entry=[FAKE])


def assert_nobody_left() -> None:
    deadline = time.monotonic() + 10
    while left := [one for one in psutil.process_iter(["cmdline"]) if FAKE in (one.info["cmdline"] or [])]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_the_ranks_of_all_nodes_are_one_group(imitated: None) -> None:
    with group("nothing", "nothing", "nothing", "nothing") as ranks:
        seen = {message["rank"]: message["environment"] for message in ranks.messages()}
    assert [seen[rank]["LOCAL_RANK"] for rank in range(4)] == ["0", "1", "0", "1"]
    for name, value in {"WORLD_SIZE": "4", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        assert {environment[name] for environment in seen.values()} == {value}
    assert len({environment["MASTER_PORT"] for environment in seen.values()}) == 1
    assert all(environment[all_reduce.REASON_DISABLED] for environment in seen.values()), "they share no memory"


@pytest.mark.parametrize("dying", [0, 1])
def test_a_killed_rank_is_named_with_its_node_and_takes_the_others_along(dying: int, imitated: None) -> None:
    actions = ["hang", "hang"]
    actions[dying] = "sigkill"
    said = f"rank {dying} of 2 on {NODES[dying]} died of SIGKILL"
    with pytest.raises(MeasureError, match=said) as caught, group(*actions) as ranks:
        list(ranks.messages())
    assert f"rank {dying}: this is rank {dying}" in caught.value.message, "what it had printed"
    assert_nobody_left()


def test_a_rank_that_waits_for_another_node_is_left_alone(imitated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "COLLECTIVE_PATHS", ("fake_rank",))
    started = time.monotonic()
    with pytest.raises(MeasureError, match=f"rank 0 of 2 on {NODES[0]} hangs"), group("hang", "work") as ranks:
        list(ranks.messages())
    assert time.monotonic() - started > 4, "once the other has ended, after four seconds of work"


@pytest.fixture
def hear(imitated: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets nothing but some events, after a pause, be heard of the second node."""

    class Elsewhere(NodeRanks):
        heard: tuple[Event, ...]
        pause: float

        def __enter__(self) -> NodeRanks:
            return self

        def __exit__(self, *_: object) -> None: ...

        def events(self) -> Iterator[Event]:
            time.sleep(self.pause)
            yield from self.heard
            time.sleep(3)

    def only(*events: Event, pause: float = 0.0) -> None:
        Elsewhere.heard, Elsewhere.pause = events, pause

    monkeypatch.setattr(groups, "RemoteRanks", Elsewhere)
    return only


def test_a_node_that_falls_silent_is_named(hear: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    hear({"kind": "idle", "ranks": {}})
    monkeypatch.setattr(groups, "GONE_SECONDS", 2.0)
    said = f"rank 1 of 2 on {NODES[1]} hangs: .*; rank 1 does not answer"
    with pytest.raises(MeasureError, match=said), group("work", "nothing") as ranks:
        list(ranks.messages())


def test_what_a_rank_did_before_it_ended_well_is_forgotten(hear: Callable[..., None]) -> None:
    idle = {"kind": "idle", "ranks": {1: watch.IdleRank("at a.py:1 in f", True, False)}}
    ended = {"kind": "ended", "rank": 1, "code": 0, "lines": [], "out_of_memory": False}
    hear(idle, ended)
    with group("work", "nothing") as ranks:
        assert [message["rank"] for message in ranks.messages()] == [0]


def test_a_lost_node_is_blamed_not_the_rank_that_misses_it(hear: Callable[..., None]) -> None:
    """Ray notices the loss later than the ranks of other nodes do."""
    lost = {"kind": "ended", "rank": 1, "code": -9, "lines": ["node 127.0.0.2 is gone"], "out_of_memory": False}
    hear(lost, pause=2.0)
    said = f"rank 1 of 2 on {NODES[1]} died of SIGKILL\n.*is gone"
    with pytest.raises(MeasureError, match=said), group("echo", "nothing") as ranks:
        list(ranks.messages())


def test_gloo_takes_the_interface_by_which_ray_reaches_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert launch.interface_variable("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "lo"}
    assert launch.interface_variable("192.0.2.7") == {}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    assert launch.interface_variable("127.0.0.1") == {"GLOO_SOCKET_IFNAME": "eth1"}, "a person's own choice"


RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "RAY_raylet_start_wait_time_s": "300"}


class Cluster:
    """Two nodes of Ray's and a placement group on them, of which this process takes itself for the first."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster as Nodes

        self.nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 2**27})
        self.workers = [self.nodes.add_node(num_cpus=1, object_store_memory=2**27) for _ in range(2)]
        nodes.join(ray, self.nodes.address)
        self.group = ray.util.placement_group([{"CPU": 1}] * 2, strategy="STRICT_SPREAD", name="ranks")
        assert self.group.wait(300)
        self.where = nodes.addresses(ray, self.group)

    def ranks(self, *actions: str) -> RankGroup:
        return group(*actions, where=self.where, name=f"{self.nodes.address}/ranks")

    def lose_second(self) -> None:
        import ray

        second = ray.util.placement_group_table(self.group)["bundles_to_node_id"][1]
        self.nodes.remove_node(next(one for one in self.workers if one.node_id == second), allow_graceful=False)

    def close(self) -> None:
        import ray

        ray.shutdown()
        self.nodes.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
        made = Cluster()
        yield made
        made.close()


@pytest.mark.long
@pytest.mark.parametrize(
    ("actions", "error", "said"),
    [
        (("hang", "sigkill"), MeasureError, "rank 1 of 2 on .* died of SIGKILL\n    rank 1: this is rank 1"),
        (("work", "stop"), MeasureError, "rank 1 of 2 on .* hangs: .*; rank 1 does not answer"),
        (("hang", "error"), UnsupportedError, "this cannot be"),
    ],
)
def test_on_a_cluster_a_killed_a_stopped_and_a_failing_rank_are_named(
    actions: tuple[str, ...], error: type[Exception], said: str, cluster: Cluster
) -> None:
    with cluster.ranks("nothing", "nothing") as ranks:
        assert len({message["pid"] for message in ranks.messages()}) == 2
    with pytest.raises(error, match=said), cluster.ranks(*actions) as ranks:
        list(ranks.messages())
    assert_nobody_left()


@pytest.mark.long
def test_a_node_of_a_cluster_that_is_lost_is_named(cluster: Cluster) -> None:
    with cluster.ranks("hang", "hang") as ranks:
        messages = ranks.messages()
        assert {next(messages)["rank"], next(messages)["rank"]} == {0, 1}
        cluster.lose_second()
        with pytest.raises(MeasureError, match="rank 1 of 2 on .* died of SIGKILL\n    rank 1: node .* is gone"):
            next(messages)
    assert_nobody_left()


@pytest.mark.long
def test_why_a_node_cannot_run_its_ranks_is_told() -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")

    def stream() -> Iterator[Any]:
        raise ray.exceptions.RayTaskError("node_events", "", OSError(28, "No space left on device"))
        yield

    remote = RemoteRanks({}, Setting("hf", 2, Workload(), nodes=NODES, group="head:6379/ranks"), 1)
    remote.stream = stream()
    (end,) = remote.events()
    assert (end["rank"], end["code"]) == (1, 1)
    assert "127.0.0.2" in end["lines"][0] and "No space left on device" in end["lines"][0]
