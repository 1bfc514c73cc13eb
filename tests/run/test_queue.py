"""Which job starts next."""

import pytest

from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.run.queue import Queue

DENSE = Variant("d", "m", "decoder", "path:m", "r", "real", "float32")
OTHER = Variant("o", "m", "decoder", "path:m", "r", "real", "float32", parents=("d",))


def job(name: str, *after: str, kind: str = "assess", variant: Variant = DENSE) -> Job:
    return Job(name, kind, (Cell(f"c{name}", "structure", variant),), after=after)


def drained(queue: Queue) -> list[str]:
    """The order in which jobs start where each ends at once."""
    found = []
    while one := queue.take(lambda _: True):
        found.append(one.id)
        queue.end(one)
    return found


def test_jobs_start_in_order_once_those_before_them_have_ended() -> None:
    queue = Queue([job("b", "a"), job("a"), job("c", "a", "b"), job("d", kind="benchmarks")])
    assert [one.id for one in queue] == ["b", "a", "c", "d"] and len(queue) == 4
    first = queue.take(lambda _: True)
    assert first and first.id == "a"
    assert drained(queue) == ["d"], "a has not ended"
    queue.end(first)
    assert drained(queue) == ["b", "c"] and not queue


def test_a_job_without_room_holds_up_its_own_kind_alone() -> None:
    queue = Queue([job("a", kind="latency"), job("b"), job("c", kind="benchmarks")])
    assert [one.id for one in iter(lambda: queue.take(lambda job: job.kind != "latency"), None)] == ["b", "c"]
    assert [one.id for one in queue] == ["a"]


def test_what_is_timed_comes_after_all_else_that_may_start() -> None:
    queue = Queue([job("a", kind="memory"), job("b", kind="latency"), job("c", "a"), job("d")])
    assert drained(queue) == ["d", "a", "c", "b"]


def test_a_folder_is_needed_until_all_jobs_that_use_it_have_ended() -> None:
    queue = Queue([job("a"), job("b", variant=OTHER), job("c", variant=OTHER)])
    first = queue.take(lambda _: True)
    assert first and queue.needs(DENSE), "it was taken, and has not ended"
    queue.end(first)
    assert not queue.needs(DENSE) and queue.needs(OTHER)
    taken = queue.take(lambda _: True)
    queue.clear()
    assert not queue and taken and queue.needs(OTHER), "b goes on"
    queue.end(taken)
    assert not queue.needs(OTHER)


@pytest.mark.parametrize("first", [True, False])
def test_a_job_that_was_taken_can_wait_again(first: bool) -> None:
    queue = Queue([job("a"), job("b"), job("c", "a")])
    taken = queue.take(lambda _: True)
    assert taken
    queue.add([taken], first=first)
    assert drained(queue) == (["a", "b", "c"] if first else ["b", "a", "c"])
    assert not queue.needs(DENSE)


def test_what_is_done_again_holds_up_what_waits_for_it_again() -> None:
    queue = Queue([job("a"), job("b", "a"), job("c")])
    assert queue.take(lambda _: True) and len(queue) == 2
    left = list(queue)
    queue.end(job("a"))
    queue.clear()
    queue.add([job("a"), *left])
    found = drained(queue)
    assert sorted(found) == ["a", "b", "c"] and found.index("a") < found.index("b")
