"""A group of ranks lives and dies together, whatever happens to one of them; the ranks are a fake entry point."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sparsebench.errors import MeasureError, SparsebenchError, UnsupportedError
from sparsebench.runtime import Setting, Workload, all_reduce, launch, watch
from sparsebench.runtime.group import RankGroup, free_ports
from sparsebench.sources import Cache

FAKE = str(Path(__file__).with_name("fake_rank.py"))


pytestmark = pytest.mark.usefixtures("hasty")


def group(*actions: str, timeout: float = 30, **spec: Any) -> RankGroup:
    setting = Setting("hf", len(actions), Workload(), threads=1, timeout_seconds=timeout, device="cpu")
    return RankGroup({"actions": actions, **spec}, setting, entry=[FAKE])


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def all_end(pids: list[int]) -> bool:
    """Whether they do so within five seconds."""
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def nobody_left(ranks: RankGroup) -> bool:
    return not any(alive(process.pid) for node in ranks.nodes for process in node.processes.values())


def test_ranks_get_the_environment_that_deepspeed_needs() -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"}
    with group("nothing", "nothing") as ranks:
        seen = {message["rank"]: message["environment"] for message in ranks.messages()}
    for rank, variables in seen.items():
        assert variables.items() >= {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items()
    assert seen[0]["MASTER_PORT"] == seen[1]["MASTER_PORT"]


def test_no_two_forks_meet_at_one_port() -> None:
    """Of 500 ports that are given back one by one, the system hands a dozen out again."""
    assert len(set(free_ports(500))) == 500


def test_a_rank_waits_until_its_message_was_taken() -> None:
    with group("error").local_ranks as node:
        events = (event for event in node.events() if event["kind"] != "idle")
        next(events)
        time.sleep(0.3)
        assert node.processes[0].poll() is None
        assert next(events)["kind"] == "error"


@pytest.mark.parametrize(
    ("actions", "error", "said"),
    [
        (("sigkill", "hang"), MeasureError, "rank 0 of 2 died of SIGKILL\n.*this is rank 0"),
        (("hang", "sigkill"), MeasureError, "rank 1 of 2 died of SIGKILL\n.*this is rank 1"),
        # A signal is blamed before the error that it causes elsewhere, what NCCL aborts after it, an echo last.
        (("error", "sigkill"), MeasureError, "rank 1 of 2 died of SIGKILL"),
        (("abort", "error"), UnsupportedError, "this cannot be"),
        (("abort", "hang"), MeasureError, "rank 0 of 2 died of SIGABRT"),
        (("echo", "crash"), MeasureError, "rank 1 of 2 ended with exit code 1"),
        (("echo", "nothing"), MeasureError, "lost another rank"),
        (("error", "hang"), UnsupportedError, "this cannot be"),
        (("crash",), MeasureError, "something unforeseen"),
    ],
)
def test_who_failed_is_blamed_with_its_own_error_and_takes_the_others_along(
    actions: tuple[str, ...], error: type[SparsebenchError], said: str
) -> None:
    with group(*actions) as ranks:
        started = time.monotonic()
        with pytest.raises(error, match=said) as caught:
            list(ranks.messages())
    assert "hang" not in actions or time.monotonic() - started < 10
    assert nobody_left(ranks)
    assert error is MeasureError or caught.value.hint == "do otherwise"


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        (("work", "hang"), r"rank 1 of 2 hangs: .*; rank 1 at runtime/fake_rank.py:\d+ in <module>"),
        (("stop", "work"), r"rank 0 of 2 hangs: .*; rank 0 does not answer"),
        (("hang", "hang"), r"ranks? [01, ]+ of 2 hangs?: "),
        (("hang",), r"rank 0 of 1 hangs: .*; rank 0 at runtime/fake_rank.py:\d+ in <module>"),
    ],
)
def test_a_rank_that_does_nothing_is_found_early(actions: tuple[str, ...], said: str) -> None:
    with pytest.raises(MeasureError, match=said), group(*actions) as ranks:
        list(ranks.messages())
    assert nobody_left(ranks)


@pytest.mark.long
def test_a_rank_that_waits_for_another_program_is_left_alone(tmp_path: Path) -> None:
    """Somebody compiles what it needs."""
    said = r"rank 0 of 1 said nothing for 12 seconds; rank 0 at sources/cache.py:\d+ in lock"
    with (
        Cache(tmp_path).lock("kernels"),
        pytest.raises(MeasureError, match=said),
        group("lock", timeout=12, cache=str(tmp_path)) as ranks,
    ):
        list(ranks.messages())


def test_a_dead_ranks_lock_holds_nobody_up_and_who_holds_one_for_too_long_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One rank waits as torch does for another that loads a compiled operation."""
    lock = all_reduce.extensions_dir(Cache()) / "operation" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with group("baton", timeout=60, lock=str(lock)) as ranks:
        assert len(list(ranks.messages())) == 1
    assert not lock.exists()
    monkeypatch.setattr(watch, "STALL_SECONDS", 60.0)
    said = rf"said nothing for 3 seconds; rank 0 at runtime/fake_rank.py.*process {os.getpid()} holds {lock}"
    with lock.open("w"), pytest.raises(MeasureError, match=said), group("baton", timeout=3, lock=str(lock)) as ranks:
        list(ranks.messages())


def test_what_a_killed_rank_had_started_ends_too() -> None:
    children: list[int] = []
    with pytest.raises(MeasureError, match="SIGKILL"), group("leave a child") as ranks:
        children.extend(message["pid"] for message in ranks.messages())
    assert len(children) == 2 and all_end(children)


def test_the_kernels_own_kills_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([7, 7, 7, 8])
    monkeypatch.setattr(launch, "oom_kills", lambda: next(counts))
    for words in ("somebody else ended it", "the kernel ended it for want of main memory"):
        with pytest.raises(MeasureError) as caught, group("sigkill") as ranks:
            list(ranks.messages())
        assert words in (caught.value.hint or "")


def test_exactly_our_buffers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(all_reduce, "BUFFER_FOLDER", tmp_path)
    other = tmp_path / f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_1_0"
    other.touch()
    with group("buffer", "buffer", buffers=str(tmp_path)) as ranks:
        list(ranks.messages())
        assert len(list(tmp_path.iterdir())) == 3
    assert list(tmp_path.iterdir()) == [other]


def test_ranks_die_with_a_parent_that_is_killed() -> None:
    program = (
        "from sparsebench.runtime import Setting, Workload\n"
        "from sparsebench.runtime.group import RankGroup\n"
        "setting = Setting('hf', 2, Workload(), device='cpu')\n"
        f"with RankGroup({{'actions': ['hang', 'hang']}}, setting, entry=[{FAKE!r}]) as group:\n"
        "    for message in group.messages(): print(message['pid'], flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(alive(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert all_end(pids)
    parent.stdout.close()
