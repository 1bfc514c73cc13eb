"""Checks that the GPU is seen, and that time, memory and energy are measured right, each against another way to know it."""

from __future__ import annotations

import time

import torch

from sparsebench import devices
from sparsebench.energy import Unavailable, energy_meter, gpu_handle, nvml
from sparsebench.run.gpu.bench import Bench, CheckResult, CheckSkipped
from sparsebench.runtime.latency import RankSync
from sparsebench.runtime.memory import MemoryMeter


def visible(bench: Bench) -> CheckResult:
    """Check that torch sees all GPUs that the driver lists; note what else decides whether anything works."""
    bench.need_gpu()
    listed_count, seen_count = len(devices.visible_gpus()), torch.cuda.device_count()
    return listed_count == seen_count > 0, {
        "listed": listed_count, "seen": seen_count, "cuda": devices.cuda_version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())), "cusparselt": torch.backends.cusparselt.is_available(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
    }  # fmt: skip


def clock(bench: Bench) -> CheckResult:
    """Check a sleeping step's time against the GPU's events; without waiting for the GPU it must come out wrong."""
    bench.need_gpu()
    cycles = 200_000_000
    torch.cuda._sleep(cycles)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step() -> None:
        first.record()
        torch.cuda._sleep(cycles)
        last.record()

    _, (wall, _) = RankSync(1, True).timed(step)
    torch.cuda.synchronize()
    events = first.elapsed_time(last) / 1e3
    _, (blind, _) = RankSync(1, False).timed(step)
    torch.cuda.synchronize()
    numbers = {"wall_s": wall, "events_s": events, "without_waiting_s": blind}
    return abs(wall / events - 1) < 0.03 and blind < 0.5 * events, numbers


def peaks(bench: Bench) -> CheckResult:
    """Take memory in one phase and none in the next, and check that the peaks say so."""
    size = 2**30 if bench.gpu else 2**28
    # What libraries such as cuBLAS hold on the GPU by now does not belong to the phase.
    held_before = torch.cuda.memory_allocated() if bench.gpu else 0
    phases = MemoryMeter(0, bench.device)
    with phases.phase("taken"):
        block = torch.ones(size, dtype=torch.uint8, device=bench.device)
        del block
    with phases.phase("nothing"):
        pass
    taking, resting = phases.memories
    taken_bytes = taking.peak_bytes - held_before
    later_bytes = ((resting.cuda_reserved_bytes if bench.gpu else resting.peak_bytes) or 0) - held_before
    tolerance = 2 * 2**20 if bench.gpu else size // 16
    numbers = {"size": size, "taken_bytes": taken_bytes, "nothing_bytes": later_bytes}
    return abs(taken_bytes - size) <= tolerance and later_bytes < size // 2, numbers


def energy(bench: Bench) -> CheckResult:
    """Check over five seconds of load that the counter's joules are the power that the card shows, times the time."""
    bench.need_gpu()  # few users may read a CPU's counter
    counter, index = energy_meter(bench.device), torch.device(bench.device).index or 0
    if not counter.has_counter:
        raise CheckSkipped(counter.source)
    matrix = torch.randn(8192, 8192, device=bench.device).to(torch.bfloat16)

    def load() -> float:
        (matrix @ matrix).sum()
        torch.cuda.synchronize()
        return time.perf_counter()

    started, powers = load(), []
    while load() - started < 2:  # a card shows the power of the last second
        pass
    started = load()
    counter.take_joules()
    try:
        while (now := load()) - started < 5:
            with nvml() as library:
                powers.append(library.nvmlDeviceGetPowerUsage(gpu_handle(library, index)) / 1e3)
    except Unavailable as error:
        raise CheckSkipped(str(error)) from error
    joules = counter.take_joules() or 0.0
    power_joules = (now - started) * sum(powers) / len(powers)
    return abs(joules / power_joules - 1) <= 0.15, {"joules": joules, "power_times_seconds": power_joules}
