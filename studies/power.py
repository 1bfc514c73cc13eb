"""What the ledger's statistics do when the truth is known: false alarms, losses found, intervals that hold it.

    python studies/power.py [false_alarms | power | scores | rankings | retained | windows]

Documents are drawn at random, judged by `sparsebench.ledger.statistics` as the ledger's are, and counted. Prints a table;
exits with 1 where a number misses its target by more than three standard errors of the simulation.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sparsebench.ledger import statistics
from sparsebench.ledger.statistics import Comparison, Pairs, resampling

SEED = 7
DISCORDANT = 0.1
Draw = Callable[[np.random.Generator], Pairs]


@dataclass(frozen=True)
class Line:
    """A share of simulated samples, and the range that it should be in."""

    what: str
    share: float
    runs: int
    low: float
    high: float

    @property
    def missed(self) -> bool:
        slack = 3 * math.sqrt(max(self.share * (1 - self.share), 1e-4) / self.runs)
        return self.share < self.low - slack or self.share > self.high + slack

    def __str__(self) -> str:
        if self.low and self.high < 1:
            target = f"{self.low:.0%} to {self.high:.0%}"
        else:
            target = f"at least {self.low:.0%}" if self.low else f"at most {self.high:.0%}" if self.high < 1 else ""
        return f"| {self.what} | {self.share:.1%}{' MISSED' if self.missed else ''} | {target} | {self.runs:,} |"


def answers(n: int, drop: float, discordant: float = DISCORDANT, right: float = 0.7, size: int = 1) -> Draw:
    """Right-or-wrong documents in clusters of ``size`` that answer alike; ``right`` is the dense model's share."""
    shares = [right - (discordant + drop) / 2, (discordant - drop) / 2, (discordant + drop) / 2]
    cells = np.array([(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])

    def draw(generator: np.random.Generator) -> Pairs:
        kinds = generator.choice(4, size=n // size, p=[*shares, 1 - sum(shares)])
        variant, dense = np.repeat(cells[kinds], size, axis=0).T
        return Pairs(variant, dense, np.full(n, np.nan), np.repeat(np.arange(n // size), size) if size > 1 else None)

    return draw


def texts(n: int, rise: float, spread: float = 0.04, lag: float = 0.0, skewed: bool = False) -> Draw:
    """Perplexity: windows of 1,023 tokens whose mean -ln p differs from window to window, and rises by ``rise``.

    The rises of neighbours correlate by ``lag`` (AR(1)); ``skewed`` ones are exponential instead of normal.
    """

    def draw(generator: np.random.Generator) -> Pairs:
        dense = 1023 * generator.normal(3.2, 0.35, size=n)
        noise = generator.exponential(size=n) - 1 if skewed else generator.normal(size=n)
        for place in range(1, n if lag else 0):
            noise[place] = lag * noise[place - 1] + math.sqrt(1 - lag * lag) * noise[place]
        return Pairs(dense + 1023 * (rise + spread * noise), dense, np.full(n, 1023.0))

    return draw


def similarities(n: int, noise: float) -> Draw:
    """Average precision of pairs, 68% of them true, whose similarity is the label and noise; the variant has its own besides."""

    def draw(generator: np.random.Generator) -> Pairs:
        labels = (generator.random(n) < 0.68).astype(float)
        shared = labels + generator.normal(size=n)
        sides = [shared + noise * generator.normal(size=n) for _ in range(2)]
        return Pairs(*sides, labels)

    return draw


def many(metric: str, draw: Draw, runs: int, chance: float | None = None) -> list[Comparison]:
    generator = np.random.default_rng(SEED)
    return [statistics.compare(metric, draw(generator), chance, seed) for seed in range(runs)]


def found(comparisons: list[Comparison]) -> float:
    return float(np.mean([one.p < 0.05 for one in comparisons]))


def false_alarms() -> Iterator[Line]:
    for n in (100, 1000):
        yield Line(
            f"no loss, accuracy, {n:,} documents: called different",
            found(many("acc", answers(n, 0), 2000)),
            2000,
            0,
            0.05,
        )
    clustered = many("acc", answers(600, 0, size=3), 2000)
    yield Line("the same, 600 documents in 200 contexts", found(clustered), 2000, 0, 0.05)
    yield Line("no loss, average precision, 200 pairs", found(many("ap", similarities(200, 0.5), 200)), 200, 0, 0.05)


def power() -> Iterator[Line]:
    yield Line(
        "a drop of 5 points, 10% discordant, 1,000 documents: found",
        found(many("acc", answers(1000, 0.05), 2000)),
        2000,
        0.95,
        1,
    )
    for n, discordant, size in ((100, 0.1, 1), (1000, 0.1, 1), (1838, 0.3, 1), (600, 0.1, 3)):
        drop = statistics.detectable(n // size, discordant)
        assert drop is not None
        name = f"in {n // size} contexts" if size > 1 else f"{discordant:.0%} discordant"
        share = found(many("acc", answers(n, drop, max(discordant, drop), size=size), 2000))
        yield Line(
            f"the detectable drop of {n:,} documents, {name} ({100 * drop:.1f} points): found", share, 2000, 0.77, 0.83
        )


def scores() -> Iterator[Line]:
    generator = np.random.default_rng(SEED)
    for n, right in ((100, 0.95), (500, 0.7), (1838, 0.65)):
        values = [(generator.random(n) < right).astype(float) for _ in range(2000)]
        yield _holds(f"Wilson, {n:,} documents, {right:.0%} right: holds the truth", "acc", values, None, None, right)
    codes = np.repeat(np.arange(200), 3)
    values = [np.repeat((generator.random(200) < 0.7).astype(float), 3) for _ in range(2000)]
    yield _holds("Wilson, 600 documents in 200 contexts", "acc", values, None, codes, 0.7)


def _holds(
    what: str, metric: str, samples: list, labels: np.ndarray | None, clusters: np.ndarray | None, truth: float
) -> Line:
    held = []
    for seed, values in enumerate(samples):
        label = np.full(len(values), np.nan) if labels is None else labels
        around = statistics.interval(metric, float(values.mean()), values, label, clusters, seed)
        held.append(around.low <= truth <= around.high)
    return Line(what, float(np.mean(held)), len(samples), 0.93, 1)


def rankings() -> Iterator[Line]:
    """Average precision of few pairs: the interval of a score, and that of a difference whose truth is 0."""
    n, runs = 50, 1000
    big = similarities(1_000_000, 0.5)(np.random.default_rng(SEED))
    truth = resampling.score("ranking", big.variant, big.labels)
    drawn = [similarities(n, 0.5)(np.random.default_rng((SEED, seed))) for seed in range(runs)]
    held = []
    for seed, one in enumerate(drawn):
        score = resampling.score("ranking", one.variant, one.labels)
        around = statistics.interval("ap", score, one.variant, one.labels, None, seed)
        held.append(around.low <= truth <= around.high)
    yield Line(f"average precision, {n} pairs: holds the truth", float(np.mean(held)), runs, 0.93, 1)
    made = [statistics.compare("ap", one, None, seed) for seed, one in enumerate(drawn)]
    yield Line(f"difference of average precision, {n} pairs: holds the truth", _held(made), runs, 0.93, 1)


def retained() -> Iterator[Line]:
    for n, drop, chance, size in ((200, 0.05, 0.5, 1), (1838, 0.1, 0.5, 1), (570, 0.2, 0.25, 1), (600, 0.05, 0.25, 3)):
        truth = (0.7 - drop - chance) / (0.7 - chance)
        made = many("acc", answers(n, drop, 0.25, size=size), 2000, chance)
        where = f", in {n // size} contexts" if size > 1 else ""
        yield _kept(f"retained of {truth:.0%}, accuracy, {n:,} documents{where}: holds the truth", made, truth)
    big = similarities(1_000_000, 0.5)(np.random.default_rng(SEED))
    variant, dense = (resampling.score("ranking", side, big.labels) for side in (big.variant, big.dense))
    truth = (variant - 0.68) / (dense - 0.68)
    made = many("ap", similarities(200, 0.5), 200, 0.68)
    yield _kept("retained, average precision, 200 pairs", made, truth)


def _kept(what: str, made: list[Comparison], truth: float) -> Line:
    kept = [one for one in made if one.retained is not None]
    held = [
        (one.retained_low is None or one.retained_low <= truth)
        and (one.retained_high is None or truth <= one.retained_high)
        for one in kept
    ]
    return Line(what, float(np.mean(held)), len(kept), 0.93, 1)


RUNS = 10_000
WINDOWS = (3, 4, 6, 8, 12, 43)


def windows() -> Iterator[Line]:
    """Perplexity by Student's t of log-losses. Skew and correlation break what t assumes: told, without a target."""
    for n in WINDOWS:
        none = many("perplexity", texts(n, 0), RUNS)
        rise = float(np.mean([math.log1p(one.detectable / DENSE) for one in none]))
        yield Line(f"no loss, perplexity, {n} windows: called different", found(none), RUNS, 0.03, 0.06)
        yield Line(f"interval of the ratio, {n} windows: holds the truth", _held(none), RUNS, 0.93, 1)
        drawn = many("perplexity", texts(n, rise), RUNS)
        yield Line(f"the detectable rise, {n} windows ({math.expm1(rise):.1%}): found", found(drawn), RUNS, 0.77, 0.83)
    for n in WINDOWS:
        yield Line(
            f"no loss, {n} windows, skewed", found(many("perplexity", texts(n, 0, skewed=True), RUNS)), RUNS, 0, 1
        )
        for lag in (0.1, 0.2, 0.3):
            share = found(many("perplexity", texts(n, 0, lag=lag), RUNS))
            yield Line(f"no loss, {n} windows, neighbours correlate by {lag}", share, RUNS, 0, 1)


DENSE = math.exp(3.2)


def _held(made: list[Comparison]) -> float:
    """How often the interval holds the truth, which is 0."""
    return float(np.mean([one.low <= 0 <= one.high for one in made]))


def main() -> int:
    print("| what | share | wanted | samples |\n|---|---|---|---|")
    lines = []
    parts = {part.__name__: part for part in (false_alarms, power, scores, rankings, retained, windows)}
    for name in sys.argv[1:] or parts:
        for line in parts[name]():
            print(line, flush=True)
            lines.append(line)
    return int(any(line.missed for line in lines))


if __name__ == "__main__":
    sys.exit(main())
