"""Who works in silence and who hangs: plain processes in the place of ranks."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sparsebench.runtime import watch
from sparsebench.runtime.watch import IdleRank, RankWatchdog, hung_ranks, innermost_calls

WAITS = """
import faulthandler, signal, time
faulthandler.register(signal.SIGUSR1)
print(flush=True)
def wait_for_others(): time.sleep(600)
wait_for_others()
"""
WORKS = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1)
print(flush=True)
while True: pass
"""


@pytest.fixture
def both(tmp_path: Path, hasty: None) -> Iterator[RankWatchdog]:
    """Rank 0 works, rank 1 waits."""
    processes, logs = [], [tmp_path / "0.log", tmp_path / "1.log"]
    for program, log in zip((WORKS, WAITS), logs, strict=True):
        with log.open("wb") as told:
            command = [sys.executable, "-c", program]
            processes.append(subprocess.Popen(command, stderr=told, stdout=subprocess.PIPE))
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    yield RankWatchdog({rank: process.pid for rank, process in enumerate(processes)}, dict(enumerate(logs)))
    for process in processes:
        process.kill()
        process.communicate()


def test_who_waits_for_one_that_works_is_not_stuck(both: RankWatchdog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert both.idle([0, 1]) == {}
    deadline = time.monotonic() + 20  # on a busy machine a rank is still beginning when another has begun
    while not both.suspects and time.monotonic() < deadline:
        assert both.idle([0, 1]) == {}, "it may just have gone on after long waiting, and is given another look"
        time.sleep(0.5)
    idle = both.idle([0, 1])
    assert list(idle) == [1] and "in wait_for_others" in idle[1].calls and not idle[1].waits_for_ranks
    monkeypatch.setattr(watch, "COLLECTIVE_PATHS", ("wait_for_others",))
    assert both.idle([0, 1])[1].waits_for_ranks
    both.restart()
    assert both.idle([1]) == {}


def test_who_is_stuck_is_told_by_who_waits_for_whom() -> None:
    waits, hangs, elsewhere = (
        IdleRank("at a.py:1 in f", *words) for words in ((True, False), (False, False), (False, True))
    )
    assert hung_ranks({1: waits}, 2) == {}, "it waits for one that works"
    assert list(hung_ranks({1: waits}, 1)) == [1], "nobody is left that it could wait for"
    assert list(hung_ranks({0: hangs, 1: waits}, 2)) == [0]
    assert list(hung_ranks({0: waits, 1: waits}, 2)) == [0, 1]
    assert hung_ranks({0: elsewhere, 1: waits}, 2) == {}, "another program has the lock"


def test_a_rank_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and not process.stdout.read()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        started = time.monotonic()
        assert RankWatchdog({0: process.pid}, {0: tmp_path / "log"}).stacks([0]) == {0: ""}
        assert time.monotonic() - started < watch.STACK_SECONDS / 2


def test_the_innermost_calls_of_the_main_thread_are_named() -> None:
    stack = (
        'Thread 0x1 (most recent call first):\n  File "/a/threading.py", line 1 in wait\n\n'
        'Current thread 0x2 (most recent call first):\n  File "/a/b/c.py", line 7 in inner\n'
        '  File "/a/b/d.py", line 8 in outer\n'
    )
    assert innermost_calls(stack) == "at b/c.py:7 in inner, from b/d.py:8 in outer"
    assert "does not answer" in innermost_calls("")


def test_a_request_in_a_bad_moment_ends_no_rank() -> None:
    """Between the first process's own answer and its relay, the system's default would end it."""
    program = (
        "import faulthandler, os\n"
        "from sparsebench.runtime import watch\n"
        "watch.answer_requests()\n"
        "faulthandler.unregister(watch.STACK_SIGNAL)\n"
        "os.kill(os.getpid(), watch.STACK_SIGNAL)\n"
        "print('alive')\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "alive\n"


FORKS = """
import time
from dataclasses import asdict
from sparsebench.runtime import Setting, Workload, rank, watch
from sparsebench.runtime.rank_jobs import RankWorker
from sparsebench.runtime.results import RankJob

def second_process():
    print(flush=True)
    time.sleep(600)

RankWorker.do = lambda self, process: process and second_process()
RankWorker.import_model = lambda self: None
watch.answer_requests()
job = asdict(RankJob("latency", "decoder", variants=("",), processes=(0, 1)))
spec = {"job": job, "setting": asdict(Setting("hf", 1, Workload())), "ports": ["1", "2"]}
rank.work(None, spec, 0)
"""


def test_the_second_fork_of_a_rank_tells_where_it_is(tmp_path: Path) -> None:
    log = tmp_path / "rank.log"
    with log.open("wb") as told:
        process = subprocess.Popen([sys.executable, "-c", FORKS], stderr=told, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline(), log.read_text()
        asked = RankWatchdog({0: process.pid}, {0: log})
        stack = asked.stacks([0])[0]
        # Between the fork and its first relay, the first process still answers for itself.
        until = time.monotonic() + 30
        while "in second_process" not in stack and time.monotonic() < until:
            stack = asked.stacks([0])[0]
        assert "in second_process" in stack
    finally:
        process.kill()
        process.communicate()
