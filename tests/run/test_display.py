"""The time that a run says is left."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import DAMPING_SECONDS, Estimate, ModelSize, job_seconds
from sparsebench.run.display import SILENCE_SECONDS, Clock, Display, LiveDisplay

MODEL = Variant("v", "m", "decoder", "path:m", "r", "real", "float32")
SIZES = {"m": ModelSize(100_000_000, 400_000_000)}
LOAD = {"engine": "hf", "ranks": 1, "dtype": "float32", "samples": 24, "processes": 1}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that it is: ``now``."""
    time = SimpleNamespace(now=0.0)
    monkeypatch.setattr("time.monotonic", lambda: time.now)
    return time


def scored(name: str) -> Job:
    return Job(name, "benchmarks", (Cell(name, "benchmarks", MODEL, {"task": "piqa"}),))


def timed(name: str) -> Job:
    load = {"batch": 1, "prompt": 64, "generate": 8}
    return Job(name, "latency", (Cell(name, "latency", MODEL, LOAD | {"workload": load}),))


def test_the_pace_of_one_kind_of_job_says_nothing_about_another() -> None:
    clock, jobs = Clock(Estimate(SIZES), slots=2), [scored("a"), scored("b"), timed("c")]
    scoring, timing = job_seconds(jobs[0], SIZES), job_seconds(jobs[2], SIZES)
    clock.begin(jobs)
    assert clock.seconds_left() == pytest.approx(2 * scoring / 2 + timing)
    clock.ended(jobs[0], 3 * scoring)
    rate = (3 * scoring + DAMPING_SECONDS) / (scoring + DAMPING_SECONDS)
    assert 1 < rate < 3
    assert clock.seconds_left() == pytest.approx(rate * scoring / 2 + timing)


def test_it_begins_with_what_the_plan_learned_and_calculating_jobs_wait_for_the_only_gpu() -> None:
    jobs, estimate = [scored("a"), scored("b"), timed("c")], Estimate(SIZES)
    estimate.learn(jobs[0], 1e6)
    clock = Clock(estimate, slots=4, gpus=1)
    clock.begin(jobs)
    assert clock.seconds_left() == pytest.approx(2 * estimate.seconds(jobs[0]) + job_seconds(jobs[2], SIZES))
    assert estimate.seconds(jobs[0]) > 100 * job_seconds(jobs[0], SIZES)


def test_a_job_that_begins_with_fewer_cells_takes_as_long_as_these() -> None:
    """The others were skipped, since what they need could not be made."""
    whole = scored("a")
    whole = replace(whole, cells=(*whole.cells, Cell("b", "benchmarks", MODEL, {"task": "piqa"})))
    clock, rest = Clock(Estimate(SIZES)), replace(whole, cells=whole.cells[:1])
    clock.begin([whole])
    clock.started(rest)
    seconds = job_seconds(rest, SIZES)
    assert clock.seconds_left() == pytest.approx(seconds, abs=1.0) and seconds < 0.6 * job_seconds(whole, SIZES)
    clock.ended(rest, seconds)
    assert clock.estimate.seconds(whole) == pytest.approx(job_seconds(whole, SIZES))


def test_a_running_job_is_worked_off_and_never_below_nothing(clock: SimpleNamespace) -> None:
    left, jobs = Clock(Estimate(SIZES), slots=2), [scored("a"), timed("c")]
    scoring, timing = job_seconds(jobs[0], SIZES), job_seconds(jobs[1], SIZES)
    left.begin(jobs)
    left.started(jobs[0])
    clock.now = 10.0
    assert left.seconds_left() == pytest.approx((scoring - 10) / 2 + timing)
    clock.now = 10 * scoring
    assert left.seconds_left() == pytest.approx(timing)
    left.ended(jobs[0], clock.now)
    left.ended(jobs[1], timing)
    assert left.seconds_left() == pytest.approx(0)


def test_what_is_done_of_a_cell_tells_how_long_the_rest_takes(clock: SimpleNamespace) -> None:
    left, job = Clock(Estimate(SIZES)), timed("c")
    left.begin([job])
    left.started(job)
    expected = job_seconds(job, SIZES)
    clock.now = 10 * expected
    assert left.seconds_left() == 0
    left.progressed(job, 0.25)
    assert left.seconds_left() == pytest.approx(30 * expected)
    left.progressed(job, 0.0)  # the job's next cell
    clock.now = 11 * expected
    left.progressed(job, 0.5)
    assert left.seconds_left() == pytest.approx(expected)


def test_a_log_says_something_at_least_every_half_a_minute(clock: SimpleNamespace) -> None:
    stream = io.StringIO()
    shown, job = Display(Clock(Estimate(SIZES)), stream), timed("c")
    shown.begin(list(job.cells), [job])
    shown.started(job)
    shown.progress(job, 3, 8)
    for _ in range(10):
        clock.now += SILENCE_SECONDS / 4
        shown.tick()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2 and all(job.label in line and "3/8" in line for line in lines)
    assert shown.due() == SILENCE_SECONDS / 2


def test_how_a_job_without_cells_died_moves_no_cursor() -> None:
    """What a process said last is the text of others."""
    stream, job = io.StringIO(), Job("a", "make", (), makes=(MODEL,))
    shown = Display(Clock(Estimate(SIZES)), stream)
    shown.begin([], [job])
    shown.ended(job, 1.0, "make: the job's process died; it said last: \x1b[2J")
    assert stream.getvalue() == "✗ make: the job's process died; it said last: \\x1b[2J\n"


def test_the_bar_and_the_lines_above_it_show_names_as_they_are() -> None:
    """rich knows ``:100:`` as an emoji, ``[/b]`` as the end of what never began, and numbers as something to colour."""
    named = replace(MODEL, model="a[/b]\x1b[2J")
    job = Job("a", "benchmarks", (Cell("a", "benchmarks", named, {"task": "piqa"}),))
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    shown = LiveDisplay(Clock(Estimate(SIZES | {named.model: SIZES["m"]})), console)
    shown.begin(list(job.cells), [job])
    shown.started(job)
    shown.line("load.py:100: no [/b] of 12", "dim")
    shown.end()
    assert "a[/b]\\x1b[2J" in console.file.getvalue() and "load.py:100: no [/b] of 12" in console.file.getvalue()
