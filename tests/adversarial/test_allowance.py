"""The limits on time and memory of a stranger's templates: what they end, and that nothing of them is left."""

import re
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from sparsebench import bounded
from sparsebench.errors import BenchmarkError, SparsebenchError


def state() -> tuple[object, ...]:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    return signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL), limit


def swallow() -> None:
    while True:
        try:
            re.search("(a+)+$", "a" * 40 + "b")
        except Exception:
            continue


@pytest.mark.parametrize(
    "work",
    [swallow, lambda: 9 ** (9**9), lambda: "x" * 10**12, lambda: [0] * 10**12, lambda: [*range(10**9)]],
    ids=["swallow", "power", "text", "list", "numbers"],
)
def test_what_takes_too_much_is_ended_by_name(work: Callable[[], object]) -> None:
    before, begun = state(), time.thread_time()
    with pytest.raises(BenchmarkError, match="culprit"), bounded.Allowance().use("culprit", BenchmarkError):
        work()
    assert time.thread_time() - begun < bounded.PATTERN_SECONDS + 1
    assert state() == before


def test_many_uses_share_their_time_and_the_inner_one_is_named() -> None:
    allowance = bounded.Allowance(seconds_left=0.1)

    def use(name: str, often: int) -> None:
        with allowance.use("outer", BenchmarkError):
            for _ in range(often):
                with allowance.use(name, BenchmarkError):
                    end = time.thread_time() + 0.002  # twice what a use adds to the time that is left
                    while time.thread_time() < end:
                        pass

    with pytest.raises(BenchmarkError, match="inner"):
        use("inner", 10_000)
    with pytest.raises(BenchmarkError, match="next"):
        use("next", 100)
    with allowance.use("many documents", BenchmarkError, documents=10_000):
        use("last", 10)


def test_an_inner_use_that_failed_is_not_named_for_what_comes_after_it() -> None:
    allowance = bounded.Allowance()

    def go_on_after_an_error() -> None:
        with suppress(KeyError), allowance.use("inner", BenchmarkError):
            raise KeyError
        swallow()

    with pytest.raises(BenchmarkError, match="outer"), allowance.use("outer", BenchmarkError):
        go_on_after_an_error()


def test_an_alarm_of_others_goes_off_in_its_time() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, _: heard.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with bounded.Allowance().use("culprit", BenchmarkError):
            time.sleep(0.1)
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.1
        time.sleep(0.3)
        assert heard == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_another_thread_is_refused_because_nothing_could_interrupt_it() -> None:
    def work() -> None:
        with bounded.Allowance().use("culprit", BenchmarkError):
            pass

    with ThreadPoolExecutor() as threads, pytest.raises(SparsebenchError, match="culprit"):
        threads.submit(work).result()
