"""Ranks on several nodes: the hostfile, what a launcher starts and how it ends; srun, ssh and pdsh are imitated here."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from sparsebench import leftovers, runtime
from sparsebench.cli.app import app
from sparsebench.errors import MeasureError, UnsupportedError, UserError
from sparsebench.runtime import heartbeat, hosts, nodes, ray_launcher
from sparsebench.runtime.heartbeat import GONE_SECONDS, Heartbeat, stuck
from sparsebench.runtime.nodes import NodeGroup
from sparsebench.runtime.watch import STALL_SECONDS

LAUNCHER = Path(__file__).with_name("fake_launcher.py")
TWO = (("localhost", 1), ("127.0.0.1", 1))
PDSH = """#!/usr/bin/env bash
# pdsh -S -f N -w a,b COMMAND: every host is this machine.
while getopts "Sf:w:" option; do [ "$option" = w ] && hosts=$OPTARG; done
shift $((OPTIND - 1))
words="$*" number=0 code=0
for host in ${hosts//,/ }; do bash -c "${words//%n/$number}" & number=$((number + 1)); done
trap 'kill $(jobs -p) 2>/dev/null' INT TERM
for job in $(jobs -p); do wait "$job" || code=$?; done
exit $code
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pdsh and an ssh that reach this machine only."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("pdsh", PDSH), ("ssh", "#!/bin/sh\nexit 0\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of SLURM's, with an srun that reaches this machine only; its own tasks are numbered."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    (folder / "srun").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{LAUNCHER.with_name("fake_srun.py")}" "$@"\n')
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, value in {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "RANK": "0", "NCCL_DEBUG": "INFO"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second for the others to end is enough here; those that hang take all of it."""
    monkeypatch.setattr("sparsebench.runtime.launch.GRACE_SECONDS", 1.0)


def group(
    monkeypatch: pytest.MonkeyPatch, *actions: str, launched: int | None = None, timeout: float = 30, **spec: float
) -> NodeGroup:
    def command(hostfile: Path, where: hosts.Hosts, port: int, arguments: list[str]) -> list[str]:
        assert hostfile.read_text() == "localhost slots=1\n127.0.0.1 slots=1\n"
        return [sys.executable, str(LAUNCHER), str(len(actions) if launched is None else launched), *arguments]

    monkeypatch.setattr(hosts, "command", command)
    return NodeGroup({"actions": actions, "heartbeat": 0.2, **spec}, TWO, {"OMP_NUM_THREADS": "1"}, timeout)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a slots=2\nb slots=3\n", (("a", 2), ("b", 3))),
        ("# nodes\n\n  a   slots=1  # the first\n", (("a", 1),)),
        ("a slots=2\na slots=3\n", "hostfile, line 2: a second line for a"),
        ("a slots=2\nb 4\n", "hostfile, line 2 is not of the form"),
        ("a slots=0\n", "hostfile, line 1 is not of the form"),
        ("\n# none\n", "hostfile names no host"),
    ],
)
def test_a_hostfile_is_read_or_its_line_is_named(text: str, found: object, tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text(text)
    if isinstance(found, str):
        with pytest.raises(UserError, match=found):
            hosts.read(path)
    else:
        assert hosts.read(path) == found


def test_a_hostfile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path}/none: No such file"):
        hosts.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("ranks", "used"),
    [(1, [1]), (4, [4]), (6, [3, 3]), (8, [4, 4]), (12, [4, 4, 4]), (5, None), (7, None), (14, None)],
)
def test_ranks_are_shared_equally_among_as_few_nodes_as_will_do(ranks: int, used: list[int] | None) -> None:
    known = (("a", 4), ("b", 4), ("c", 6))
    if used is None:
        with pytest.raises(UserError, match=f"{ranks} ranks cannot be split .*a slots=4, b slots=4, c slots=6"):
            hosts.share(known, ranks)
    else:
        assert hosts.share(known, ranks) == tuple(zip("abc", used, strict=False))


def test_threads_are_shared_by_the_ranks_of_a_node() -> None:
    load = runtime.Workload()
    assert runtime.Setting("deepspeed", 8, load, hosts=(("a", 4), ("b", 4))).ranks_per_node == 4
    assert runtime.Setting("deepspeed", 8, load).ranks_per_node == 8


def test_ranks_call_back_and_a_good_end_is_no_error(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with group(monkeypatch, "nothing", "nothing") as ranks:
        messages = {message["rank"]: message for message in ranks.messages()}
    assert sorted(messages) == [0, 1]
    assert messages[1]["environment"]["OMP_NUM_THREADS"] == "1"
    assert messages[0]["pid"] != messages[1]["pid"]


def assert_nobody_left(ranks: NodeGroup) -> None:
    deadline = time.monotonic() + 10
    while left := [one for one in psutil.process_iter(["cmdline"]) if ranks.token in (one.info["cmdline"] or [])]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_dead_rank_is_named_with_its_node_and_takes_the_others_along(
    dying: int, programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    actions = ["hang", "hang"]
    actions[dying] = "sigkill"
    with group(monkeypatch, *actions) as ranks:
        started = time.monotonic()
        with pytest.raises(MeasureError, match=f"rank {dying} of 2 on .* died of SIGKILL") as caught:
            list(ranks.messages())
    assert time.monotonic() - started < 10
    assert socket.gethostname() in caught.value.message
    assert "this is rank" in caught.value.message
    assert_nobody_left(ranks)


def test_a_rank_s_own_error_is_raised(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="this cannot be"), group(monkeypatch, "error", "nothing") as ranks:
        list(ranks.messages())


def test_silence_ends_at_the_timeout(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.runtime.launch.LOOK_SECONDS", 0.5)
    with (
        pytest.raises(MeasureError, match="rank 1 of 2 on .* said nothing for 2 seconds"),
        group(monkeypatch, "nothing", "hang", timeout=2) as ranks,
    ):
        list(ranks.messages())


@pytest.mark.skipif(sys.platform != "linux", reason="what a rank does is read from Linux")
@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (("work", "hang"), r"rank 1 of 2 on .* hangs: .*; rank 1 at runtime/fake_launcher.py:\d+ in <module>"),
        pytest.param(("stop", "work"), r"rank 0 of 2 on .* hangs: .*; rank 0 does not answer", marks=pytest.mark.long),
        (("hang", "hang"), r"ranks? [01, ]+ of 2 on .* hangs?: "),
    ],
)
def test_a_rank_far_away_that_does_nothing_is_found_long_before_the_timeout(
    actions: tuple[str, ...], said: str, programs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsebench.runtime.launch.LOOK_SECONDS", 0.5)
    monkeypatch.setattr("sparsebench.runtime.heartbeat.STALL_SECONDS", 1.0)
    monkeypatch.setattr("sparsebench.runtime.heartbeat.GONE_SECONDS", 8.0)
    with pytest.raises(MeasureError, match=said), group(monkeypatch, *actions) as ranks:
        list(ranks.messages())
    assert_nobody_left(ranks)


def test_a_rank_that_waited_for_long_and_goes_on_is_not_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the end of its waiting and its first work it has done nothing for long, but for a moment only."""
    told: list[float] = []
    stacks = iter([[("torch/distributed/x.py", 1, "barrier")]] * 3 + [[("model.py", 2, "forward")]] * 2)
    monkeypatch.setattr(heartbeat, "_calls", lambda thread: next(stacks))
    monkeypatch.setattr(heartbeat, "_work", lambda: heartbeat._ProcessState(0.0, "", "S"))
    monkeypatch.setattr(heartbeat, "LOOK_SECONDS", 0.2)

    def send(kind: str, idle: float, **content: object) -> None:
        told.append(idle)

    with pytest.raises(StopIteration):
        heartbeat._beat(send, 0)
    assert max(told[0], told[3]) < 0.1
    assert told[2] >= 0.4 and told[4] >= 0.2


def test_a_rank_far_away_that_works_in_silence_is_left_alone(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.runtime.launch.LOOK_SECONDS", 0.5)
    monkeypatch.setattr("sparsebench.runtime.heartbeat.STALL_SECONDS", 1.0)
    with group(monkeypatch, "work", "nothing", working=3) as ranks:
        assert len(list(ranks.messages())) == 2


def test_who_is_stuck_is_told_by_what_ranks_say_of_themselves() -> None:
    def said(idle: float, waits: bool = False, elsewhere: bool = False, heard: float = 100.0) -> Heartbeat:
        return Heartbeat(heard, idle, waits, elsewhere, "at a.py:1 in f")

    long = STALL_SECONDS + 1
    assert stuck({0: said(0), 1: said(long, waits=True)}, 101.0) == {}, "it waits for one that works"
    assert list(stuck({0: said(long), 1: said(long, waits=True)}, 101.0)) == [0]
    assert list(stuck({0: said(long, waits=True), 1: said(long, waits=True)}, 101.0)) == [0, 1]
    assert stuck({0: said(long, elsewhere=True), 1: said(long, waits=True)}, 101.0) == {}, (
        "another program has the lock"
    )
    assert stuck({0: said(0), 1: said(0, heard=100.0 - GONE_SECONDS)}, 101.0) == {1: "does not answer"}


def test_a_signal_is_read_from_the_lines_of_the_ranks_own_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one rank dies, those of other nodes may be ended by another signal."""
    ranks = NodeGroup({}, (("a", 1), ("b", 2)), {}, 30)
    log = tmp_path / "launcher.log"
    log.write_text("b: x exits with return code = -6\na: x exits with return code = -9\n")
    monkeypatch.setattr(ranks, "_log", lambda rank: log)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ranks.processes = [ended]
    for rank, code in ((0, -9), (1, -6), (2, -6)):
        ranks.gone = rank
        assert [ranks._code(one, 0.0) for one in range(3)] == [code if one == rank else None for one in range(3)]


def test_a_launcher_that_cannot_is_quoted(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(MeasureError, match=r"only 0 of 2 ranks on localhost ×1, 127.0.0.1 ×1 had called") as caught,
        group(monkeypatch, "nothing", "nothing", launched=0),
    ):
        pass
    assert "no route to host" in caught.value.message


def test_ranks_that_do_not_call_are_not_waited_for_for_ever(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "JOIN_SECONDS", 3.0)
    with (
        pytest.raises(MeasureError, match="1 of 2 ranks on .* called back within 3 seconds"),
        group(monkeypatch, "nothing", "nothing", launched=1),
    ):
        pass


def test_a_stranger_is_not_taken_for_a_rank(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with group(monkeypatch, "nothing", "nothing") as ranks:
        ours.sendall(b'{"token": "guessed", "rank": 0, "host": "here"}\n')
        found: dict[int, socket.socket] = {}
        ranks._greet(theirs, found)
        assert not found
        assert sorted(message["rank"] for message in ranks.messages()) == [0, 1]


def test_a_rank_that_dies_while_others_join_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    assert not nodes._closed(ours)
    theirs.sendall(b"still here")
    assert not nodes._closed(ours)
    ours.recv(10)
    theirs.close()
    assert nodes._closed(ours)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="no process guards a rank")
def test_the_guard_of_a_rank_that_has_died_says_nothing() -> None:
    """Its words would be the last of the launcher's log, in place of what the rank had printed."""
    program = (
        "import os, socket, sys\n"
        "from sparsebench import children\n"
        "from sparsebench.runtime import nodes\n"
        "children.die_with_parent = lambda parent: sys.exit('the parent was gone')\n"
        "ours, _ = socket.socketpair()\n"
        "nodes.end_with_parent(ours.fileno())\n"
        "os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_ranks_elsewhere_are_not_told_to_call_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"here": "127.0.1.1", "there": "10.0.0.5"}
    monkeypatch.setattr(nodes, "_reached_at", seen.__getitem__)
    assert nodes._address(["here", "there"]) == "10.0.0.5"
    assert nodes._address(["here"]) == "127.0.1.1"


def started_by_srun(monkeypatch: pytest.MonkeyPatch, *actions: str) -> NodeGroup:
    monkeypatch.setenv("FAKE_RANK", str(LAUNCHER))
    return NodeGroup({"actions": actions, "heartbeat": 0.2}, TWO, {"OMP_NUM_THREADS": "1"}, 30)


def test_in_a_slurm_job_srun_starts_the_ranks(slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with started_by_srun(monkeypatch, "nothing", "nothing") as ranks:
        messages = {message["rank"]: message for message in ranks.messages()}
    assert sorted(messages) == [0, 1], "each has the number that srun gave it, not its parent's"
    assert_nobody_left(ranks)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("dying", [0, 1])
def test_a_dead_rank_that_srun_started_is_named_whichever_connection_closes_first(
    dying: int, first: int, slurm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """srun kills the other rank at once, so the order in which the two connections close is a matter of luck."""
    actions = ["hang", "hang"]
    actions[dying] = "sigkill"
    said = f"rank {dying} of 2 on {socket.gethostname()} died of SIGKILL"
    with started_by_srun(monkeypatch, *actions) as ranks:
        started, ended = time.monotonic(), ranks._ended
        monkeypatch.setattr(ranks, "_ended", lambda rank: ended(first))
        with pytest.raises(MeasureError, match=said):
            list(ranks.messages())
    assert time.monotonic() - started < 10
    assert_nobody_left(ranks)


def test_an_error_of_a_rank_that_srun_started_is_its_own(slurm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun ends the others by SIGTERM, and says so."""
    with (
        pytest.raises(UnsupportedError, match="this cannot be"),
        started_by_srun(monkeypatch, "error", "hang") as ranks,
    ):
        list(ranks.messages())


def test_the_command_of_deepspeeds_launcher_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the values of the variables that are passed on, tokens among them."""
    ranks = NodeGroup({}, TWO, {}, 30)
    log = tmp_path / "launcher.log"
    monkeypatch.setattr(ranks, "_log", lambda rank: log)
    log.write_text(
        "[2026-11-30 08:00:00] [INFO] [runner.py:630:main] cmd = pdsh -S export HF_TOKEN=hf_x; python\nbad\n"
    )
    assert ranks._tails([0]) == "    launcher: bad"


def test_a_machine_that_vanishes_is_noticed_within_ten_seconds(programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the system is told; no machine vanishes here."""
    made, names = list[dict[str, int]](), ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
    keep_alive = nodes._keep_alive

    def spied(line: socket.socket, *settings: Any) -> None:
        keep_alive(line, *settings)
        assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        made.append({name: line.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names})

    monkeypatch.setattr(nodes, "_keep_alive", spied)
    with group(monkeypatch, "nothing", "nothing") as ranks:
        list(ranks.messages())
    assert len(made) == 2, "the parent's end of each"
    for told in made:
        assert told["TCP_KEEPIDLE"] + told["TCP_KEEPINTVL"] * told["TCP_KEEPCNT"] < 10
        assert 0 < told["TCP_USER_TIMEOUT"] < 10_000, "also where something was sent that nobody confirms"
        assert told["TCP_KEEPCNT"] >= 3, "a lost packet is no lost machine"


def test_srun_s_first_words_about_a_signal_tell_who_is_to_blame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks that srun kills after that are not, in whatever order the connections close."""
    ranks = NodeGroup({}, (("n1", 4), ("n2", 1)), {}, 30)
    log = tmp_path / "launcher.log"
    monkeypatch.setattr(ranks, "_log", lambda rank: log)
    ranks.gone = 2
    log.write_text("srun: error: n2: task 4: Exited with exit code 1\nsrun: error: n1: tasks 0-3: Terminated\n")
    assert ranks._signals() == {}
    with log.open("a") as file:
        file.write("srun: error: n1: tasks 0-1,3: Segmentation fault (core dumped)\nsrun: error: n1: task 2: Killed\n")
    assert ranks._signals() == {0: 11, 1: 11, 3: 11}


def test_srun_is_told_the_order_of_ranks_and_where_they_meet(slurm: None) -> None:
    where = (("b", 2), ("a", 2))
    assert hosts.text(where) == "b\nb\na\na\n"
    command = hosts.command(Path("h"), where, 29500, ["x"])
    assert {"SLURM_HOSTFILE=h", "MASTER_ADDR=b", "WORLD_SIZE=4", "--ntasks-per-node=2"} <= set(command)


def started_by_ray(monkeypatch: pytest.MonkeyPatch, *actions: str) -> NodeGroup:
    monkeypatch.setenv("PYTHONPATH", str(LAUNCHER.parent / "fake_ray"))
    where = (("127.0.0.1", 1), ("127.0.0.1", 1))
    spec = {"actions": actions, "heartbeat": 0.2}
    return NodeGroup(spec, where, {"OMP_NUM_THREADS": "1"}, 30, group="head:6379/name")


def test_ray_starts_the_ranks_on_the_nodes_of_a_placement_group(monkeypatch: pytest.MonkeyPatch) -> None:
    with started_by_ray(monkeypatch, "nothing", "nothing") as ranks:
        messages = {message["rank"]: message for message in ranks.messages()}
    assert sorted(messages) == [0, 1]
    assert messages[0]["pid"] != messages[1]["pid"]
    assert_nobody_left(ranks)


@pytest.mark.parametrize("dying", [0, 1])
def test_a_dead_rank_that_ray_started_is_named_within_ten_seconds(dying: int, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = ["hang", "hang"]
    actions[dying] = "sigkill"
    said = f"rank {dying} of 2 on {socket.gethostname()} died of SIGKILL"
    with started_by_ray(monkeypatch, *actions) as ranks:
        started = time.monotonic()
        with pytest.raises(MeasureError, match=said) as caught:
            list(ranks.messages())
    assert f"rank {dying}: this is rank {dying}" in caught.value.message, "what it had printed"
    assert time.monotonic() - started < 10
    assert_nobody_left(ranks)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FAKE_LOSS": "node"}, "rank 1: node 127.0.0.1 is gone: RayError: the raylet died"),
        ({"FAKE_LOSS": "raised"}, "rank 1: node 127.0.0.1 cannot run its ranks: OSError: [Errno 28] No space left"),
        ({"FAKE_ABSENCE": "1"}, "ConnectionError: no cluster there"),
        ({"FAKE_STATE": "RESCHEDULING"}, "a node of the placement group is gone"),
    ],
)
def test_why_ray_cannot_start_ranks_is_said_before_they_have_called(
    variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ranks = started_by_ray(monkeypatch, "hang", "hang")
    started = time.monotonic()
    with pytest.raises(MeasureError, match=r"the launcher \(ray\) ended .* of 2 ranks on") as caught:
        ranks.__enter__()
    assert said in caught.value.message
    assert time.monotonic() - started < 20
    assert_nobody_left(ranks)


def test_a_rank_whose_machine_is_gone_is_named_and_not_the_one_that_misses_it() -> None:
    ranks = NodeGroup({}, TWO, {}, 30)
    ranks.processes = [subprocess.Popen([sys.executable, "-c", ""])]
    ranks.processes[0].wait()
    ranks.codes, ranks.places = {0: 3}, {0: "node-a", 1: "node-b"}
    ranks.errors, ranks.echoes = {0: MeasureError("rank 0 of 2 lost another rank")}, {0}
    ranks.folder = leftovers.temporary()
    (Path(ranks.folder.name) / "launcher.log").touch()
    with pytest.raises(MeasureError, match="rank 1 of 2 on node-b closed its channel"):
        ranks._ended(1)


def test_gloo_takes_the_interface_by_which_ray_reaches_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = {"lo": [SimpleNamespace(address="127.0.0.1")], "ib0": [SimpleNamespace(address="10.0.0.6")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: cards)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert ray_launcher.interface("10.0.0.6") == {"GLOO_SOCKET_IFNAME": "ib0"}
    assert ray_launcher.interface("10.0.0.7") == {}
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")
    assert ray_launcher.interface("10.0.0.6") == {"GLOO_SOCKET_IFNAME": "eth1"}, "a person's own choice"


def test_what_nccl_and_the_loader_read_goes_along_by_ssh(
    programs: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """DeepSpeed's own launcher and an imitated pdsh: what a rank's shell has in its environment."""
    (tmp_path / "own").write_text("NCCL_DEBUG=WARN\n")
    for name, value in {
        "NCCL_IB_HCA": "mlx5_0",
        "LD_LIBRARY_PATH": "/opt/a:/opt/b",
        "DS_ENV_FILE": str(tmp_path / "own"),
    }.items():
        monkeypatch.setenv(name, value)
    seen = tmp_path / "seen"
    (tmp_path / "bin/pdsh").write_text(f'#!/bin/sh\necho "$*" > {seen}\nexit 1\n')
    with pytest.raises(MeasureError, match="pdsh"), NodeGroup({}, TWO, {}, 30):
        pass
    for one in ("export NCCL_IB_HCA=mlx5_0;", "export LD_LIBRARY_PATH=/opt/a:/opt/b;", "export NCCL_DEBUG=WARN;"):
        assert one in seen.read_text()


@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("srun", {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}),
        ("torchrun", {"RANK": "1", "WORLD_SIZE": "2"}),
        ("mpirun", {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}),
    ],
)
@pytest.mark.parametrize("verb", ["run", "measure"])
def test_several_copies_of_the_program_are_refused_by_name(
    name: str, variables: dict[str, str], verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    ended = CliRunner().invoke(app, [verb, str(tmp_path / "nothing")])
    assert isinstance(ended.exception, UserError) and name in ended.exception.message
    for key in variables:
        monkeypatch.setenv(key, "0")
    ended = CliRunner().invoke(app, [verb, str(tmp_path / "nothing")])
    assert "copy" not in str(ended.exception), "the first goes on"


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="not found: pdsh, ssh"), group(monkeypatch, "nothing", "nothing"):
        pass


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("launcher", ["programs", "slurm"])
def test_a_launcher_starts_ranks_that_agree_with_the_plain_model(
    launcher: str, request: pytest.FixtureRequest, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(launcher)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    setting = runtime.Setting(
        "deepspeed", 2, runtime.Workload(1, 8, 2), "float32", 4, hosts=TWO, phase_seconds=0.2, processes=1
    )
    found: list[runtime.LatencyResult] = []
    runtime.measure_latency(
        tiny_llama, [("it", tiny_llama)], "decoder", setting, lambda _, result: found.append(result)
    )
    assert found[0].parity is not None and found[0].parity.relative_l2 < 1e-4
    assert "ranks on localhost ×1, 127.0.0.1 ×1" in found[0].notes
    assert {phase.phase for phase in found[0].phases} == {"load", "prefill", "decode", "generate"}
