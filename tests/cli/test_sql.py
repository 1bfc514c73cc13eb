"""``sparsebench sql`` on queries that take long or give much: they stream, and end when they must."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from typer.testing import CliRunner

from sparsebench import bounded
from sparsebench.cli.app import app
from sparsebench.errors import QueryError
from sparsebench.ledger import connect, query, schema
from sparsebench.ledger.store import Ledger
from tests.command import call, succeed
from tests.ledger import samples

CROSS = "select count(*) from range(100000000) a, range(100000) b where a.range * b.range % 7 = 3"
DEAF = "select list_sum(list_transform(range(30000000), lambda x: x * 2 + 1))"
"""One call of one function: DuckDB does not look up from it."""
PROMPT = 1.5
"""Seconds of processor time within which a command ends: a query that goes on uses as many in a second."""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "l.duckdb"
    Ledger(path).ingest(samples.sample(samples.small()))
    Ledger(path).ingest([samples.plan_record(samples.plan(samples.manifest(benchmarks={}), "another"))])
    return path


def started(ledger: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sparsebench", "sql", "--ledger", str(ledger), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def at_work(process: subprocess.Popen[str]) -> psutil.Process:
    """Wait until a thread other than Python's own works: that is the query."""
    watched = psutil.Process(process.pid)
    while sum(one.user_time for one in watched.threads() if one.id != process.pid) < 0.1:
        assert process.poll() is None
        time.sleep(0.01)
    return watched


def used(watched: psutil.Process) -> float:
    times = watched.cpu_times()
    return float(times.user + times.system)


def ended(process: subprocess.Popen[str], before: float) -> tuple[int, str]:
    """Exit code and stderr of a command that ends soon after it had used ``before`` seconds."""
    assert process.stderr is not None
    with process.stderr as words:
        said = words.read()
    _, status, spent = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert spent.ru_utime + spent.ru_stime - before < PROMPT
    return process.returncode, said


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asked", [CROSS, *[pytest.param(CROSS, marks=pytest.mark.long)] * 9, DEAF])
def test_an_interrupt_ends_a_query(asked: str, ledger: Path) -> None:
    process = started(ledger, asked)
    watched = at_work(process)
    before = used(watched)
    process.send_signal(signal.SIGINT)
    assert ended(process, before) == (130, "sparsebench: interrupted\n")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("asked", [CROSS, DEAF])
def test_a_query_ends_at_its_limit(asked: str, ledger: Path) -> None:
    process = started(ledger, "--timeout", "0.4", asked)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "limit of 0.4 s" in said and "--timeout" in said and "Traceback" not in said


def test_only_the_time_that_duckdb_takes_counts(ledger: Path) -> None:
    with query.streaming(ledger, "from range(100000)", timeout=1) as found:
        next(found.rows)
        time.sleep(1.2)
        assert sum(1 for _ in found.rows) == 99_999
    with query.streaming(ledger, "select 1", timeout=0) as found:
        assert list(found.rows) == [(1,)]


def test_views_and_query_share_one_limit(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(query, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(schema, "create_temp_views", lambda *_: setattr(clock, "now", 11.0))
    with (
        pytest.raises(QueryError, match="limit of 10 s"),
        query.streaming(ledger, "select sum(range) from range(30_000_000)", timeout=10),
    ):
        pass


@pytest.mark.parametrize(
    "shape", ["json", "table", *(pytest.param(shape, marks=pytest.mark.long) for shape in ("csv", "markdown"))]
)
def test_rows_stream_into_a_pipe_that_may_close(shape: str, ledger: Path) -> None:
    process = started(ledger, "--format", shape, "select * from range(100_000_000)")
    assert process.stdout is not None and process.stderr is not None
    with process.stdout as rows, process.stderr as words:
        for _ in range(20_000):
            assert rows.readline()
        peak = Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        assert int(peak) < 300_000, f"{peak} kB"
        rows.close()
        assert words.read() == ""
    assert process.wait(60) == 0


def test_json_in_pieces_is_one_list(ledger: Path) -> None:
    for asked, rows in {"from range(5000)": 5000, "from range(0)": 0}.items():
        said = call("sql", "--json", asked, "--ledger", ledger).stdout
        assert json.loads(said) == [{"range": number} for number in range(rows)]


def test_too_much_memory_is_refused_and_nothing_is_spilled(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "MOST_MEMORY", 50_000_000)
    before = sorted(ledger.parent.rglob("*"))
    with pytest.raises(QueryError, match="memory"):
        query.run(ledger, "select * from range(30_000_000) t(a) order by hash(a)")
    assert sorted(ledger.parent.rglob("*")) == before
    for setting in ("memory_limit = '60GB'", "max_temp_directory_size = '1GB'", "temp_directory = '/tmp'"):
        with pytest.raises(QueryError):
            query.run(ledger, f"SET {setting}")


def test_a_query_may_begin_with_a_comment(ledger: Path) -> None:
    for text in ("-- of the report\nselect 41 + 1 as answer", "--\nselect 42 as answer"):
        done = CliRunner().invoke(app, ["sql", "--json", text, "--ledger", str(ledger)])
        assert json.loads(done.stdout) == [{"answer": 42}], done.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        *(("-" * (bounded.QUERY_CHARACTERS + 1), "q.sql: "), ("", "no query")),
        *((nothing, "") for nothing in (";", "-- nothing", "/* */")),
    ],
    ids=len,
)
def test_a_file_without_a_query_is_refused(text: str, says: str, ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text(text)
    done = call("sql", "--file", tmp_path / "q.sql", "--ledger", ledger)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr and says in done.stderr and "JSON" not in done.stderr


@pytest.mark.parametrize("standard_input", ["< bad.sql", "<&-"])
def test_a_query_from_a_closed_stream_or_in_another_encoding_is_refused(standard_input: str, tmp_path: Path) -> None:
    (tmp_path / "bad.sql").write_bytes(b"select '\xe9'")
    command = f"{sys.executable} -m sparsebench sql --file - --ledger absent.duckdb {standard_input}"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("sparsebench: "), done.stderr


def test_the_query_behind_a_table_or_a_picture_of_the_report(ledger: Path) -> None:
    def rows(*words: str) -> list[str]:
        done = succeed("sql", "--ledger", ledger, "--format", "csv", *words)
        return done.stdout.splitlines()

    scores = rows("--report", "scores")
    assert "task" in scores[0].split(",") and len(scores) > 1
    assert rows("--report", "scores", "--manifest", "sample") == scores
    assert rows("--report", "scores", "--manifest", "another") == scores[:1]
    assert len(rows("--report", "figures/score")) > 1


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--report", "taks"], "no table 'taks'"),
        (["--report", "figures/scor"], "no figure 'scor'"),
        (["--report", "scores", "--manifest", "sampel"], "'sampel'"),
        (["--manifest", "sample"], "--report"),
        (["--report", "figures/score", "--manifest", "sample"], "a picture covers every manifest"),
        (["select 1", "--report", "tasks"], "give one of them"),
    ],
)
def test_what_is_no_query_of_the_report_is_refused(ledger: Path, words: list[str], culprit: str) -> None:
    done = call("sql", "--ledger", str(ledger), *words)
    assert done.returncode and culprit in done.stderr
