"""The checks of ``doctor --gpu``: on this machine's GPUs, on the CPU, and what the command makes of them."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsebench import devices, energy
from sparsebench.cli.app import app
from sparsebench.errors import MeasureError
from sparsebench.run import gpu
from sparsebench.run.gpu import instruments, models
from sparsebench.run.gpu.bench import Bench, CheckResult, CheckSkipped
from tests.gpus import H100, Driver

DOCTOR = ["doctor", "--gpu", "--device", "cpu"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What the checks share on this machine's GPUs."""
    if not devices.gpu_names():
        pytest.skip("there is no GPU here")
    device = devices.resolve("cuda")
    made = Bench(device, len(devices.selected_gpus(device)), tmp_path_factory.mktemp("bench"))
    made.select_gpu()
    return made


@pytest.mark.parametrize("what", gpu.CHECKS)
def test_no_check_says_no_on_a_gpu(what: str, bench: Bench) -> None:
    try:
        passed, numbers = gpu.CHECKS[what](bench)
    except CheckSkipped as reason:
        pytest.skip(str(reason))
    assert passed, numbers


@pytest.mark.long
def test_no_check_says_no_on_a_cpu() -> None:
    found = list(gpu.run_checks("cpu", 2))
    assert [(check.what, check.detail) for check in found if check.verdict == "no"] == []
    assert sum(check.verdict == "yes" for check in found) == 8


def test_checks_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "CHECKS", {name: gpu.CHECKS[name] for name in ("pruning", "energy")})
    shown = CliRunner().invoke(app, [*DOCTOR, "--out", str(tmp_path / "found.json")])
    assert shown.exit_code == 0, shown.output
    assert [line.split()[:2] for line in shown.output.splitlines()] == [["yes", "1"], ["skip", "2"]]
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["where"]["device"] == "cpu" and written["checks"][0]["numbers"]["same"] >= 0.995


def test_a_no_is_an_error_and_a_number_that_json_does_not_have_a_word(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(bench: Bench) -> CheckResult:
        raise RuntimeError("no kernel image is available")

    numbers, out = {"opt x2": math.inf, "t5 x2": math.nan, "share": 0.5}, tmp_path / "found.json"
    monkeypatch.setattr(gpu, "CHECKS", {"one": wrong, "other": lambda _: (False, numbers)})
    shown = CliRunner().invoke(app, [*DOCTOR, "--json", "--out", str(out)])
    assert shown.exit_code == 1
    for text in (shown.stdout, out.read_text()):
        one, other = json.loads(text, parse_constant=pytest.fail)["checks"]
        assert (one["verdict"], one["reason"]) == ("no", "RuntimeError: no kernel image is available")
        assert other["numbers"] == {"opt x2": "inf", "t5 x2": "nan", "share": 0.5}


def test_without_a_gpu_that_torch_sees_it_says_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.lists([])
    shown = CliRunner().invoke(app, ["doctor", "--gpu"])
    assert "--device cpu" in str(shown.exception)
    driver.lists([("GPU-a", H100, "80000")])
    monkeypatch.setattr("sparsebench.devices.cuda_version", lambda: "")
    shown = CliRunner().invoke(app, ["doctor", "--gpu"])
    assert H100 in str(shown.exception)
    shown = CliRunner().invoke(app, ["doctor", "--ranks", "2"])
    assert "--gpu" in str(shown.exception.hint)


def test_a_gpu_without_an_energy_counter_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(instruments, "energy_meter", lambda _: energy.EnergyMeter("none: not supported"))
    with pytest.raises(CheckSkipped, match="not supported"):
        instruments.energy(Bench("cuda", 1, tmp_path))


def test_ranks_that_fail_before_one_is_killed_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*_: object) -> None:
        raise MeasureError("no room")

    monkeypatch.setattr(models, "RankGroup", fails)
    monkeypatch.setattr(Bench, "model", lambda *_: (tmp_path, "decoder"))
    with pytest.raises(MeasureError, match="no room"):
        models.killed(Bench("cpu", 2, tmp_path))
