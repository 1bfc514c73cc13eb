"""Jobs are forked from a process that has imported what they need, and live and die as if they were not."""

import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from sparsebench import children, sources
from sparsebench.benchmarks import all_tasks
from sparsebench.cli.app import app
from sparsebench.errors import SourceError
from sparsebench.records import statuses
from sparsebench.run.forkserver import Forked, ForkServer
from sparsebench.sources import Cache

ROOT = Path(__file__).parents[2]
CACHE = Cache()
"""The user's own, made before any fixture: benchmark data is fetched once."""


class Saying:
    """Pickled in place of a specification: a program that the worker runs while it reads."""

    def __init__(self, program: str) -> None:
        self.program = program

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.program,)


@pytest.fixture
def forks(request: pytest.FixtureRequest) -> Iterator[ForkServer]:
    libraries = getattr(request, "param", [])
    made = ForkServer(["no_such_library", *libraries], {**os.environ, "OMP_NUM_THREADS": "2", "MINE": "yes"})
    yield made
    made.close()


def importing(folder: Path, name: str, text: str) -> ForkServer:
    """A server that imports a module with this text."""
    (folder / f"{name}.py").write_text(text)
    return ForkServer([name], {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"})


def start(forks: ForkServer, folder: Path, program: str | None) -> Forked:
    """A process that runs ``program``, or waits for ever."""
    spec, log = folder / "spec.job", folder / "log"
    if program is None:
        os.mkfifo(spec)
    else:
        spec.write_bytes(pickle.dumps(Saying(program)))
    reading, writing = os.pipe()
    try:
        return forks.start(spec, log, writing)
    finally:
        os.close(reading)
        os.close(writing)


def forked(process: Forked) -> int:
    """The job's own process, once it leads its group."""
    deadline = time.monotonic() + 60
    while process.pid == process.server.pid or os.getpgid(process.pid) != process.pid:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.pid


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


@pytest.mark.parametrize("forks", [["torch"]], indirect=True)
def test_a_process_has_its_own_variables_threads_log_and_code(forks: ForkServer, tmp_path: Path) -> None:
    program = (
        "import os, sys; found = ['torch' in sys.modules, os.environ['MINE'], os.environ['OMP_NUM_THREADS']]\n"
        f"import torch; print(*found, torch.get_num_threads(), file=open({str(tmp_path / 'found')!r}, 'w'))\n"
        "print('said in the log')"
    )
    process = start(forks, tmp_path, program)
    assert process.wait() == 1
    assert (tmp_path / "found").read_text().split() == ["True", "yes", "2", "2"]
    assert "said in the log" in (tmp_path / "log").read_text()
    assert start(forks, tmp_path, "raise ValueError('something unforeseen')").wait() == 1
    assert "ValueError: something unforeseen" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_jobs_end_with_the_server_and_one_that_was_stopped_is_not_waited_for(
    number: signal.Signals, forks: ForkServer, tmp_path: Path
) -> None:
    process = start(forks, tmp_path, None)
    pid = forked(process)
    assert forks.alive and process.poll() is None
    os.kill(forks.process.pid, number)
    assert process.wait() == -signal.SIGKILL and gone(pid)
    if number == signal.SIGKILL:
        assert not forks.alive and start(forks, tmp_path / "..", "pass").wait() == -signal.SIGKILL


def test_a_job_that_cannot_be_forked_fails_alone(tmp_path: Path) -> None:
    forks = importing(
        tmp_path,
        "full",
        "import os; plain, calls = os.fork, []\n"
        "def fork():\n"
        "    calls.append(1)\n"
        "    if len(calls) == 2: raise BlockingIOError(11, 'no process is left')\n"
        "    return plain()\n"
        "os.fork = fork\n",
    )
    for name in ("waits", "fails", "runs"):
        (tmp_path / name).mkdir()
    waiting = start(forks, tmp_path / "waits", None)
    pid = forked(waiting)
    assert start(forks, tmp_path / "fails", "pass").wait() == 1
    assert "no process is left" in (tmp_path / "fails" / "log").read_text()
    assert start(forks, tmp_path / "runs", "print('it runs')").wait() == 1
    assert "it runs" in (tmp_path / "runs" / "log").read_text()
    assert forks.alive and waiting.poll() is None and psutil.pid_exists(pid)
    forks.close()


def test_a_job_of_a_server_that_still_imports_ends_with_it(tmp_path: Path) -> None:
    forks = importing(tmp_path, "endless", "import time; time.sleep(600)")
    process = start(forks, tmp_path, "pass")
    assert forks.alive and process.pid == forks.process.pid and process.poll() is None
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    forks.close()


MANIFEST = """\
version: 1
ledger: {home}/ledger/test.duckdb
work_dir: {home}/work
models:
  - {{name: g2p, source: "path:{model}", family: encoder-decoder}}
variants:
  - {{prune: magnitude, sparsity: 0.5}}
benchmarks:
  encoder-decoder: [{{task: g2p, limit: 5}}]
"""


@pytest.mark.long
def test_a_run_is_the_same_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        sources.fetch(sources.parse(all_tasks()["g2p"].data[0]), CACHE)
    except SourceError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(CACHE.root))
    path = tmp_path / "g2p.yaml"
    path.write_text(MANIFEST.format(home=tmp_path, model=ROOT / "examples" / "g2p" / "model"))
    monkeypatch.setattr(children, "may_fork", lambda: False)
    monkeypatch.setattr(ForkServer, "__init__", pytest.fail)
    done = CliRunner().invoke(app, ["run", str(path)])
    assert done.exit_code == 0, done.output
    assert list(statuses(tmp_path / "ledger" / "records").values()) == ["done"] * 7
    logs = (log.read_text() for log in (tmp_path / "ledger" / "logs").glob("benchmarks*.log"))
    assert all("Traceback" not in log for log in logs)
