"""Summarizes timed steps: medians, ratios, and how far each may be off.

A process lays a model into memory once, and by that layout is up to a quarter faster or slower than the next. Its own
steps do not show this, so each process gives one number, its median. Intervals are Student's t of these, in logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from statistics import fmean, median

from sparsebench.runtime.results import PhaseDifference, PhaseSummary, Side, TimingSample

P90_SAMPLES = 64
STEADY = 0.02
"""The largest relative change of a steady phase from its first half to its second."""
MIN_CPU_SHARE = 0.8
"""CPU seconds per rank and wall second below which a phase gets a note."""

SteadyCounts = Mapping[tuple[str, Side], int]
"""In how many processes a phase was steady, by phase and side."""
EnergyReadings = Mapping[tuple[str, Side], Sequence[float]]
"""Joules per step of each process, by phase and side; none where the machine has no counter."""


def summaries(
    samples: Sequence[TimingSample], steady_counts: SteadyCounts, joules: EnergyReadings | None = None
) -> tuple[PhaseSummary, ...]:
    """Return one summary per phase and side, in measuring order. Loading, one sample a process, is never steady."""
    return tuple(
        summary(*key, group, steady_counts.get(key, 0), (joules or {}).get(key, ()))
        for key, group in _by_phase_and_side(samples).items()
    )


def summary(
    phase: str, side: Side, samples: Sequence[TimingSample], steady_processes: int, energy: Sequence[float] = ()
) -> PhaseSummary:
    """Summarize one phase of one side. ``samples`` must not be empty; ``energy`` is in joules per step."""
    walls = sorted(sample.wall_s for sample in samples)
    middle = median(walls)
    centre, half = _interval([math.log(wall) for wall in _medians(samples)])
    return PhaseSummary(
        phase=phase,
        side=side,
        median_s=math.exp(centre),
        low_s=math.exp(centre - half),
        high_s=math.exp(centre + half),
        mad_s=median(abs(wall - middle) for wall in walls),
        n=len(walls),
        steady=phase != "load" and _is_steady(samples, steady_processes),
        cpu_s=median(sample.cpu_s for sample in samples),
        p90_s=walls[math.ceil(0.9 * len(walls)) - 1] if len(walls) >= P90_SAMPLES else None,
        energy_j=fmean(energy) if energy else None,
    )


def differences(samples: Sequence[TimingSample], paired: bool) -> tuple[PhaseDifference, ...]:
    """Return variant over dense for every phase but loading, where the model that is loaded first pays for both."""
    ratio = paired_ratio if paired else unpaired_ratio
    groups = _by_phase_and_side(samples)
    names = dict.fromkeys(phase for phase, _ in groups if phase != "load")
    return tuple(ratio(name, groups[name, "dense"], groups[name, "variant"]) for name in names)


def paired_ratio(phase: str, dense: Sequence[TimingSample], variant: Sequence[TimingSample]) -> PhaseDifference:
    """Return variant over dense from the medians of blocks that ran next to each other.

    A process's ratio is the median of its pairs' ratios; the result is the geometric mean over processes. With one
    process mean and interval are those of its pairs, of which it needs at least two.
    """
    walls = _walls(variant)
    logs = [
        [math.log(median(walls[process][block]) / median(dense_walls)) for block, dense_walls in blocks.items()]
        for process, blocks in _walls(dense).items()
    ]
    alone = len(logs) == 1
    centre, half = _interval(logs[0] if alone else [median(pairs) for pairs in logs])
    within, between = (None, None) if alone else _components(logs)
    ends = math.exp(centre), math.exp(centre - half), math.exp(centre + half)
    return PhaseDifference(phase, *ends, sum(map(len, logs)), len(logs), within, between)


def unpaired_ratio(phase: str, dense: Sequence[TimingSample], variant: Sequence[TimingSample]) -> PhaseDifference:
    """Return the ratio of two groups that did not run together, with Welch's interval; ``pairs`` is 0."""
    from scipy import stats

    ours, theirs = ([math.log(middle) for middle in _medians(side)] for side in (variant, dense))
    centre = fmean(ours) - fmean(theirs)
    interval = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    low, high = (centre if math.isnan(end) else float(end) for end in interval)  # NaN where nothing varies
    return PhaseDifference(phase, math.exp(centre), math.exp(low), math.exp(high), 0, len(_walls(variant)))


def disagreement_notes(phases: Sequence[PhaseSummary], differences: Sequence[PhaseDifference]) -> Iterator[str]:
    """Yield a note for each phase in which the ratio of the medians differs clearly from that of the pairs."""
    medians = {(summary.phase, summary.side): summary.median_s for summary in phases}
    for difference in differences:
        plain = medians[difference.phase, "variant"] / medians[difference.phase, "dense"]
        half = math.log(difference.high / difference.low) / 2
        if abs(math.log(plain / difference.ratio)) > max(STEADY, half):
            yield (
                f"in {difference.phase} dense over variant is {1 / plain:.3f} by medians and "
                f"{1 / difference.ratio:.3f} by pairs: the machine's pace changed while it was timed"
            )


def waiting_notes(phases: Sequence[PhaseSummary], device: str, ranks: int) -> Iterator[str]:
    """Yield a note where ranks were on a core for clearly less of a phase than one thread would be.

    On a GPU there is none: there the CPU only waits.
    """
    shares = [(phase.cpu_s / (phase.median_s * ranks), phase.phase) for phase in phases if phase.phase != "load"]
    share, phase_name = min(shares)
    if device == "cpu" and share < MIN_CPU_SHARE:
        yield (
            f"in {phase_name} each rank was on a core for only {share:.0%} of the time: "
            "other programs were running, or ranks waited for each other"
        )


def any_is_wide(differences: Iterable[PhaseDifference], precision: float) -> bool:
    """Return whether an interval reaches further from its ratio than ``precision`` of it."""
    return any(math.log(each.high / each.low) / 2 > math.log1p(precision) for each in differences)


def last_windows_agree(values: Sequence[float], window: int = 3) -> bool:
    """Return whether the medians of the last two windows differ by at most 5% of the smaller."""
    if len(values) < 2 * window:
        return False
    first, second = median(values[-2 * window : -window]), median(values[-window:])
    return abs(first - second) <= 0.05 * min(first, second)


def _interval(logs: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95% interval by Student's t; the half-width is 0 for one value."""
    from scipy.special import stdtrit

    centre = fmean(logs)
    if len(logs) == 1:
        return centre, 0.0
    deviation = math.sqrt(sum((log - centre) ** 2 for log in logs) / (len(logs) - 1))
    return centre, float(stdtrit(len(logs) - 1, 0.975)) * deviation / math.sqrt(len(logs))


def _components(logs: Sequence[Sequence[float]]) -> tuple[float | None, float]:
    """Return standard deviations within and between groups by one-way ANOVA; within is None for groups of one value."""
    means = [fmean(group) for group in logs]
    freedom = sum(len(group) - 1 for group in logs)
    grand = fmean(means)
    spread = sum((mean - grand) ** 2 for mean in means) / (len(means) - 1)
    if not freedom:
        return None, math.sqrt(spread)
    error = sum((log - mean) ** 2 for group, mean in zip(logs, means, strict=True) for log in group) / freedom
    size = len(logs) / sum(1 / len(group) for group in logs)
    return math.sqrt(error), math.sqrt(max(0.0, spread - error / size))


def _by_phase_and_side(samples: Iterable[TimingSample]) -> dict[tuple[str, Side], list[TimingSample]]:
    groups: dict[tuple[str, Side], list[TimingSample]] = {}
    for sample in samples:
        groups.setdefault((sample.phase, sample.side), []).append(sample)
    return groups


def _walls(samples: Sequence[TimingSample]) -> dict[int, dict[int, list[float]]]:
    walls: dict[int, dict[int, list[float]]] = {}
    for sample in samples:
        walls.setdefault(sample.process, {}).setdefault(sample.block, []).append(sample.wall_s)
    return walls


def _medians(samples: Sequence[TimingSample]) -> list[float]:
    """Return each process's median; for one process alone, each block's."""
    processes = list(_walls(samples).values())
    if len(processes) == 1:
        return [median(walls) for walls in processes[0].values()]
    return [median(chain.from_iterable(blocks.values())) for blocks in processes]


def _is_steady(samples: Sequence[TimingSample], steady_processes: int) -> bool:
    """Return whether the phase was steady in most processes, and the halves of their samples were on average equally fast.

    Steps too noisy to tell are not steady. Those so slow that each process takes only one are: they show no change, and
    warm-up ends at its cap in seconds before it can settle. With one process, it is steady if it was in that one.
    """
    processes = _walls(samples)
    if len(processes) == 1:
        return steady_processes > 0
    changes = []
    for blocks in processes.values():
        walls = list(chain.from_iterable(blocks.values()))
        if half := len(walls) // 2:
            changes.append(math.log(median(walls[-half:]) / median(walls[:half])))
    if not changes:
        return True
    return 2 * steady_processes > len(processes) and abs(fmean(changes)) <= math.log1p(STEADY)
