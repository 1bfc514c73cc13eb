"""Counters in a made-up sysfs: summed over packages, wrapped around, or absent with the reason."""

from __future__ import annotations

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
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


def test_packages_are_summed_and_what_lies_inside_or_around_them_is_not(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", "package-0", 100)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 200)
    inside = zone(tmp_path, "intel-rapl:0:0", "core", 50)
    around = zone(tmp_path, "intel-rapl:2", "psys", 500)
    found = energy.meter("cpu")
    assert found.source == "RAPL package-0, package-1"
    for file in (first, second, inside, around):
        file.write_text(str(int(file.read_text()) + 250_000))
    assert found.joules() == pytest.approx(0.5)
    assert found.joules() == 0.0


def test_a_counter_that_wrapped_around_goes_on_from_its_limit(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", LIMIT - 99)
    found = energy.meter("cpu")
    file.write_text("400")
    assert found.joules() == pytest.approx(500e-6)


def test_a_counter_that_wraps_around_again_and_again_is_read_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(energy, "SECONDS", 0.005)
    read, plain = [0], energy.Rapl.joules

    def counted(self: energy.Rapl) -> float:
        found = plain(self)
        read[0] += 1
        return found

    monkeypatch.setattr(energy.Rapl, "joules", counted)
    with energy.spending("cpu") as spent:
        for value in (900_000, 800_000, 700_000):  # each of the last two after a whole round but a tenth
            before = read[0]
            written = tmp_path / "written"
            written.write_text(str(value))
            written.replace(file)  # at once: a counter that cannot be read, as a file half written, is given up
            while read[0] < before + 2:
                time.sleep(0.001)
    assert spent.joules() == pytest.approx((900_000 + 2 * (LIMIT + 1 - 100_000)) / 1e6)
    assert spent.source == "RAPL package-0"
    counts = read[0]
    time.sleep(0.05)
    assert read[0] == counts, "nobody reads when it is over"


def test_without_a_counter_there_is_a_reason(tmp_path: Path) -> None:
    found = energy.meter("cpu")
    assert found.joules() is None
    assert found.source == f"none: no RAPL counters in {tmp_path}"
    broken = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    broken.write_text("nonsense")
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    assert "intel-rapl:0 cannot be read" in energy.meter("cpu").source, "no sum of some packages"


def test_a_counter_that_fails_on_the_way_ends_no_training(tmp_path: Path) -> None:
    file = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with energy.spending("cpu") as spent:
        assert (spent.joules(), spent.source) == (0.0, "RAPL package-0")
        file.unlink()
        assert spent.joules() is None and f"{file} cannot be read any more" in spent.source
        file.write_text("5")
        assert spent.joules() is None, "what was not counted stays so"


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
    found = energy.meter("cpu")
    assert found.source == f"none: only root may read {file}"
    assert found.joules() is None


def test_a_gpus_counter_is_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    counters = {"GPU-b": 5000, "GPU-c": 7000, "GPU-a": 0}
    # Those that torch sees under CUDA_VISIBLE_DEVICES=1,2.
    fake = nvml(monkeypatch, "bc", nvmlDeviceGetTotalEnergyConsumption=counters.__getitem__)
    found = energy.meter("cuda:0", ranks=2)
    counters |= {"GPU-b": 6500, "GPU-c": 7500, "GPU-a": 9000}
    assert (found.source, found.joules(), found.joules()) == ("NVML, 2 GPUs", 2.0, 0.0)

    def refuse() -> None:
        raise RuntimeError("no driver")

    fake.nvmlInit = refuse
    assert (found.joules(), found.source, found.window) == (None, "none: NVML says: no driver", 0.0)
    assert energy.meter("cuda:0").source == "none: NVML says: no driver"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in energy.meter("cuda:0").source


def test_what_a_process_holds_on_its_gpu_is_what_nvml_says_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=5), SimpleNamespace(pid=os.getpid(), usedGpuMemory=7)]
    by_gpu = {"GPU-b": running, "GPU-c": running[:1]}
    nvml(monkeypatch, "abc", nvmlDeviceGetComputeRunningProcesses=by_gpu.__getitem__)
    assert (machine.process_bytes(1), machine.process_bytes(2)) == (7, None), "in a container numbers may be others"
    assert machine.process_bytes(0) is None, "NVML refuses"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.process_bytes(1) is None


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
