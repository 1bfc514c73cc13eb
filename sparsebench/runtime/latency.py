"""Times one model, or two in alternating blocks; runs in the ranks, which share one clock."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sparsebench.energy import EnergyMeter
from sparsebench.runtime.intervals import last_windows_agree
from sparsebench.runtime.results import Setting, Side, TimingSample
from sparsebench.runtime.workload import Phase

BLOCK = 4
"""The most steps between two changes of side."""
GPU_SECONDS = 1.0
"""A side's phase is timed for at least this long on a GPU, where 24 steps can take a tenth of a second."""
PAIRS = 3
"""Pairs of blocks wanted from each of several processes: the median leaves out one that something else disturbed."""
MIN_PAIRS = 4
"""The fewest pairs of all processes together, however slow a step is."""
WARM_STEPS = (3, 16)
"""The least and the most steps of warming up a side."""
WARM_SECONDS = 0.3
"""After its least steps, warming up a side stops once it has taken this long."""
SLOW_SECONDS = 1.0
"""Where a step takes this long, a phase tells the parent of each pair: its message costs a ten-thousandth of a step."""


@dataclass(frozen=True)
class LoadedModel:
    """A model's phases, and the (wall, CPU) seconds and joules that loading took."""

    phases: Sequence[Phase]
    load: tuple[float, float]
    joules: float | None = None


Value = TypeVar("Value")
SteadyPhases = list[tuple[str, Side]]
"""The (phase, side) pairs that were steady."""
Energy = dict[tuple[str, Side], float]
"""Joules per step by (phase, side); empty where the machine has no counter."""


class RankSync:
    """This process and the other ranks; at one rank nothing is exchanged."""

    def __init__(self, ranks: int, cuda: bool) -> None:
        self.ranks, self.cuda = ranks, cuda

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            dist.barrier()

    def timed(self, step: Callable[[], Value]) -> tuple[Value, tuple[float, float]]:
        """Run ``step`` on all ranks at once; return its value and (wall seconds, CPU seconds).

        Wall time is the slowest rank's, CPU time that of all ranks. Both numbers are the same on every rank, so that
        all ranks decide alike.
        """
        self.barrier()
        self._wait_for_gpu()
        cpu, wall = time.process_time(), time.perf_counter()
        value = step()
        self._wait_for_gpu()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return value, (self.largest(wall), self._reduce(cpu, dist.ReduceOp.SUM))

    def largest(self, value: float) -> float:
        """Return the largest of all ranks' values."""
        return self._reduce(value, dist.ReduceOp.MAX)

    def _reduce(self, value: float, operation: Any) -> float:
        if self.ranks == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device="cuda" if self.cuda else "cpu")
        dist.all_reduce(tensor, op=operation)
        return float(tensor)

    def _wait_for_gpu(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class PhaseTimer:
    """Times one ``process``'s share of the phases of one or two models.

    ``progress`` is called with the phase's name after each phase and, in slow ones, after each pair of blocks, never
    while a step is timed.
    """

    setting: Setting
    sync: RankSync
    progress: Callable[[str], None]
    meter: EnergyMeter
    process: int = 0

    def time_phases(self, sides: Mapping[Side, LoadedModel]) -> tuple[list[TimingSample], SteadyPhases, Energy]:
        """Time every phase of ``sides``; return the samples, the steady phases and the joules per step."""
        samples = [TimingSample("load", side, 0, 0, *loaded.load, self.process) for side, loaded in sides.items()]
        steady_phases: SteadyPhases = []
        energy: Energy = {("load", side): loaded.joules for side, loaded in sides.items() if loaded.joules is not None}
        # One rank reads the counter, but all run the steps.
        window_seconds = self.sync.largest(self.meter.window_seconds) if self.sync.cuda else 0.0
        for position, phase in enumerate(next(iter(sides.values())).phases):
            phase_of = {side: loaded.phases[position] for side, loaded in sides.items()}
            gc.collect()
            gc.disable()
            try:
                phase_samples, steady_sides, joules = self._time_phase(phase_of, window_seconds)
            finally:
                gc.enable()
            samples += phase_samples
            steady_phases += [(phase.name, side) for side in steady_sides]
            energy |= {(phase.name, side): value for side, value in joules.items()}
            self.progress(phase.name)
        return samples, steady_phases, energy

    def _time_phase(
        self, sides: Mapping[Side, Phase], window_seconds: float
    ) -> tuple[list[TimingSample], list[Side], dict[Side, float]]:
        """Warm up and time one phase of each side; return its samples, the sides that were steady, and the joules per step."""
        name = next(iter(sides.values())).name
        wanted_samples = math.ceil(self.setting.samples / self.setting.processes)
        seconds = self.setting.phase_seconds / self.setting.processes
        longest_block = BLOCK
        if name == "decode":  # the model's positions were checked for this workload only
            longest_block = min(BLOCK, self.setting.workload.generate)
        warm_walls = {side: self._warm_up(phase, longest_block, seconds) for side, phase in sides.items()}
        step_seconds = max(median(wall_times[-3:]) for wall_times in warm_walls.values())
        least_pairs = math.ceil(MIN_PAIRS / self.setting.processes)
        if self.setting.processes > 1:
            longest_block = min(longest_block, math.ceil(wanted_samples / PAIRS))
        block = max(1, min(longest_block, int(seconds / (step_seconds * len(sides) * least_pairs))))
        samples: list[TimingSample] = []
        readings: dict[Side, list[float | None]] = {side: [] for side in sides}
        least_seconds = GPU_SECONDS / self.setting.processes if self.sync.cuda else 0.0
        for pair in itertools.count():
            elapsed = sum(sample.wall_s for sample in samples)
            enough = pair >= math.ceil(wanted_samples / block) and elapsed >= least_seconds * len(sides)
            if pair >= least_pairs and (enough or elapsed > seconds):
                break
            if step_seconds >= SLOW_SECONDS:  # after warming up, and after each pair
                self.progress(name)
            # Alternate which side goes first, so that a drift of the machine hits both alike.
            for side in sorted(sides, reverse=bool((pair + self.process) % 2)):
                phase = sides[side]
                phase.begin()
                self.meter.take_joules()  # what was used before does not count
                for index in range(block):
                    _, (wall, cpu) = self.sync.timed(phase.step)
                    samples.append(TimingSample(phase.name, side, pair, index, wall, cpu, self.process))
                readings[side].append(self.meter.take_joules())
        wall_times = {side: [sample.wall_s for sample in samples if sample.side == side] for side in sides}
        if window_seconds:
            joules = {side: self._joules(phase, block, window_seconds) for side, phase in sides.items()}
        else:
            joules = {side: _joules_per_step(readings[side], len(wall_times[side])) for side in sides}
        steady_sides = [side for side in sides if _was_steady(warm_walls[side], wall_times[side])]
        return samples, steady_sides, {side: value for side, value in joules.items() if value is not None}

    def _joules(self, phase: Phase, block: int, window_seconds: float) -> float | None:
        """Return the joules per step, over as many steps as fill ``window_seconds``; beginning a block counts too."""
        seconds, steps = 0.0, 0
        self.meter.take_joules()  # what was used before does not count
        while seconds < window_seconds:
            if steps % block == 0:
                phase.begin()
            seconds += self.sync.timed(phase.step)[1][0]
            steps += 1
        return _joules_per_step([self.meter.take_joules()], steps)

    def _warm_up(self, phase: Phase, block: int, longest_seconds: float) -> list[float]:
        """Run steps until two rolling medians agree, or up to the cap in steps or seconds; return their wall times."""
        least_steps, most_steps = WARM_STEPS
        walls: list[float] = []
        while len(walls) < most_steps and not last_windows_agree(walls):
            if sum(walls) > (WARM_SECONDS if len(walls) >= least_steps else longest_seconds):
                break
            if len(walls) % block == 0:
                phase.begin()
            walls.append(self.sync.timed(phase.step)[1][0])
        return walls


def _joules_per_step(readings: Sequence[float | None], steps: int) -> float | None:
    """Return the joules per step; None where the counter could not be read each time."""
    return None if None in readings else math.fsum(value for value in readings if value is not None) / steps


def _was_steady(warm_walls: Sequence[float], walls: Sequence[float]) -> bool:
    """Return whether warm-up ended steady, or, where its cap came first, whether the two halves of the samples agree."""
    half = len(walls) // 2
    return last_windows_agree(warm_walls) or (half >= 2 and last_windows_agree(walls[: 2 * half], window=half))
