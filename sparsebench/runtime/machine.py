"""The machine while it measures: load, cores, threads, governor, clock; and how many threads a rank gets."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sparsebench import environment
from sparsebench.runtime.results import Machine, Setting


def threads_per_rank(setting: Setting) -> int:
    """The setting's own number, else an equal share of the usable cores, at least one."""
    return setting.threads or max(1, environment.cores() // setting.ranks_per_node)


def observe(threads: int) -> Machine:
    """The machine now; ``threads`` are those of one rank."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return Machine(
        load=os.getloadavg()[0],
        cores=os.cpu_count() or 1,
        affinity=environment.cores(),
        threads=threads,
        governor=governor.read_text().strip() if governor.is_file() else "",
        mhz=mhz(),
    )


def mhz(processors: Path = Path("/sys/devices/system/cpu"), info: Path = Path("/proc/cpuinfo")) -> float | None:
    """The processors' clock at this moment, the mean over them; None where the system does not tell."""
    found = []
    for file in processors.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        with suppress(OSError, ValueError):
            found.append(int(file.read_text()) / 1e3)
    if not found:
        with suppress(OSError):
            found = [float(line.split(":")[1]) for line in info.read_text().splitlines() if line.startswith("cpu MHz")]
    return sum(found) / len(found) if found else None
