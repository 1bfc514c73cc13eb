"""Joules by the machine's own counters: RAPL's of its processors, NVML's of its GPUs.

RAPL counts each processor package with all that runs on it, other programs included, and without the memory modules
unless the package's counter holds them. Linux shows AMD's counters under Intel's name. Only root may read them by default.
NVML does not heed CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
SECONDS = 20.0
"""How often a counter is read while something long runs: one of RAPL's starts again after a minute or more."""


class Unavailable(Exception):
    """There is no NVML here, or it refuses; the message says why."""


@contextmanager
def nvml() -> Iterator[Any]:
    """The library, ready for use. Raises Unavailable, for what is asked of it inside too."""
    try:
        import pynvml
    except ImportError:
        raise Unavailable("nvidia-ml-py is not installed (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()  # once more each time is free; it is never shut down, for handles stay in use
        yield pynvml
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML says: {error}") from error


def gpu(library: Any, index: int) -> Any:
    """The GPU that torch counts as ``index``."""
    import torch

    return library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


@dataclass
class Nothing:
    """No counter, and why."""

    source: str
    window = 0.0

    def joules(self) -> None:
        """Joules since the meter was made or last read; None where there is no counter."""


@dataclass
class Domain:
    """One RAPL counter: microjoules that start again at 0 after ``limit``."""

    name: str
    file: Path
    limit: int
    last: int


class Rapl:
    """The sum over all packages."""

    window = 0.0

    def __init__(self, domains: list[Domain]) -> None:
        self.domains = domains
        self.source = "RAPL " + ", ".join(domain.name for domain in domains)

    def joules(self) -> float:
        """A counter that has wrapped since is smaller than it was: once at most, in a minute or more at full load."""
        total = 0
        for domain in self.domains:
            now = int(domain.file.read_text())
            spent = now - domain.last
            total += spent if spent >= 0 else spent + domain.limit + 1
            domain.last = now
        return total / 1e6


class Nvml:
    """The GPUs' own counters, in millijoules since the driver was loaded; ``window`` is the least time, in seconds, that says
    something: they move every 10 ms or slower, and what they show is a mean of longer."""

    window = 2.0

    def __init__(self, library: Any, devices: list[Any]) -> None:
        self.library, self.devices = library, devices
        self.source = f"NVML, {len(devices)} GPU{'s' * (len(devices) > 1)}"
        self.last = self._read()

    def joules(self) -> float:
        before, self.last = self.last, self._read()
        return (self.last - before) / 1e3

    def _read(self) -> int:
        return sum(self.library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices)


EnergyMeter = Nothing | Rapl | Nvml


def meter(device: str, ranks: int = 1, powercap: Path | None = None) -> EnergyMeter:
    """The counter for what runs on ``device`` (cpu, or cuda with a GPU for each of ``ranks``)."""
    if not device.startswith("cuda"):
        return _rapl(powercap or POWERCAP)
    try:
        with nvml() as library:
            return Nvml(library, [gpu(library, index) for index in range(ranks)])
    except Unavailable as error:
        return Nothing(f"none: {error}")


def _rapl(powercap: Path) -> EnergyMeter:
    """Packages are the top level of the tree; what lies under one is part of it, and ``psys`` holds them all."""
    domains, reason = [], f"no RAPL counters in {powercap}"
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") != 1:
            continue
        try:
            name = (zone / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            file = zone / "energy_uj"
            limit = int((zone / "max_energy_range_uj").read_text())
            domains.append(Domain(name, file, limit, int(file.read_text())))
        except PermissionError:
            return Nothing(f"none: only root may read {zone / 'energy_uj'}")
        except (OSError, ValueError) as error:
            reason = f"{zone} cannot be read: {error}"
    return Rapl(domains) if domains else Nothing(f"none: {reason}")


class Spent:
    """Joules since it was made, of a meter that is read again and again."""

    def __init__(self, meter: EnergyMeter) -> None:
        self.meter, self.source = meter, meter.source
        self._lock, self._total = threading.Lock(), 0.0

    def joules(self) -> float | None:
        """Until now; None where there is no counter, and ``source`` says why."""
        with self._lock:
            found = self.meter.joules()
            self._total += found or 0.0
            return None if found is None else self._total


@contextmanager
def spending(device: str) -> Iterator[Spent]:
    """Count what ``device`` takes while the block runs, on a thread that only reads the counter every ``SECONDS``."""
    spent, done = Spent(meter(device)), threading.Event()

    def read() -> None:
        while not done.wait(SECONDS):
            spent.joules()

    if isinstance(spent.meter, Nothing):
        yield spent
        return
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        done.set()
        thread.join()
