"""Sixteen checks of a machine's GPUs: does what this program does there do what it says? Random weights, offline, minutes.

``--device cpu`` runs those that mean something on a CPU, on small models, so that the checks themselves are checked where there
is no GPU.
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
from sparsebench.runtime.hosts import Hosts

CHECKS: dict[str, Callable[[Bench], CheckResult]] = {
    "the driver and torch see the same GPUs": hardware.visible,
    "a copy and a product are as fast as the card": hardware.throughput,
    "time is measured right": instruments.clock,
    "memory is measured right": instruments.peaks,
    "engines at one rank": engines.one_rank,
    "deepspeed at several ranks": parallel.tensor_parallel,
    "ZeRO-3 at one rank and two": parallel.zero3,
    "the sparse engine": engines.sparse,
    "quantized weights": engines.quantized,
    "a model against itself": engines.against_itself,
    "a killed rank is named": failures.killed,
    "what does not fit is refused": failures.too_large,
    "scoring": numerics.scoring,
    "pruning": numerics.pruning,
    "energy": instruments.energy,
    "several nodes": parallel.several_nodes,
}
"""By what is checked, in the order of their numbers."""


@dataclass(frozen=True)
class Check:
    """One check: ``verdict`` is yes, no or skip, ``detail`` says what was seen, ``numbers`` are what it was judged by."""

    number: int
    what: str
    verdict: str
    detail: str
    numbers: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def run_checks(device: str, ranks: int, nodes: Hosts = ()) -> Iterator[Check]:
    """Every check in turn on a resolved ``device`` with at most so many ranks, the last one on other ``nodes``; one that fails
    with an error says no, and the next ones go on."""
    with tempfile.TemporaryDirectory(prefix="sparsebench-doctor-") as folder:
        bench = Bench(device, ranks, Path(folder), nodes)
        if bench.gpu:
            import torch

            torch.cuda.set_device(device)  # what names no GPU means this one
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
    """What gpu-acceptance.json holds."""
    return {
        "where": environment.where(device),
        "environment": environment.as_json(device),
        "checks": [*map(_stored, checks)],
    }


def _stored(check: Check) -> dict[str, Any]:
    """A check as JSON, which has no infinity and no NaN: such a number is null, and ``not_finite`` says which it was."""
    numbers = check.numbers
    lost = {key: str(one) for key, one in numbers.items() if isinstance(one, float) and not math.isfinite(one)}
    return asdict(check) | {"numbers": numbers | dict.fromkeys(lost)} | ({"not_finite": lost} if lost else {})
