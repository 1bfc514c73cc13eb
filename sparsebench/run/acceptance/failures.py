"""Checks that what cannot go on says so: a killed rank, a model that does not fit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from sparsebench import devices
from sparsebench.errors import MeasureError
from sparsebench.run.acceptance.bench import GIB, Bench, CheckResult, CheckSkipped
from sparsebench.runtime import Setting, Workload, measure_memory
from sparsebench.runtime.footprint import working_bytes
from sparsebench.runtime.group import RankGroup


def killed(bench: Bench) -> CheckResult:
    """Check that a rank killed while another waits for it is named at once, and that its GPU memory is freed."""
    ranks = bench.several[0]
    folder, family = bench.model("opt")
    setting = bench.setting("deepspeed", ranks, phase_seconds=2.0, samples=10_000)
    spec = {
        "job": "latency", "dense": str(folder), "variants": [(0, str(folder))], "baseline": False, "family": family,
    }  # fmt: skip
    before = devices.free_memory(bench.device)
    sent = 0.0
    try:
        with RankGroup(spec, setting) as group:
            for message in group.messages():
                if message["kind"] == "progress" and not sent:
                    sent = time.monotonic()
                    os.kill(group.here.processes[1].pid, signal.SIGKILL)
    except MeasureError as error:
        if not sent:  # the ranks failed before one was killed
            raise
        took = time.monotonic() - sent
        after = devices.free_memory(bench.device)
        named = f"rank 1 of {ranks} died of SIGKILL" in error.message
        freed = before is None or after is None or after > before - GIB // 4  # a process left behind would hold more
        return named and took <= 10 and freed, f"{error.message.splitlines()[0]}, after {took:.1f} s", {"seconds": took}
    return False, "the killed rank was not noticed", {}


def too_large(bench: Bench) -> CheckResult:
    """Check that what cannot fit is refused before it starts, with a way out: on a GPU, more ranks.

    A pair that cannot fit must be timed apart.
    """
    folder, family = bench.model("opt")
    if not bench.gpu:
        return _refused(folder, family, bench.setting("hf", workload=Workload(10**8, 32, 4)), "ranks")
    import torch

    torch.cuda.empty_cache()
    free, need = devices.free_memory(bench.device, 1), working_bytes(folder, bench.setting("hf"))
    if free is None:
        raise CheckSkipped("the driver does not report free memory")
    taken = torch.empty(int(free - 0.5 * need), dtype=torch.uint8, device="cuda")
    passed, detail, _ = _refused(folder, family, bench.setting("hf"), "more ranks")
    del taken
    torch.cuda.empty_cache()
    taken = torch.empty(int(free - 1.9 * need), dtype=torch.uint8, device="cuda")
    baseline = bench.latency(folder, "opt", "hf").baseline
    del taken
    torch.cuda.empty_cache()
    return bool(passed) and baseline == "unpaired", f"{detail}; a pair that does not fit is timed {baseline}", {}


def _refused(folder: Path, family: Any, setting: Setting, words: str) -> CheckResult:
    try:
        measure_memory(folder, family, setting)
    except MeasureError as error:
        return words in (error.hint or ""), f"{error.message}; {error.hint}", {}
    return False, "it was measured, not refused", {}
