"""Counters in a made-up sysfs: summed over packages, wrapped around, or absent with the reason."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparsebench import energy
from sparsebench.runtime import machine

LIMIT = 1_000_000


@pytest.fixture(autouse=True)
def _zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters that a machine has are those of the test."""
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)


def zone(root: Path, name: str, label: str, value: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "max_energy_range_uj").write_text(f"{LIMIT}\n")
    (folder / "energy_uj").write_text(f"{value}\n")
    return folder / "energy_uj"


def nvml(monkeypatch: pytest.MonkeyPatch, gpus: str, **functions: Any) -> SimpleNamespace:
    """Put a library of NVIDIA's in place that knows ``GPU-x`` for each letter of ``gpus``, torch's numbers in order."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=gpus[index]))
    known = {"nvmlInit": lambda: None, "nvmlDeviceGetHandleByUUID": lambda uuid: uuid, "NVMLError": Exception}
    fake = SimpleNamespace(**known, **functions)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_packages_are_summed_and_what_lies_inside_or_around_them_is_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 200)
    inside = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    around = zone(tmp_path, "intel-rapl:2", "psys", 500)
    meter = energy.energy_meter("cpu")
    assert meter.source == "RAPL package-0, package-1"
    for file in (first, second, inside, around):
        file.write_text(str(int(file.read_text()) + 250_000))
    assert meter.take_joules() == pytest.approx(0.5)
    assert meter.take_joules() == 0.0
    first.write_text("400")
    assert meter.take_joules() == pytest.approx((LIMIT + 1 - 250_100 + 400) / 1e6), "it wrapped around at its limit"


def test_a_counter_without_a_limit_that_starts_again_is_dropped() -> None:
    readings = iter([[500], [700], [40]])
    meter = energy.EnergyMeter("a GPU", lambda: next(readings), limits=[0])
    assert meter.take_joules() == 200
    assert meter.take_joules() is None and not meter.has_counter


def test_a_counter_that_wraps_around_often_is_read_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(energy, "READING_SECONDS", 0.005)
    counted, expected = energy.EnergyMeter.take_joules, 0.0
    totals: list[float] = [0.0]

    def take_joules(self: energy.EnergyMeter) -> float | None:
        spent = counted(self)
        totals.append(totals[-1] + (spent or 0.0))
        return spent

    monkeypatch.setattr(energy.EnergyMeter, "take_joules", take_joules)
    with energy.spending("cpu") as spent:
        for value, more in ((900_000, 900_000), (800_000, LIMIT + 1 - 100_000), (700_000, LIMIT + 1 - 100_000)):
            written = tmp_path / "written"
            written.write_text(str(value))
            written.replace(file)  # at once: a counter that cannot be read, as a file half written, is given up
            expected += more / 1e6
            while totals[-1] < expected - 1e-9:
                time.sleep(0.001)
    assert spent.total() == pytest.approx(expected)
    assert spent.source == "RAPL package-0"
    readings = len(totals)
    time.sleep(0.05)
    assert len(totals) == readings, "nobody reads when it is over"


def test_without_a_counter_there_is_a_reason(tmp_path: Path) -> None:
    meter = energy.energy_meter("cpu")
    assert (meter.take_joules(), meter.total(), meter.has_counter) == (None, None, False)
    assert meter.source == f"none: no RAPL counters in {tmp_path}"
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    file.write_text("nonsense")
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    assert "'nonsense'" in energy.energy_meter("cpu").source, "no sum of some packages"
    file.write_text("1")
    with energy.spending("cpu") as spent:
        assert (spent.total(), spent.source) == (0.0, "RAPL package-0, package-1")
        file.unlink()
        assert spent.total() is None and f"{file} cannot be read" in spent.source
        file.write_text("5")
        assert spent.total() is None, "what was not counted stays so"


def test_a_counter_for_root_only_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    if os.getuid() == 0:  # root reads it whatever its mode
        right = Path.read_text

        def refused(self: Path, *given: Any, **named: Any) -> str:
            if self == file:
                raise PermissionError(13, "Permission denied", str(self))
            return right(self, *given, **named)

        monkeypatch.setattr(Path, "read_text", refused)
    else:
        file.chmod(0)
    assert energy.energy_meter("cpu").source == f"none: only root may read {file}"


def test_a_gpus_counter_is_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = {"GPU-b": 5000, "GPU-c": 7000, "GPU-a": 0}
    # Those that torch sees under CUDA_VISIBLE_DEVICES=1,2.
    fake = nvml(monkeypatch, "bc", nvmlDeviceGetTotalEnergyConsumption=counters.__getitem__)
    meter = energy.energy_meter("cuda:0", ranks=2)
    counters |= {"GPU-b": 6500, "GPU-c": 7500, "GPU-a": 9000}
    assert (meter.source, meter.take_joules(), meter.take_joules()) == ("NVML, 2 GPUs", 2.0, 0.0)

    def refuse() -> None:
        raise RuntimeError("no driver")

    fake.nvmlInit = refuse
    assert (meter.take_joules(), meter.source, meter.window_seconds) == (None, "none: NVML says: no driver", 0.0)
    assert energy.energy_meter("cuda:0").source == "none: NVML says: no driver"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in energy.energy_meter("cuda:0").source


def test_what_a_process_holds_on_its_gpu_is_what_nvml_says_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=5), SimpleNamespace(pid=os.getpid(), usedGpuMemory=7)]
    by_gpu = {"GPU-b": running, "GPU-c": running[:1]}
    nvml(monkeypatch, "abc", nvmlDeviceGetComputeRunningProcesses=by_gpu.__getitem__)
    assert (machine.process_gpu_bytes(1), machine.process_gpu_bytes(2)) == (7, None), (
        "in a container numbers may be others"
    )
    assert machine.process_gpu_bytes(0) is None, "NVML refuses"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.process_gpu_bytes(1) is None


def test_a_gpus_clock_cap_and_what_slows_it_down_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"GPU-a": 0x1, "GPU-b": 0x5}
    nvml(
        monkeypatch,
        "ab",
        NVML_CLOCK_SM=1,
        nvmlDeviceGetClockInfo=lambda device, kind: 1200,
        nvmlDeviceGetMaxClockInfo=lambda device, kind: 1980,
        nvmlDeviceGetEnforcedPowerLimit=lambda device: 350_000,
        nvmlDeviceGetCurrentClocksThrottleReasons=reasons.__getitem__,
    )
    assert machine.gpu_state([0]) == "GPU 0: 1200 of 1980 MHz, 350 W at most"
    assert machine.gpu_state([1]).endswith("slowed down (NVML's reasons 0x4)")
    del reasons["GPU-a"]
    assert machine.gpu_state([0]) == "", "NVML refuses"


def test_the_clock_is_the_mean_over_the_processors(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\ncpu MHz\t\t: 2000.5\nprocessor\t: 1\ncpu MHz\t\t: 3000.5\n")
    assert machine.mhz(tmp_path / "absent", info) == 2500.5
    for number, value in enumerate((1_000_000, 3_000_000)):
        folder = tmp_path / f"cpu{number}" / "cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{value}\n")
    assert machine.mhz(tmp_path, info) == 2000.0
    assert machine.mhz(tmp_path / "absent", tmp_path / "none") is None
