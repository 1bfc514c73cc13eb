"""The schedule of a phase, on a clock of our own: blocks alternate, caps hold, warm-up stops when steady."""

import gc
from collections import Counter as Counts
from collections.abc import Callable
from typing import Any

import pytest

from sparsebench.energy import EnergyMeter, Unavailable
from sparsebench.runtime import Setting, Workload
from sparsebench.runtime.intervals import differences, summaries, waiting_notes
from sparsebench.runtime.latency import (
    GPU_SECONDS,
    MIN_PAIRS,
    WARM_SECONDS,
    WARM_STEPS,
    LoadedModel,
    PhaseTimer,
    RankSync,
)
from sparsebench.runtime.workload import Phase


class Clock(RankSync):
    """Time passes only in phases, as they say."""

    def __init__(self) -> None:
        super().__init__(1, False)
        self.steps: list[str] = []

    def timed(self, step: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
        step()
        phase = step.__self__
        self.steps.append(phase.side)
        return None, (phase.seconds(len(self.steps)), phase.seconds(0))


class Scripted(Phase):
    def __init__(self, name: str, side: str, seconds: Callable[[int], float]) -> None:
        self.name, self.side, self.seconds, self.begun = name, side, seconds, 0

    def begin(self) -> None:
        self.begun += 1

    def step(self) -> None: ...


def model(side: str, seconds: Callable[[int], float], load: float = 1.0, joules: float | None = None) -> LoadedModel:
    return LoadedModel([Scripted("forward", side, seconds)], (load, load), joules)


def timed(
    dense: Callable[[int], float], variant: Callable[[int], float], process: int = 0, **settings: Any
) -> tuple[Any, Any, Clock]:
    clock, setting = Clock(), Setting("hf", 1, Workload(), **{"processes": 1, **settings})
    sides = {"dense": model("dense", dense), "variant": model("variant", variant, 2.0)}
    samples, steady_phases, _ = PhaseTimer(setting, clock, lambda _: None, EnergyMeter(""), process).time_phases(sides)
    return samples, steady_phases, clock


@pytest.mark.parametrize("reads", [7, 10**6])
def test_a_counter_that_fails_on_the_way_ends_no_timing_and_gives_no_part_of_the_joules(reads: int) -> None:
    values = iter(range(0, 8 * reads, 8))

    def read() -> list[int]:
        try:
            return [next(values)]
        except StopIteration:
            raise Unavailable("gone") from None

    meter = EnergyMeter("RAPL", read, limits=[0])
    phases = [Scripted(name, "dense", lambda _: 0.01) for name in ("forward", "prefill")]
    sides = {"dense": LoadedModel(phases, (1.0, 1.0))}
    setting = Setting("hf", 1, Workload(), processes=1, samples=16)
    samples, _, spent = PhaseTimer(setting, Clock(), lambda _: None, meter).time_phases(sides)
    assert len([one for one in samples if one.phase != "load"]) >= 32
    if reads == 7:
        assert (spent, meter.source) == ({}, "none: gone")
    else:
        assert spent == {("forward", "dense"): 2.0, ("prefill", "dense"): 2.0}


def test_a_quick_steady_phase_gets_all_its_samples_in_alternating_blocks() -> None:
    samples, steady_phases, clock = timed(lambda _: 0.01, lambda _: 0.005, samples=24)
    forward = [sample for sample in samples if sample.phase == "forward"]
    assert [sample.side for sample in forward[:16]] == ["dense"] * 4 + ["variant"] * 8 + ["dense"] * 4
    assert (
        sum(sample.side == "dense" for sample in forward) == sum(sample.side == "variant" for sample in forward) == 24
    )
    assert steady_phases == [("forward", "dense"), ("forward", "variant")]
    assert len(clock.steps) == 48 + 12
    (difference,) = differences(samples, True)
    assert difference.ratio == pytest.approx(0.5)


def test_of_several_processes_each_takes_its_share_and_they_take_turns_in_beginning() -> None:
    first, _, _ = timed(lambda _: 0.01, lambda _: 0.005, samples=24, processes=5)
    second, _, _ = timed(lambda _: 0.01, lambda _: 0.005, samples=24, processes=5, process=1)
    begun = [[one.side for one in samples if one.phase == "forward"] for samples in (first, second)]
    assert begun[0] == ["dense"] * 2 + ["variant"] * 4 + ["dense"] * 4 + ["variant"] * 2
    assert begun[1] == ["variant"] * 2 + ["dense"] * 4 + ["variant"] * 4 + ["dense"] * 2
    assert {one.process for one in second} == {1}


@pytest.mark.parametrize(("settings", "pairs"), [({"processes": 5}, 1), ({"phase_seconds": 4.0}, MIN_PAIRS)], ids=str)
def test_a_slow_phase_gets_the_fewest_pairs_of_single_steps(settings: dict[str, Any], pairs: int) -> None:
    samples, _, clock = timed(lambda _: 100.0, lambda _: 100.0, samples=24, **settings)
    assert len([one for one in samples if one.phase == "forward"]) == 2 * pairs
    assert len(clock.steps) == 2 * pairs + 2


@pytest.mark.parametrize(("seconds", "messages"), [(0.01, 1), (100.0, MIN_PAIRS + 1)])
def test_only_a_slow_phase_tells_the_parent_of_its_pairs(seconds: float, messages: int) -> None:
    told: list[int] = []
    clock = Clock()
    sides = {"dense": model("dense", lambda _: seconds)}
    setting = Setting("hf", 1, Workload(), processes=1)
    PhaseTimer(setting, clock, lambda _: told.append(len(clock.steps)), EnergyMeter("")).time_phases(sides)
    assert len(told) == messages and told[-1] == len(clock.steps)


def test_the_cap_in_seconds_ends_sampling_between_pairs() -> None:
    samples, _, _ = timed(lambda _: 0.1, lambda _: 0.1, samples=400, phase_seconds=8.0)
    forward = [sample for sample in samples if sample.phase == "forward"]
    assert len(forward) % 8 == 0
    assert 8.0 < sum(sample.wall_s for sample in forward) <= 8.0 + 8 * 0.1 + 1e-9


def test_a_phase_that_never_settles_is_not_called_steady() -> None:
    samples, steady_phases, clock = timed(
        lambda count: 0.001 * 1.2**count, lambda _: 0.01, samples=8, phase_seconds=1e9
    )
    assert sum(0.001 * 1.2**count for count in range(1, WARM_STEPS[1])) < WARM_SECONDS
    assert clock.steps.index("variant") == WARM_STEPS[1]
    assert steady_phases == [("forward", "variant")]
    assert [one.steady for one in summaries(samples, Counts(steady_phases)) if one.phase == "forward"] == [False, True]


def test_a_phase_that_never_settles_is_given_up_after_a_while() -> None:
    _, _, clock = timed(lambda count: 0.01 * 1.2**count, lambda _: 0.01, samples=8, phase_seconds=1e9)
    assert WARM_STEPS[0] < clock.steps.index("variant") < WARM_STEPS[1]


def test_a_step_that_fails_leaves_the_garbage_collector_on() -> None:
    def fails(count: int) -> float:
        raise MemoryError

    with pytest.raises(MemoryError):
        timed(fails, fails)
    assert gc.isenabled()


def test_loading_is_one_sample_and_has_no_difference() -> None:
    samples, steady_phases, _ = timed(lambda _: 0.01, lambda _: 0.01)
    load = [one for one in summaries(samples, Counts(steady_phases)) if one.phase == "load"]
    assert [(one.side, one.n, one.steady) for one in load] == [("dense", 1, False), ("variant", 1, False)]
    assert [one.median_s for one in load] == pytest.approx([1.0, 2.0])
    assert [one.phase for one in differences(samples, True)] == ["forward"]


def test_a_gap_between_wall_and_cpu_time_is_flagged_on_a_cpu() -> None:
    samples, steady_phases, _ = timed(lambda _: 0.01, lambda count: 0.01 if count == 0 else 0.03, samples=8)
    phases = summaries(samples, Counts(steady_phases))
    (note,) = waiting_notes(phases, "cpu", 1)
    assert "in forward" in note
    assert "33%" in note
    assert not [*waiting_notes(phases, "cuda", 1)]
    assert not [*waiting_notes([one for one in phases if one.side == "dense"], "cpu", 1)]


class Counter:
    """Ten joules per step of the dense side, four of the variant's; what passes between blocks is not theirs."""

    source = "a counter"

    def __init__(self, clock: Clock) -> None:
        self.clock, self.read = clock, 0

    def take_joules(self) -> float:
        new, self.read = self.clock.steps[self.read :], len(self.clock.steps)
        return sum({"dense": 10.0, "variant": 4.0}[side] for side in new)


def test_energy_is_per_step_and_side_without_the_warm_up() -> None:
    clock, setting = Clock(), Setting("hf", 1, Workload(), samples=8, processes=1)
    sides = {
        "dense": model("dense", lambda _: 0.01, joules=70.0),
        "variant": model("variant", lambda _: 0.01, joules=30.0),
    }
    samples, steady_phases, spent = PhaseTimer(setting, clock, lambda _: None, Counter(clock)).time_phases(sides)
    each = {key: [joules] for key, joules in spent.items()}
    found = {(one.phase, one.side): one.energy_j for one in summaries(samples, Counts(steady_phases), each)}
    assert {side: found["load", side] for side in sides} == {"dense": 70.0, "variant": 30.0}
    assert {side: found["forward", side] for side in sides} == {"dense": 10.0, "variant": 4.0}
    assert len(found) == 4
    assert {one.energy_j for one in summaries(samples, Counts(steady_phases))} == {None}


class Slow(Counter):
    """A counter that moves so slowly that only two seconds of it say anything."""

    window_seconds = 2.0


def test_on_a_gpu_a_side_is_timed_for_a_second_and_its_energy_over_the_counters_window() -> None:
    clock, setting = Clock(), Setting("hf", 1, Workload(), samples=8, processes=1)
    clock.cuda = True
    sides = {"dense": model("dense", lambda _: 0.01), "variant": model("variant", lambda _: 0.02)}
    samples, _, spent = PhaseTimer(setting, clock, lambda _: None, Slow(clock)).time_phases(sides)
    forward = [sample for sample in samples if sample.phase == "forward"]
    assert sum(sample.wall_s for sample in forward) >= 2 * GPU_SECONDS
    assert spent == {("forward", "dense"): pytest.approx(10.0), ("forward", "variant"): pytest.approx(4.0)}
    last = len(clock.steps) - clock.steps[::-1].index("dense")
    assert clock.steps[last:] == ["variant"] * 100, "two seconds of twenty milliseconds each"
