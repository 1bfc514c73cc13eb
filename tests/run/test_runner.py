"""Which job starts next, and what a run does where something that it needs is gone, without Ray and without models."""

import io
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from sparsebench.errors import SparsebenchError
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import Estimate
from sparsebench.plan.expand import Plan
from sparsebench.plan.jobs import jobs
from sparsebench.run.cluster import Cluster
from sparsebench.run.display import Clock, Display
from sparsebench.run.executor import RunningJob, RunSettings
from sparsebench.run.local import Local
from sparsebench.run.queue import Queue
from sparsebench.run.recorder import JobSpec
from sparsebench.run.runner import Runner
from tests.run.conftest import planned
from tests.run.fake_ray import FakeRay, damaged, done, failed, run, told

CHAIN = [{"prune": "magnitude", "sparsity": 0.5}, {"recover": "reconstruct"}]


def chained(stage: str) -> tuple[Plan, Variant, Variant]:
    """A plan of one stage's cells of a recovered variant, its parent, and the variant."""
    plan = planned(variants=[CHAIN], outputs={}, runtime=None, benchmarks={})
    _, parent, end = plan.variants.values()
    return replace(plan, cells=tuple(c for c in plan.cells if (c.variant, c.stage) == (end, stage))), parent, end


@pytest.mark.parametrize("stage", ["make", "outputs"])
def test_what_reads_the_dense_model_is_skipped_where_that_cannot_be_prepared(
    stage: str, settings: RunSettings, ray: FakeRay
) -> None:
    plan, parent, end = chained(stage)
    there = settings.workspace.folder(parent if stage == "make" else end)
    there.mkdir(parents=True)
    (there / "config.json").write_text("{}")

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        if spec.job.kind != "prepare":
            yield from done(spec, *more)
            return
        yield from failed("no weights")

    ray.work = work
    assert run(plan, settings).counts == {"done": 0, "failed": 0, "unsupported": 0, "skipped": 1}


def test_a_variant_whose_packed_copy_turns_out_damaged_is_made_again_from_a_parent_that_was_not_there(
    settings: RunSettings, ray: FakeRay
) -> None:
    plan, parent, end = chained("storage")
    packed = settings.workspace.packed(end)
    packed.mkdir(parents=True)
    begun: list[str] = []

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        begun.append(f"{spec.job.kind} {spec.job.variants[0].recipe}")
        if end in spec.job.makes and packed.exists():
            shutil.rmtree(packed)
            yield from damaged(parent.id)
        else:
            yield from done(spec, *more)

    ray.work = work
    assert run(plan, settings).counts == {"done": 1, "failed": 0, "unsupported": 0, "skipped": 0}
    made_again = [f"make {end.recipe}", "prepare dense", f"make {parent.recipe}", f"make {end.recipe}"]
    assert begun == [*made_again, f"assess {end.recipe}"]


def test_an_answer_is_shown_once_before_the_timing(settings: RunSettings, ray: FakeRay) -> None:
    plan = planned()
    begun: list[str] = []
    asked: list[tuple[str, list[str]]] = []

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        begun.append(spec.job.kind)
        yield {"event": "note", "text": "busy"}
        yield from done(spec, *more)

    ray.work = work
    shown = run(plan, settings, lambda model: asked.append((model, [*begun])) or f"{model}: 3 rows").shown
    ((model, before),) = asked
    untimed = {job.kind for job in jobs(plan, plan.cells, lambda _: True)} - {"latency", "memory"}
    assert model == "m" and {"benchmarks", "assess"} <= untimed
    assert all(before.count(kind) == begun.count(kind) for kind in untimed)
    assert [text for text in shown if "3 rows" in text] == ["m: 3 rows"]
    assert [text for text in shown if "busy" in text] == ["! busy"] and len(begun) > 1


def test_jobs_that_fail_at_once_say_nothing_of_how_long_others_take(settings: RunSettings, ray: FakeRay) -> None:

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        if spec.job.kind != "benchmarks":
            yield from done(spec, *more)
            return
        yield from failed("memory ran out")

    ray.work = work
    ran = run(planned(), settings)
    learned = ran.runner.display.clock.estimate.seconds_taken
    assert ran.counts["failed"] and learned["assess"] and not learned["benchmarks"]


@pytest.mark.parametrize("recorded", [1, 4])
def test_a_job_that_finds_damage_on_the_way_goes_on_with_what_is_left(
    recorded: int, settings: RunSettings, ray: FakeRay
) -> None:
    plan = planned(runtime=None)
    asked: list[int] = []

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        variant, cells = spec.job.variants[0], spec.job.cells
        if spec.job.kind == "assess" and not variant.is_dense:
            asked.append(len(cells))
            if len(asked) == 1:
                yield from (told(cell, spec) for cell in cells[:recorded])
                yield from damaged(variant.id)
                return
        yield from done(spec, *more)

    ray.work = work
    ran = run(plan, settings)
    assert ran.counts == {"done": len(plan.cells), "failed": 0, "unsupported": 0, "skipped": 0}
    assert set(ran.ingested.values()) == {1}
    assert asked == ([4, 3] if recorded == 1 else [4])
    assert not [*(settings.workspace.work / "variants").iterdir()], "nothing needs them any more"


def test_two_jobs_that_find_the_same_damage_wait_for_its_maker(settings: RunSettings, ray: FakeRay) -> None:
    """The second one ends while the maker still waits for room: the maker must not wait for itself."""
    plan = planned(runtime=None)
    both_look = threading.Barrier(2, timeout=20)
    found: list[str] = []

    def work(spec: JobSpec, *more: object) -> Iterator[dict[str, Any]]:
        if spec.job.kind in ("assess", "benchmarks") and spec.job.variants[0].is_dense and len(found) < 2:
            found.append(spec.job.kind)
            both_look.wait()
            yield from damaged(spec.dense.id)
            return
        yield from done(spec, *more)

    class Narrow(Cluster):
        def has_room(self, job: Job, running: Sequence[RunningJob]) -> bool:
            return not running if job.makes else len(running) < 2

    ray.work = work
    counts = run(plan, settings, cluster=Narrow).counts
    assert len(found) == 2
    assert counts == {"done": len(plan.cells), "failed": 0, "unsupported": 0, "skipped": 0}


class Full(Local):
    """An executor that never has room."""

    def has_room(self, job: Job, running: Sequence[RunningJob]) -> bool:
        return False


@pytest.mark.parametrize("after", [(), ("a job that is not there",)], ids=["no room", "no predecessor"])
def test_jobs_of_which_none_can_ever_start_end_the_run_with_an_error_that_names_one(
    after: tuple[str, ...], settings: RunSettings
) -> None:
    plan = planned()
    executor = Local(settings) if after else Full(settings)
    runner = Runner(plan, settings, executor, lambda *_: None, Display(Clock(Estimate(settings.sizes)), io.StringIO()))
    first, *_ = jobs(plan, plan.cells, lambda _: False)
    runner.waiting.add([replace(first, id="never", after=after)] if after else [])
    with pytest.raises(SparsebenchError, match=first.label) as caught:
        runner.run([] if after else plan.cells, (), ())
    assert all(name in caught.value.message for name in after)


DENSE = Variant("d", "m", "decoder", "path:m", "r", "real", "float32")
OTHER = replace(DENSE, id="o", parents=("d",))


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
