"""What is compiled while the first jobs run: only what cells need, and no longer than the run lasts."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sparsebench.manifest.schema import Manifest
from sparsebench.plan.expand import expand
from sparsebench.run import precompile

RANKS = "runtime: {ranks: 2, workloads: {batch: 1, prompt: 4, generate: 2}}\n"


@pytest.mark.parametrize(
    "runtime", [None, {"ranks": 1}, {"engines": "sparse", "ranks": 2}, {"engines": "deepspeed-zero3", "ranks": 2}]
)
def test_nothing_is_compiled_for_cells_that_need_nothing(runtime: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it was started"))
    models = [{"name": "m", "source": "path:m", "family": "decoder"}]
    manifest = Manifest.model_validate({"version": 1, "models": models, "runtime": runtime})
    assert precompile.compiler(expand(manifest, "test", {"m": "r"}).cells, "") is None


@pytest.mark.skipif(sys.platform != "linux", reason="the operation exists on Linux only")
def test_it_begins_with_the_run_and_ends_with_it(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(manifest.read_text() + RANKS)
    process = subprocess.Popen(
        [sys.executable, "-m", "sparsebench", "run", str(manifest)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    found: list[psutil.Process] = []
    deadline = time.monotonic() + 600
    while not found and process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):  # a child that has just ended has no command line
            children = psutil.Process(process.pid).children()
            found = [child for child in children if "sparsebench.run.precompile" in child.cmdline()]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert found
    assert not found[0].is_running()
