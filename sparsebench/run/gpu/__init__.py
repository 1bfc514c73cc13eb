"""Thirteen checks that this program does what it says on a machine's GPUs: random weights, offline, in minutes.

``doctor --gpu`` runs them, and so do the tests of GPUs. On a CPU those run that mean something there, on small models.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.run.gpu import instruments, models, numerics
from sparsebench.run.gpu.bench import Bench, CheckResult, CheckSkipped

CHECKS: dict[str, Callable[[Bench], CheckResult]] = {
    "the driver and torch see the same GPUs": instruments.visible,
    "time is measured right": instruments.clock,
    "memory is measured right": instruments.peaks,
    "engines at one rank": models.one_rank,
    "deepspeed at several ranks": models.tensor_parallel,
    "ZeRO-3 at one rank and two": models.zero3,
    "the sparse engine": models.sparse,
    "a model against itself": models.against_itself,
    "a killed rank is named": models.killed,
    "a model that does not fit is refused": models.too_large,
    "scoring": numerics.scoring,
    "pruning": numerics.pruning,
    "energy": instruments.energy,
}
"""The checks by what they check, in the order of their numbers."""


@dataclass(frozen=True)
class Check:
    """One check: ``verdict`` is yes, no or skip, ``numbers`` are what it was judged by, ``reason`` why it was not.

    Numbers that JSON does not have, such as infinity, are words.
    """

    number: int
    what: str
    verdict: str
    numbers: dict[str, Any]
    reason: str
    seconds: float

    @property
    def detail(self) -> str:
        """What was seen, in words."""
        numbers_in_words = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in self.numbers.items()
        )
        return self.reason or ", ".join(numbers_in_words)


def run_checks(device: str, ranks: int) -> Iterator[Check]:
    """Run every check in turn on a resolved ``device`` with at most ``ranks`` ranks.

    A check that ends in an error says no, and the next ones go on.
    """
    with tempfile.TemporaryDirectory(prefix="sparsebench-doctor-") as folder:
        bench = Bench(device, ranks, Path(folder))
        bench.select_gpu()
        for number, (title, check) in enumerate(CHECKS.items(), 1):
            started = time.perf_counter()
            numbers: dict[str, Any] = {}
            reason = ""
            try:
                passed, numbers = check(bench)
                verdict = "yes" if passed else "no"
            except CheckSkipped as skipped:
                verdict, reason = "skip", str(skipped)
            except Exception as error:  # whatever it is, it is the check's result, and the next checks matter too
                verdict, reason = "no", " ".join(f"{type(error).__name__}: {error}".split())[:400]
            for key, value in numbers.items():
                numbers[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
            yield Check(number, title, verdict, numbers, reason, round(time.perf_counter() - started, 2))


def report(device: str, checks: list[Check]) -> dict[str, Any]:
    """Return the content of gpu-acceptance.json."""
    return {
        "where": environment.place(device),
        "environment": environment.environment_record(device),
        "checks": [asdict(check) for check in checks],
    }
