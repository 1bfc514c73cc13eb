"""Joules from the machine's own counters: RAPL for its processors, NVML for its GPUs.

RAPL counts each processor package with everything that runs on it, other programs included. Memory modules count only
where the package's counter includes them. Linux shows AMD's counters under Intel's name. By default only root may read
them. NVML ignores CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsebench import devices

POWERCAP = Path("/sys/class/powercap")
READING_SECONDS = 20.0
"""How often a counter is read while something long runs: RAPL's counters start again at 0 after a minute or more."""
_UNCOUNTED = "none: a part of the training, before it was resumed, was not counted"


def joules_in_all(earlier: float | None, joules: float | None) -> float | None:
    """Return the joules of two processes that did one training; None where one of them had no counter."""
    return None if earlier is None or joules is None else earlier + joules


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


def gpu_handle(library: Any, index: int) -> Any:
    """Return NVML's handle of the GPU that torch counts as ``index``."""
    import torch

    return library.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


class EnergyMeter:
    """Counters of joules, or none: ``source`` says which, or why not.

    ``read`` returns the counters' values, in ``unit`` joules. A counter starts again at 0 after its limit, and at most
    once between readings, since that takes a minute or more; one whose limit is 0 never does. ``window_seconds`` is the
    shortest measurement that is meaningful. Counters that cannot be read any more are dropped: what is being measured
    goes on without them.
    """

    def __init__(
        self,
        source: str,
        read: Callable[[], list[int]] | None = None,
        unit: float = 1.0,
        limits: Sequence[int] = (),
        window_seconds: float = 0.0,
    ) -> None:
        self.source, self.window_seconds = source, window_seconds
        self._read, self._unit, self._limits = read, unit, limits
        self._last = read() if read else []
        self._lock, self._total = threading.Lock(), 0.0

    @property
    def has_counter(self) -> bool:
        """Whether there is a counter."""
        return self._read is not None

    def source_of(self, joules: float | None) -> str:
        """Return where the ``joules`` of a training come from, or why there are none although there is a counter."""
        return _UNCOUNTED if joules is None and self.has_counter else self.source

    def take_joules(self) -> float | None:
        """Return the joules since it was made or last asked; None where there is no counter."""
        with self._lock:
            if self._read is None:
                return None
            try:
                counters = self._read()
                changes = [now - before for now, before in zip(counters, self._last, strict=True)]
                if any(change < 0 and not limit for change, limit in zip(changes, self._limits, strict=True)):
                    raise Unavailable("a counter started again")
            except Unavailable as error:
                self.source, self.window_seconds, self._read = f"none: {error}", 0.0, None
                return None
            increase = sum(
                change if change >= 0 else change + limit + 1
                for change, limit in zip(changes, self._limits, strict=True)
            )
            self._last = counters
            self._total += increase * self._unit
            return increase * self._unit

    def total(self) -> float | None:
        """Return the joules since it was made; None where there is no counter, or it failed meanwhile."""
        return None if self.take_joules() is None else self._total


def energy_meter(device: str, ranks: int = 1) -> EnergyMeter:
    """Return the counters for what runs on ``device`` (cpu, or cuda with a GPU for each of ``ranks``)."""
    try:
        return _nvml(device, ranks) if devices.is_gpu(device) else _rapl()
    except Unavailable as error:
        return EnergyMeter(f"none: {error}")


def _nvml(device: str, ranks: int) -> EnergyMeter:
    """Return the GPUs' own counters: millijoules, moved every 10 ms or slower, of a mean over a longer time."""
    first = int(device.partition(":")[2] or 0)
    with nvml() as library:
        handles = [gpu_handle(library, index) for index in range(first, first + ranks)]

    def read() -> list[int]:
        with nvml() as library:
            return [library.nvmlDeviceGetTotalEnergyConsumption(handle) for handle in handles]

    return EnergyMeter(f"NVML, {ranks} GPU{'s' * (ranks > 1)}", read, 1e-3, [0] * ranks, window_seconds=2.0)


def _rapl() -> EnergyMeter:
    """Return the counters of the packages, which are the top level of the tree: microjoules.

    What lies under a package is part of it, and ``psys`` holds them all.
    """
    zones = [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    packages = {zone: name for zone in zones if (name := _read_text(zone / "name")).startswith("package")}
    if not packages:
        raise Unavailable(f"no RAPL counters in {POWERCAP}")

    def read_zones(file: str) -> list[int]:
        try:
            return [int(_read_text(zone / file)) for zone in packages]
        except ValueError as error:
            raise Unavailable(f"{POWERCAP}: {error}") from error

    source = f"RAPL {', '.join(packages.values())}"
    return EnergyMeter(source, lambda: read_zones("energy_uj"), 1e-6, read_zones("max_energy_range_uj"))


def _read_text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError as error:
        raise Unavailable(f"only root may read {file}") from error
    except OSError as error:
        raise Unavailable(f"{file} cannot be read: {error.strerror}") from error


@contextmanager
def spending(device: str) -> Iterator[EnergyMeter]:
    """Count the joules of ``device`` while the block runs; a thread reads the counters every ``READING_SECONDS``."""
    meter, stopped = energy_meter(device), threading.Event()

    def keep_reading() -> None:
        while not stopped.wait(READING_SECONDS):
            meter.take_joules()

    if not meter.has_counter:
        yield meter
        return
    thread = threading.Thread(target=keep_reading, daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        stopped.set()
        thread.join()
