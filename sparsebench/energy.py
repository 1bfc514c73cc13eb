"""Joules from the machine's own counters: RAPL for its processors, NVML for its GPUs.

RAPL counts each processor package with everything that runs on it, other programs included. Memory modules count only
where the package's counter includes them. Linux shows AMD's counters under Intel's name. By default only root may read
them. NVML ignores CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsebench import devices

POWERCAP = Path("/sys/class/powercap")
SECONDS = 20.0
"""How often a counter is read while something long runs: RAPL's counters start again at 0 after a minute or more."""
UNCOUNTED = "none: a part of the training, before it was resumed, was not counted"


class Unavailable(Exception):
    """There is no NVML here, or a counter cannot be read; the message says why."""


@contextmanager
def nvml() -> Iterator[Any]:
    """Yield the library, ready for use. Raises Unavailable, also for errors of calls inside the block."""
    try:
        import pynvml
    except ImportError:
        raise Unavailable("nvidia-ml-py is not installed (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()  # repeated calls cost nothing; it is never shut down, since handles stay in use
        yield pynvml
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML says: {error}") from error


def gpu(library: Any, index: int) -> Any:
    """Return NVML's handle of the GPU that torch counts as ``index``."""
    import torch

    return library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


@dataclass
class NoMeter:
    """No counter; ``source`` says why."""

    source: str
    window = 0.0

    def joules(self) -> None:
        """Return None, as there is no counter."""


@dataclass
class Domain:
    """One RAPL counter: microjoules that start again at 0 after ``limit``."""

    name: str
    file: Path
    limit: int
    last: int


class Rapl:
    """The sum of the counters of all processor packages."""

    window = 0.0

    def __init__(self, domains: list[Domain]) -> None:
        self.domains = domains
        self.source = "RAPL " + ", ".join(domain.name for domain in domains)

    def joules(self) -> float:
        """Return the joules since it was made or last read. Raises Unavailable.

        A counter that has wrapped is smaller than before. It wraps at most once between readings, since that takes a
        minute or more.
        """
        total = 0
        for domain in self.domains:
            try:
                now = int(domain.file.read_text())
            except (OSError, ValueError) as error:
                raise Unavailable(f"{domain.file} cannot be read any more: {error}") from error
            spent = now - domain.last
            total += spent if spent >= 0 else spent + domain.limit + 1
            domain.last = now
        return total / 1e6


class Nvml:
    """The GPUs' own counters, in millijoules since the driver was loaded.

    ``window`` is the shortest measurement that is meaningful, in seconds: the counters move every 10 ms or slower, and
    show a mean over a longer time.
    """

    window = 2.0

    def __init__(self, devices: list[Any]) -> None:
        self.devices = devices
        self.source = f"NVML, {len(devices)} GPU{'s' * (len(devices) > 1)}"
        self.last = self._read()

    def joules(self) -> float:
        """Return the joules since it was made or last read. Raises Unavailable."""
        before, self.last = self.last, self._read()
        return (self.last - before) / 1e3

    def _read(self) -> int:
        with nvml() as library:
            return sum(library.nvmlDeviceGetTotalEnergyConsumption(device) for device in self.devices)


class EnergyMeter:
    """A counter that is dropped once it cannot be read any more: what is being measured goes on without it."""

    def __init__(self, counter: NoMeter | Rapl | Nvml) -> None:
        self._counter = counter

    @property
    def source(self) -> str:
        """The counter, or why there is none."""
        return self._counter.source

    @property
    def window(self) -> float:
        """The shortest measurement that is meaningful, in seconds."""
        return self._counter.window

    @property
    def counts(self) -> bool:
        """Whether there is a counter."""
        return not isinstance(self._counter, NoMeter)

    def joules(self) -> float | None:
        """Return the joules since it was made or last read; None where there is no counter."""
        try:
            return self._counter.joules()
        except Unavailable as error:
            self._counter = NoMeter(f"none: {error}")
            return None


def meter(device: str, ranks: int = 1) -> EnergyMeter:
    """Return the counter for what runs on ``device`` (cpu, or cuda with a GPU for each of ``ranks``)."""
    return EnergyMeter(_counter(device, ranks))


def _counter(device: str, ranks: int) -> NoMeter | Rapl | Nvml:
    if not devices.is_gpu(device):
        return _rapl()
    try:
        with nvml() as library:
            first = int(device.partition(":")[2] or 0)
            return Nvml([gpu(library, index) for index in range(first, first + ranks)])
    except Unavailable as error:
        return NoMeter(f"none: {error}")


def _rapl() -> NoMeter | Rapl:
    """Return the counters of the packages, which are the top level of the tree.

    What lies under a package is part of it, and ``psys`` holds them all.
    """
    domains = []
    for zone in sorted(POWERCAP.glob("intel-rapl:*")):
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
            return NoMeter(f"none: only root may read {zone / 'energy_uj'}")
        except (OSError, ValueError) as error:
            return NoMeter(f"none: {zone} cannot be read: {error}")
    return Rapl(domains) if domains else NoMeter(f"none: no RAPL counters in {POWERCAP}")


class JouleCounter:
    """The joules since it was made, from a meter that is read again and again."""

    def __init__(self, meter: EnergyMeter) -> None:
        self.meter = meter
        self._lock, self._total = threading.Lock(), 0.0

    @property
    def source(self) -> str:
        """The counter, or why there is none."""
        return self.meter.source

    def joules(self) -> float | None:
        """Return the joules until now; None where there is no counter, or it failed meanwhile."""
        with self._lock:
            joules = self.meter.joules()
            self._total += joules or 0.0
            return None if joules is None else self._total


@contextmanager
def spending(device: str) -> Iterator[JouleCounter]:
    """Count the joules of ``device`` while the block runs; a thread reads the counter every ``SECONDS``."""
    spent, done = JouleCounter(meter(device)), threading.Event()

    def read() -> None:
        while not done.wait(SECONDS):
            spent.joules()

    if not spent.meter.counts:
        yield spent
        return
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield spent
    finally:
        done.set()
        thread.join()
