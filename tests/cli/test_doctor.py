"""``sparsebench doctor`` as it looks on a terminal, in a pipe and to a script."""

import json
import socket
import subprocess
import sys
import threading

import pytest
from typer.testing import CliRunner

from sparsebench import devices, environment, native
from sparsebench.cli.app import app
from sparsebench.errors import INSTALL_MEASURE, MeasureError
from sparsebench.run import doctor
from sparsebench.run.doctor import Finding
from sparsebench.runtime import Setting
from sparsebench.runtime import group as groups
from tests.command import call
from tests.gpus import H100, Driver
from tests.sources.servers import Served, serving

LEAK = "https://me:secret@mirror.example"

FINDINGS = (
    Finding("cpu", "ok", "a processor with a long name, 2 cores"),
    Finding("C++ compiler", "slower", "DeepSpeed's all-reduce between ranks falls back to plain gloo", "install g++"),
    Finding("gpu", "absent", "none found: everything runs on the CPU"),
)


@pytest.fixture(autouse=True)
def _found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparsebench.cli.doctor.examine", lambda offline: iter(FINDINGS))


def test_a_terminal_gets_columns_that_stay_whole() -> None:
    shown = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "60", "FORCE_COLOR": "1", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    assert shown.output.splitlines() == [
        "ok       cpu             a processor with a long name, 2",
        "                         cores",
        "slower   C++ compiler    DeepSpeed's all-reduce between",
        "                         ranks falls back to plain gloo",
        "                         → install g++",
        "absent   gpu             none found: everything runs on the",
        "                         CPU",
    ]


def test_a_pipe_gets_a_line_each_a_script_json_and_what_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = call("doctor").stdout.splitlines()
    assert len(lines) == len(FINDINGS) and lines[1].endswith("plain gloo  → install g++")
    lost = Finding("two ranks", "missing", "no answer", "see the log")
    monkeypatch.setattr("sparsebench.cli.doctor.examine", lambda offline: iter((*FINDINGS, lost)))
    shown = call("doctor", "--json")
    assert shown.returncode == 1
    assert [row["state"] for row in json.loads(shown.stdout)] == ["ok", "slower", "absent", "missing"]


def test_a_mirror_with_a_password_is_reached_and_the_password_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Served(files={"/": b"hello"})) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url.replace("://", "://me:s%65cret@") + "/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert doctor._hub() == "reached (200)"
        served.statuses["/"] = 401
        assert doctor._hub() == "reached (401)"
        served.statuses["/"] = 503
        assert doctor._tried("model hub", doctor._hub, "gone", "").state == "offline"
    failed = subprocess.CompletedProcess([], 1, "", LEAK)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    found = doctor._tried("package index", doctor._package_index, "gone", "")
    assert "mirror.example" in found.detail and "secret" not in found.detail


def test_a_mirror_s_password_does_not_follow_a_redirect_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(Served(files={"/": b"hello"})) as other:
        mirror = Served(files={"/": b""}, statuses={"/": 302}, headers={"/": {"Location": f"{other.url}/"}})
        with serving(mirror):
            monkeypatch.setenv("HF_ENDPOINT", mirror.url.replace("://", "://me:secret@") + "/")
            assert doctor._hub() == "reached (200)"
    assert (mirror.credentials, other.credentials) == (["Basic bWU6c2VjcmV0"], [""])


def test_an_address_that_is_none_and_an_answer_that_is_not_http_are_findings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:port")
    found = doctor._tried("model hub", doctor._hub, "gone", "use a mirror")
    assert (found.state, found.fix) == ("offline", "use a mirror") and "port" in found.detail
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        assert doctor._tried("model hub", doctor._hub, "gone", "").state == "offline"


def _greet(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(b"220 mail.example\r\n")


def test_without_torch_every_check_has_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed without `[measure]`: what needs torch says so, and how to get it."""
    versions = {**environment.versions(), "torch": "absent"}
    monkeypatch.setattr(environment, "versions", lambda: versions)
    monkeypatch.delitem(sys.modules, "sparsebench.runtime.kernels", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(groups, "try_two_ranks", lambda: "shared memory")
    found = {one.what: one for one in doctor.examine(offline=True)}
    assert found["torch"].fix == INSTALL_MEASURE
    assert (found["sparse kernels"].state, found["sparse kernels"].fix) == ("missing", INSTALL_MEASURE)
    assert "two ranks" in found


def test_without_a_compiler_packing_is_slower_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "library", lambda name: native.Missing("no C++ compiler"))
    found = doctor._packing()
    assert found.state == "slower" and "numpy" in found.detail and "g++" in found.fix


def test_a_gpu_that_torch_does_not_see_is_missing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._gpus().state == "absent"
    driver.lists([("GPU-a", H100, "80000")])
    monkeypatch.setattr(devices, "cuda_version", lambda: "")
    found = doctor._gpus()
    assert found.state == "missing" and "for a CPU only" in found.detail and "device: cpu" in found.fix
    driver.seen_by_torch()
    assert (doctor._gpus().state, doctor._gpus().detail) == ("ok", H100)


def test_two_ranks_are_tried_on_gpus_only_where_there_are_two(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def group(spec: object, setting: Setting) -> None:
        seen.append(setting.device)
        raise MeasureError("not here")

    monkeypatch.setattr(groups, "RankGroup", group)
    for count in (1, 2):
        driver.lists([(f"GPU-{number}", H100, "80000") for number in range(count)])
        assert doctor._ranks().state == "missing"
    assert seen == ["cpu", "cuda"]
