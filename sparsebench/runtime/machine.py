"""The machine's state during a measurement: load, threads, clock, and what NVML says about its GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from sparsebench import environment
from sparsebench.energy import Unavailable, gpu_handle, nvml
from sparsebench.runtime.results import Machine, Setting

IDLE = 0x1
"""NVML's throttle reason for an idle GPU, which does not count as slowed down."""


def threads_per_rank(setting: Setting) -> int:
    """Return the setting's own number, else an equal share of the usable cores, at least one."""
    return setting.threads or max(1, environment.cores() // setting.ranks_per_node)


def observe(threads: int) -> Machine:
    """Read the machine's state now; ``threads`` are those of one rank."""
    return Machine(
        load=os.getloadavg()[0],
        cores=os.cpu_count() or 1,
        affinity=environment.cores(),
        threads=threads,
        governor=_content("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        mhz=mhz(),
        **processor_seconds(),
    )


def processor_seconds() -> dict[str, float]:
    """Return ``cpu_s`` and ``stolen_s`` of all processors since boot (proc(5)); empty where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        # user nice system idle iowait irq softirq steal; guest time is part of user
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        second = os.sysconf("SC_CLK_TCK")
        return {"cpu_s": sum(ticks) / second, "stolen_s": ticks[7] / second}
    return {}


def stolen(before: Machine, after: Machine) -> float | None:
    """Return the share of the processors' time between two states that a hypervisor gave to others; None if unknown."""
    if before.cpu_s is None or after.cpu_s is None or after.cpu_s <= before.cpu_s:
        return None
    return ((after.stolen_s or 0.0) - (before.stolen_s or 0.0)) / (after.cpu_s - before.cpu_s)


def placement() -> str:
    """Describe what decides where in memory a model is and where it runs, as far as the system says it."""
    huge_pages = re.search(r"\[(\w+)\]", _content("/sys/kernel/mm/transparent_hugepage/enabled"))
    aslr = _content("/proc/sys/kernel/randomize_va_space")
    smt = _content("/sys/devices/system/cpu/smt/active")
    binding = os.environ.get("OMP_PROC_BIND") or os.environ.get("GOMP_CPU_AFFINITY")
    facts = [
        f"transparent huge pages {huge_pages[1]}" if huge_pages else "",
        f"NUMA nodes {nodes}" if (nodes := _content("/sys/devices/system/node/online")) else "",
        f"hyper-threading {'on' if smt == '1' else 'off'}" if smt else "",
        f"address space {'fixed' if aslr == '0' else 'random'}" if aslr else "",
        f"threads bound ({binding})" if binding else "threads unbound",
    ]
    return ", ".join(filter(None, facts))


def _content(file: str) -> str:
    """Return what a file of the system's says; "" where it cannot be read."""
    with suppress(OSError):
        return Path(file).read_text().strip()
    return ""


def mhz(processors: Path = Path("/sys/devices/system/cpu"), info: Path = Path("/proc/cpuinfo")) -> float | None:
    """Return the mean clock of the processors now, in MHz; None where the system does not say."""
    clocks = []
    for file in processors.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with suppress(OSError, ValueError):
            clocks.append(int(file.read_text()) / 1e3)
    if not clocks:
        with suppress(OSError):
            clocks = [float(line.split(":")[1]) for line in info.read_text().splitlines() if line.startswith("cpu MHz")]
    return fmean(clocks) if clocks else None


def gpu_state(indices: Sequence[int]) -> str:
    """Describe the GPUs' clocks, power caps and throttle reasons: ``GPU 0: 1980 of 1980 MHz, 700 W at most``.

    Return "" where NVML does not say.
    """
    states = []
    try:
        with nvml() as library:
            for index in indices:
                device = gpu_handle(library, index)
                clock, highest_clock = (
                    ask(device, library.NVML_CLOCK_SM)
                    for ask in (library.nvmlDeviceGetClockInfo, library.nvmlDeviceGetMaxClockInfo)
                )
                power_limit = library.nvmlDeviceGetEnforcedPowerLimit(device) / 1e3
                reasons = library.nvmlDeviceGetCurrentClocksThrottleReasons(device) & ~IDLE
                slowdown = f", slowed down (NVML's reasons {reasons:#x})" if reasons else ""
                states.append(f"GPU {index}: {clock} of {highest_clock} MHz, {power_limit:.0f} W at most{slowdown}")
    except Unavailable:
        return ""
    return "; ".join(states)


def process_gpu_bytes(index: int) -> int | None:
    """Return the bytes that this process holds on a GPU, with CUDA's context and kernels, which torch does not count.

    Return None without NVML, and in a container, where NVML knows processes by other numbers.
    """
    try:
        with nvml() as library:
            running = library.nvmlDeviceGetComputeRunningProcesses(gpu_handle(library, index))
            return next((process.usedGpuMemory for process in running if process.pid == os.getpid()), None)
    except Unavailable:
        return None
