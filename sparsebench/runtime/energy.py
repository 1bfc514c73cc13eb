"""Joules of the whole machine, from the processor's own counters (RAPL) or the GPU's (NVML), where they can be read.

RAPL counts each processor package with all that runs on it, other programs included, and without the memory modules
unless the package's counter holds them. Linux shows AMD's counters under Intel's name. Only root may read them by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparsebench.runtime import nvml

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """Counts from when it was made or last read."""

    source: str

    def joules(self) -> float | None:
        """Joules since the last call; None where there is no counter."""


@dataclass
class Nothing:
    """No counter, and why."""

    source: str

    def joules(self) -> None:
        """None, whenever it is asked."""


@dataclass
class Domain:
    """One RAPL counter: microjoules that start again at 0 after ``limit``."""

    name: str
    file: Path
    limit: int
    last: int


class Rapl:
    """The sum over all packages."""

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
    """The GPUs' own counters, in millijoules since the driver was loaded."""

    def __init__(self, library: Any, devices: list[Any]) -> None:
        self.library, self.devices = library, devices
        self.source = f"NVML, {len(devices)} GPU{'s' * (len(devices) > 1)}"
        self.last = self._read()

    def joules(self) -> float:
        before, self.last = self.last, self._read()
        return (self.last - before) / 1e3

    def _read(self) -> int:
        return sum(self.library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices)


def meter(device: str, ranks: int = 1, powercap: Path | None = None) -> Meter:
    """The counter for what runs on ``device`` (cpu, or cuda with a GPU for each of ``ranks``)."""
    return _nvml(ranks) if device.startswith("cuda") else _rapl(powercap or POWERCAP)


def _rapl(powercap: Path) -> Meter:
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


def _nvml(ranks: int) -> Meter:
    try:
        with nvml.library() as library:
            return Nvml(library, [nvml.device(library, index) for index in range(ranks)])
    except nvml.Unavailable as error:
        return Nothing(f"none: {error}")
