"""Fifteen checks that this program does what it says on a machine's GPUs: random weights, offline, in minutes.

``--device cpu`` runs the checks that mean something on a CPU, on small models, so that the checks themselves are tested
where there is no GPU.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.run.acceptance import engines, failures, hardware, instruments, numerics, parallel
from sparsebench.run.acceptance.bench import Bench, CheckResult, CheckSkipped

CHECKS: dict[str, Callable[[Bench], CheckResult]] = {
    "the driver and torch see the same GPUs": hardware.visible,
    "copy and product reach the card's speed": hardware.throughput,
    "time is measured right": instruments.clock,
    "memory is measured right": instruments.peaks,
    "engines at one rank": engines.one_rank,
    "deepspeed at several ranks": parallel.tensor_parallel,
    "ZeRO-3 at one rank and two": parallel.zero3,
    "the sparse engine": engines.sparse,
    "quantized weights": engines.quantized,
    "a model against itself": engines.against_itself,
    "a killed rank is named": failures.killed,
    "a model that does not fit is refused": failures.too_large,
    "scoring": numerics.scoring,
    "pruning": numerics.pruning,
    "energy": instruments.energy,
}
"""The checks by what they check, in the order of their numbers."""


@dataclass(frozen=True)
class Check:
    """One check: ``verdict`` is yes, no or skip, ``detail`` says what was seen, ``numbers`` are what it was judged by."""

    number: int
    what: str
    verdict: str
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def run_checks(device: str, ranks: int) -> Iterator[Check]:
    """Run every check in turn on a resolved ``device`` with at most ``ranks`` ranks.

    A check that ends in an error says no, and the next ones go on.
    """
    with tempfile.TemporaryDirectory(prefix="sparsebench-doctor-") as folder:
        bench = Bench(device, ranks, Path(folder))
        if bench.gpu:
            import torch

            torch.cuda.set_device(torch.device(device).index or 0)  # code that names no GPU then uses this one
        for number, (what, check) in enumerate(CHECKS.items(), 1):
            started = time.perf_counter()
            numbers: dict[str, Any] = {}
            try:
                passed, detail, numbers = check(bench)
                verdict = "skip" if passed is None else "yes" if passed else "no"
            except CheckSkipped as reason:
                verdict, detail = "skip", str(reason)
            except Exception as error:  # whatever it is, it is the check's result, and the next checks matter too
                verdict, detail = "no", " ".join(f"{type(error).__name__}: {error}".split())[:400]
            yield Check(number, what, verdict, detail, numbers, round(time.perf_counter() - started, 2))


def report(device: str, checks: list[Check]) -> dict[str, Any]:
    """Return the content of gpu-acceptance.json."""
    return {
        "where": environment.where(device),
        "environment": environment.as_json(device),
        "checks": [*map(_stored, checks)],
    }


def _stored(check: Check) -> dict[str, Any]:
    """Return a check as JSON, which has no infinity and no NaN: such a number is null, and ``not_finite`` names it."""
    numbers = check.numbers
    lost = {key: str(one) for key, one in numbers.items() if isinstance(one, float) and not math.isfinite(one)}
    return asdict(check) | {"numbers": numbers | dict.fromkeys(lost)} | ({"not_finite": lost} if lost else {})
