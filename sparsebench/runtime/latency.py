"""Timing one model, or two in alternating blocks: what runs in the ranks, as one clock; and the statistics of what they send."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from sparsebench.runtime.machine import EnergyMeter
from sparsebench.runtime.results import PhaseDifference, PhaseSummary, Sample, Setting, Side
from sparsebench.runtime.workload import Phase

BLOCK = 4
GPU_SECONDS = 1.0
"""A side's phase is timed for at least so long on a GPU, where 24 steps can be over in a tenth of a second."""
MIN_PAIRS = 4
WARM_STEPS = (3, 16)
"""At least and at most so many steps."""
WARM_SHARE = 0.15
"""Share of a phase's time cap that warming up one side may take."""

RESAMPLES, P90_SAMPLES = 2000, 64
WAITING = 0.8
"""CPU seconds per rank and wall second below which a phase is flagged."""


@dataclass(frozen=True)
class Loaded:
    """A model's phases, and the (wall, CPU) seconds and joules that loading took."""

    phases: Sequence[Phase]
    load: tuple[float, float]
    joules: float | None = None


Value = TypeVar("Value")
Settled = list[tuple[str, Side]]
"""The phases of sides that were steady."""
Energy = dict[tuple[str, Side], float]
"""Joules per step of the phases of sides; empty where the machine has no counter."""


class Peers:
    """This process and the other ranks; at one rank there is nobody to wait for."""

    def __init__(self, ranks: int, cuda: bool) -> None:
        self.ranks, self.cuda = ranks, cuda

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            import torch.distributed as dist

            dist.barrier()

    def timed(self, step: Callable[[], Value]) -> tuple[Value, tuple[float, float]]:
        """Run ``step`` on all ranks at once: its value, (wall seconds of the slowest rank, CPU seconds of all).

        Both numbers are the same on every rank, so that decisions taken from them are, too.
        """
        self.barrier()
        self._finish()
        cpu, wall = time.process_time(), time.perf_counter()
        value = step()
        self._finish()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if self.ranks > 1:
            import torch
            import torch.distributed as dist

            device = "cuda" if self.cuda else "cpu"
            slowest, total = (torch.tensor(seconds, dtype=torch.float64, device=device) for seconds in (wall, cpu))
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            dist.all_reduce(total)
            wall, cpu = float(slowest), float(total)
        return value, (wall, cpu)

    def most(self, value: float) -> float:
        """The largest of all ranks' values."""
        if self.ranks == 1:
            return value
        import torch
        import torch.distributed as dist

        found = torch.tensor(value, dtype=torch.float64, device="cuda" if self.cuda else "cpu")
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return float(found)

    def _finish(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()


def run(
    sides: Mapping[Side, Loaded], setting: Setting, peers: Peers, done: Callable[[], None], meter: EnergyMeter
) -> tuple[list[Sample], Settled, Energy]:
    """Time every phase of ``sides`` (one or two); ``done`` is called between phases, never while one is timed."""
    samples = [Sample("load", side, 0, 0, *loaded.load) for side, loaded in sides.items()]
    settled: Settled = []
    spent: Energy = {("load", side): loaded.joules for side, loaded in sides.items() if loaded.joules is not None}
    window = peers.most(meter.window) if peers.cuda else 0.0  # one rank reads the counter, and all run the steps
    for position, phase in enumerate(next(iter(sides.values())).phases):
        ours = {side: loaded.phases[position] for side, loaded in sides.items()}
        gc.collect()
        gc.disable()
        found, steadies, joules = _phase(ours, setting, peers, meter, window)
        gc.enable()
        samples += found
        settled += [(phase.name, side) for side in steadies]
        spent |= {(phase.name, side): energy for side, energy in joules.items()}
        done()
    return samples, settled, spent


def _phase(
    sides: Mapping[Side, Phase], setting: Setting, peers: Peers, meter: EnergyMeter, window: float
) -> tuple[list[Sample], list[Side], dict[Side, float]]:
    longest = BLOCK
    if next(iter(sides.values())).name == "decode":
        longest = min(BLOCK, setting.workload.generate)  # stay within the positions that the workload was checked for
    warm = {side: _warm_up(phase, longest, setting, peers) for side, phase in sides.items()}
    step = max(median(walls[-3:]) for walls in warm.values())
    affordable = int(setting.phase_seconds / (step * len(sides) * MIN_PAIRS))
    block = max(1, min(longest, affordable))
    samples: list[Sample] = []
    joules: dict[Side, float] = {}
    least = GPU_SECONDS if peers.cuda else 0.0
    for pair in itertools.count():
        spent_s = sum(sample.wall_s for sample in samples)
        enough = pair >= math.ceil(setting.samples / block) and spent_s >= least * len(sides)
        if pair >= MIN_PAIRS and (enough or spent_s > setting.phase_seconds):
            break
        # Turn about, so that a drift of the machine hits both sides alike.
        for side in sorted(sides, reverse=bool(pair % 2)):
            phase = sides[side]
            phase.begin()
            meter.joules()
            for index in range(block):
                _, (wall, cpu) = peers.timed(phase.step)
                samples.append(Sample(phase.name, side, pair, index, wall, cpu))
            spent = meter.joules()
            if spent is not None:
                joules[side] = joules.get(side, 0.0) + spent
    counts = {side: sum(one.side == side for one in samples) for side in sides}
    if window:
        joules = {}
        for side, phase in sides.items():
            joules[side], counts[side] = _joules(phase, block, peers, meter, window)
    steadies = [side for side in sides if _is_steady(warm[side], [one.wall_s for one in samples if one.side == side])]
    return samples, steadies, {side: total / counts[side] for side, total in joules.items()}


def _joules(phase: Phase, block: int, peers: Peers, meter: EnergyMeter, window: float) -> tuple[float, int]:
    """Joules of as many steps as fill a window of so many seconds, and how many those were; what begins a block counts too."""
    seconds, steps = 0.0, 0
    meter.joules()
    while seconds < window:
        if steps % block == 0:
            phase.begin()
        seconds += peers.timed(phase.step)[1][0]
        steps += 1
    return meter.joules() or 0.0, steps


def _warm_up(phase: Phase, block: int, setting: Setting, peers: Peers) -> list[float]:
    """Steps until two rolling medians agree, or to the cap in steps or in seconds; their wall times."""
    least, most = WARM_STEPS
    walls: list[float] = []
    while len(walls) < most and not steady(walls):
        share = WARM_SHARE if len(walls) >= least else 1.0
        if sum(walls) > share * setting.phase_seconds:
            break
        if len(walls) % block == 0:
            phase.begin()
        walls.append(peers.timed(phase.step)[1][0])
    return walls


def _is_steady(warm: Sequence[float], walls: Sequence[float]) -> bool:
    """Whether warm-up settled, or, where its cap came first, whether the two halves of the samples agree."""
    half = len(walls) // 2
    return steady(warm) or (half >= 2 and steady(walls[: 2 * half], window=half))


def summaries(
    samples: Sequence[Sample], settled: Settled, seed: int, spent: Energy | None = None
) -> tuple[PhaseSummary, ...]:
    """One summary per phase and side, in the order of measuring. Loading is one sample, and never called steady."""
    groups: dict[tuple[str, Side], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.phase, sample.side), []).append(sample)
    spent = spent or {}
    return tuple(summary(*key, group, key in settled, seed, spent.get(key)) for key, group in groups.items())


def waiting(phases: Sequence[PhaseSummary], device: str, ranks: int) -> tuple[str, ...]:
    """A note where ranks held a core for clearly less of a phase than one thread would.

    On a GPU waiting is what the CPU does, so there is nothing to say.
    """
    shares = {one.phase: one.cpu_s / (one.median_s * ranks) for one in phases if one.phase != "load"}
    worst = min(shares, key=lambda phase: shares[phase])
    if device != "cpu" or shares[worst] >= WAITING:
        return ()
    return (
        f"in {worst} each rank was on a core for only {shares[worst]:.0%} of the time: "
        "other programs were running, or ranks waited for each other",
    )


def differences(samples: Sequence[Sample], paired: bool, seed: int) -> tuple[PhaseDifference, ...]:
    """Variant over dense for every phase but loading, whose single sample says nothing about the next."""
    found = []
    for name in dict.fromkeys(sample.phase for sample in samples if sample.phase != "load"):
        dense = [sample for sample in samples if sample.phase == name and sample.side == "dense"]
        variant = [sample for sample in samples if sample.phase == name and sample.side == "variant"]
        found.append(paired_ratio(name, dense, variant) if paired else unpaired_ratio(name, dense, variant, seed))
    return tuple(found)


def median_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95% percentile-bootstrap interval of the median of ``values``; one value is its own interval."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(np.median(data[draws], axis=1), [0.025, 0.975])
    return float(low), float(high)


def steady(values: Sequence[float], window: int = 3, tolerance: float = 0.05) -> bool:
    """Whether the medians of the last two windows differ by at most ``tolerance`` of the smaller."""
    if len(values) < 2 * window:
        return False
    first, second = median(values[-2 * window : -window]), median(values[-window:])
    return abs(first - second) <= tolerance * min(first, second)


def summary(
    phase: str, side: Side, samples: Sequence[Sample], is_steady: bool, seed: int, energy: float | None = None
) -> PhaseSummary:
    """The summary of one phase of one side; ``samples`` must hold at least one; ``energy`` is in joules per step."""
    walls = sorted(sample.wall_s for sample in samples)
    middle = median(walls)
    low, high = median_interval(walls, seed)
    return PhaseSummary(
        phase=phase,
        side=side,
        median_s=middle,
        low_s=low,
        high_s=high,
        mad_s=median(abs(wall - middle) for wall in walls),
        n=len(walls),
        steady=is_steady,
        cpu_s=median(sample.cpu_s for sample in samples),
        p90_s=walls[math.ceil(0.9 * len(walls)) - 1] if len(walls) >= P90_SAMPLES else None,
        energy_j=energy,
    )


def paired_ratio(phase: str, dense: Sequence[Sample], variant: Sequence[Sample]) -> PhaseDifference:
    """Variant over dense from medians of blocks that ran next to each other.

    The ratio is the geometric mean over pairs, its interval Student's t on the logarithms: a bootstrap of a handful of
    pairs would be too narrow. Needs at least two pairs.
    """
    import numpy as np
    from scipy.special import stdtrit

    blocks = sorted({sample.block for sample in dense} & {sample.block for sample in variant})
    logs = np.array([math.log(_block(variant, block) / _block(dense, block)) for block in blocks])
    centre = float(logs.mean())
    half = float(stdtrit(len(logs) - 1, 0.975) * logs.std(ddof=1) / math.sqrt(len(logs)))
    return PhaseDifference(phase, math.exp(centre), math.exp(centre - half), math.exp(centre + half), len(logs))


def unpaired_ratio(phase: str, dense: Sequence[Sample], variant: Sequence[Sample], seed: int) -> PhaseDifference:
    """Ratio of medians of two groups that did not run together, with a percentile-bootstrap interval; pairs is 0."""
    import numpy as np

    generator = np.random.default_rng(seed)

    def medians(samples: Sequence[Sample]) -> np.ndarray:
        data = np.array([sample.wall_s for sample in samples])
        return np.median(data[generator.integers(0, len(data), size=(RESAMPLES, len(data)))], axis=1)

    low, high = np.quantile(medians(variant) / medians(dense), [0.025, 0.975])
    ratio = median(sample.wall_s for sample in variant) / median(sample.wall_s for sample in dense)
    return PhaseDifference(phase, ratio, float(low), float(high), 0)


def _block(samples: Sequence[Sample], block: int) -> float:
    return median(sample.wall_s for sample in samples if sample.block == block)
