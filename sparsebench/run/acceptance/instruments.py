"""Checks that time, memory and energy are measured right, each against another way to know it."""

from __future__ import annotations

import time

from sparsebench.run.acceptance.bench import GIB, Bench, CheckResult, CheckSkipped
from sparsebench.runtime.latency import Peers


def clock(bench: Bench) -> CheckResult:
    """Check a sleeping step's time against another clock; without waiting for the GPU it must come out wrong."""
    import torch

    if not bench.gpu:
        started = time.monotonic()
        _, (wall, _) = Peers(1, False).timed(lambda: time.sleep(0.2))
        ratio = wall / (other := time.monotonic() - started)
        return abs(ratio - 1) < 0.03, f"{wall * 1e3:.1f} ms, {other * 1e3:.1f} ms by another clock", {"ratio": ratio}
    cycles = 200_000_000
    torch.cuda._sleep(cycles)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step() -> None:
        first.record()
        torch.cuda._sleep(cycles)
        last.record()

    _, (wall, _) = Peers(1, True).timed(step)
    torch.cuda.synchronize()
    events = first.elapsed_time(last) / 1e3
    _, (blind, _) = Peers(1, False).timed(step)
    torch.cuda.synchronize()
    numbers = {"wall_s": wall, "events_s": events, "without_waiting_s": blind}
    right = abs(wall / events - 1) < 0.03 and blind < 0.5 * events
    said = f"{wall * 1e3:.1f} ms, {events * 1e3:.1f} by the GPU's events, {blind * 1e3:.1f} without waiting"
    return right, said, numbers


def peaks(bench: Bench) -> CheckResult:
    """Take memory in one phase and none in the next, and check that the peaks say so."""
    import torch

    from sparsebench.runtime.memory import Meter

    size = GIB if bench.gpu else 2**28
    # What libraries such as cuBLAS hold on the GPU by now does not belong to the phase.
    before = torch.cuda.memory_allocated() if bench.gpu else 0
    meter = Meter(0, bench.device)
    with meter.phase("taken"):
        block = torch.ones(size, dtype=torch.uint8, device=bench.device)
        del block
    with meter.phase("nothing"):
        pass
    full, empty = meter.rows
    taken = (full.peak_bytes or 0) - before
    nothing = ((empty.cuda_reserved_bytes if bench.gpu else empty.peak_bytes) or 0) - before
    numbers = {"taken_bytes": taken, "nothing_bytes": nothing}
    room = 2 * 2**20 if bench.gpu else size // 16
    right = abs(taken - size) <= room and nothing < size // 2
    return right, f"{taken / 2**20:.1f} of {size / 2**20:.0f} MiB taken, then {nothing / 2**20:.1f} MiB", numbers


def energy(bench: Bench) -> CheckResult:
    """Check over five seconds of load that the counter's joules are the power that the card shows, times the time."""
    if not bench.gpu:
        raise CheckSkipped("a CPU is examined: few users may read its energy counter")
    import torch

    from sparsebench.energy import Unavailable, gpu, meter, nvml

    counter, index = meter(bench.device), torch.device(bench.device).index or 0
    if not counter.counts:
        raise CheckSkipped(counter.source)
    x = torch.randn(8192, 8192, device="cuda").to(torch.bfloat16)

    def load() -> None:
        nonlocal x
        x = (x @ x).clamp_(-1, 1)
        torch.cuda.synchronize()

    powers, warm = [], time.perf_counter()
    while time.perf_counter() - warm < 2:  # a card shows the power of the last second
        load()
    started = time.perf_counter()
    counter.joules()
    try:
        while (took := time.perf_counter() - started) < 5:
            load()
            with nvml() as library:
                powers.append(library.nvmlDeviceGetPowerUsage(gpu(library, index)) / 1e3)
    except Unavailable as error:
        raise CheckSkipped(str(error)) from error
    joules = counter.joules() or 0.0
    wanted = took * sum(powers) / len(powers)
    ratio = joules / wanted
    return abs(ratio - 1) <= 0.15, f"{joules:.0f} J counted, {wanted:.0f} J by power and time", {"ratio": ratio}
