"""A whole run on a tiny model: what is recorded, what is repeated, what survives."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import psutil
import pytest
import typer

from sparsebench import provenance
from sparsebench.cli import run
from sparsebench.cli.run import _next_commands, _nothing_to_do, _run_words
from sparsebench.ledger import query
from sparsebench.ledger.store import Ledger
from sparsebench.plan.preflight import PlanRequest, Prepared, prepare
from sparsebench.records import CellOutcome, make, statuses, write
from sparsebench.run.child import how_it_died
from sparsebench.run.handlers import LIBRARIES
from sparsebench.run.select import decisions
from sparsebench.run.workspace import exclusive, running_process
from tests.command import call, succeed


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_run_keeps_what_is_finished_goes_on_and_is_not_repeated(
    number: signal.Signals, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    # A shell's background jobs are born deaf to Ctrl-C, and these tests may be one.
    process = begin(manifest, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    records, ledger = tmp_path / "ledger" / "records", tmp_path / "ledger" / "test.duckdb"
    deadline = time.monotonic() + 600
    while "done" not in statuses(records).values() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130 and "interrupted" in said, said
    kept = statuses(records)
    assert set(kept.values()) == {"done"}, "what was in flight is not a failure"

    rest = succeed("run", manifest)
    assert f"{8 - len(kept)} done" in rest.stderr or not 8 - len(kept)
    assert [*statuses(records).values()] == ["done"] * 8
    asked = "select sparsity, achieved_sparsity, (bytes_packed < bytes_dense)::int from results order by 1"
    rows = call("sql", "--ledger", ledger, "--format", "csv", asked)
    assert rows.stdout.splitlines()[1:] == ["0.0,0.0,0", "0.5,0.5,1", "0.9,0.9,1"], rows.stderr
    assert not list((tmp_path / "work" / "variants").iterdir()), "variants' folders must go when their cells are done"
    assert not list((tmp_path / "tmp").iterdir()), "and so must temporary files"
    assert {path.suffix for path in (tmp_path / "ledger" / "logs").iterdir()} == {".log"}

    second = call("run", manifest)
    assert second.returncode == 0 and "nothing to do" in second.stderr
    assert "learned from 8 cells of this machine" not in second.stderr, "nothing is foreseen"
    records.rename(tmp_path / "elsewhere")
    assert "learned from 8 cells of this machine" in call("plan", manifest).stderr
    held = json.loads(call("status", "--ledger", ledger, "--json").stdout)
    assert {row["stage"]: row["done"] for row in held["stages"]} == {"structure": 3, "storage": 3, "make": 2}


@pytest.mark.long
@pytest.mark.parametrize("keep", ["packed", "none"])
def test_a_new_cell_of_a_finished_variant_unpacks_it_or_makes_it_again(keep: str, manifest: Path) -> None:
    manifest.write_text(manifest.read_text() + f"storage: {{formats: [dense, packed], keep: {keep}}}\n")
    succeed("run", manifest)
    manifest.write_text(manifest.read_text() + "structure: {absolute: [0.02], relative: [0.2]}\n")
    again = succeed("run", manifest)
    assert "3 done" in again.stderr and (keep == "none" or "· make" not in again.stderr)


@pytest.fixture
def broken(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model whose weights are cut off, so that it cannot be prepared."""
    folder = shutil.copytree(tiny_llama, tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return folder


def test_a_failing_cell_is_recorded_and_the_rest_goes_on(manifest: Path, broken: Path, tmp_path: Path) -> None:
    extra = f'  - {{name: broken, source: "path:{broken}", family: decoder}}\nvariants:'
    manifest.write_text(manifest.read_text().replace("variants:", extra))
    variants = prepare(PlanRequest(manifest)).plan.variants.values()
    left_out = next(one.id for one in variants if one.pruning_setting("sparsity") == 0.9)
    of_another_run = tmp_path / "work" / "variants" / left_out
    of_another_run.mkdir(parents=True)
    done = call("run", manifest, "--only", "stage=make", "--only", "sparsity=50%")
    assert done.returncode == 1
    known = statuses(tmp_path / "ledger" / "records")
    assert sorted(known.values()) == ["done", "skipped"] and of_another_run.is_dir()
    assert "model.safetensors" in done.stderr and "Traceback" not in done.stderr
    assert "model.safetensors" in call("status", manifest).stderr


def begin(manifest: Path, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sparsebench", "run", str(manifest), *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def importing(run: subprocess.Popen[str]) -> psutil.Process:
    """The process that a run's first job is to be forked from; the job is there once it has imported all."""
    while run.poll() is None:
        for child in psutil.Process(run.pid).children():
            with suppress(psutil.Error):  # one that has just begun, or ended
                if {"sparsebench.run.forkserver", *LIBRARIES["assess"]} <= {*child.cmdline()}:
                    return child
        time.sleep(0.005)
    raise AssertionError(f"no such job began: {run.communicate()[1]}")


def test_a_killed_run_fails_nothing_and_a_killed_or_stopped_job_fails_by_name(manifest: Path, tmp_path: Path) -> None:
    records, dense = tmp_path / "ledger" / "records", ("--only", "method=dense", "--only")
    succeed("run", manifest, *dense, "stage=storage")  # so that the next job measures, at once

    def failed() -> int:
        return [*statuses(records).values()].count("failed")

    run = begin(manifest, *dense, "stage=structure")
    child = importing(run)
    run.kill()
    run.communicate()
    child.wait(60)
    assert not failed()

    run = begin(manifest, *dense, "stage=structure")
    importing(run).kill()
    _, said = run.communicate(timeout=600)
    assert run.returncode == 1, said
    assert "SIGKILL" in said and failed() == 1

    run = begin(manifest, *dense, "stage=structure", "--silence", "3", "--retry-failed")
    child = importing(run)
    child.suspend()
    _, said = run.communicate(timeout=600)
    assert run.returncode == 1, said
    assert not child.is_running()
    assert "3 seconds" in said and failed() == 1

    succeed("run", manifest, *dense, "stage=structure", "--retry-failed")
    assert list(statuses(records).values()) == ["done"] * 2


def test_two_runs_on_one_ledger_are_refused(manifest: Path, tmp_path: Path) -> None:
    with exclusive(tmp_path / "ledger" / "test.duckdb"):
        refused = call("run", manifest)
    assert refused.returncode == 2 and "is running in" in refused.stderr


@pytest.mark.long
def test_records_reach_a_ledger_that_was_lost_or_lacks_some(manifest: Path, tmp_path: Path) -> None:
    call("run", manifest)
    path = tmp_path / "ledger" / "test.duckdb"
    records = sorted((tmp_path / "ledger" / "records").glob("*.*.json"))
    for left, said in ((0, "rebuilt from"), (5, "added 3 records")):
        path.unlink()
        if left:
            Ledger(path).ingest((json.loads(record.read_text()) for record in records[:left]), True)
        again = succeed("run", manifest)
        assert said in again.stderr and "nothing to do: every cell has its result" in again.stderr
        assert query.run(path, "select count(*) from base.records").rows == ((8,),)


@pytest.mark.parametrize(
    ("only", "says"),
    [("sparsity=half", "--only sparsity=half: not a sparsity"), ("model=tinny", "--only matches no cell of the manifest")],
)  # fmt: skip
def test_only_takes_what_it_understands(only: str, says: str, manifest: Path) -> None:
    refused = call("run", manifest, "--only", only, "--only", "stage=make")
    assert refused.returncode == 2 and says in refused.stderr


def test_the_command_to_try_again_asks_the_same_of_the_same_cluster_and_caches() -> None:
    request = PlanRequest(Path("m.yaml"), offline=True, executor="ray", jobs=3)
    settings: Any = SimpleNamespace(fail_fast=True, silence=90.0)
    again = _next_commands(SimpleNamespace(request=request), _run_words(settings, "head:6379"))  # type: ignore[arg-type]
    why, retry = re.findall("sparsebench [^;]*", again)
    assert why == "sparsebench status m.yaml"
    words = retry.split()
    asked = "--executor ray --offline --jobs 3 --address head:6379 --fail-fast --silence 90 --retry-failed"
    assert words[:3] == ["sparsebench", "run", "m.yaml"] and words[3:] == asked.split()
    assert call(*words[1:], "--help").returncode == 0, "options that run has"


@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_an_address_is_of_a_cluster(more: list[str], manifest: Path) -> None:
    refused = call("run", manifest, "--address", "head:6379", *more)
    assert refused.returncode == 2 and "--address head:6379" in refused.stderr and "--executor ray" in refused.stderr


@pytest.mark.parametrize("command", [["plan"], ["run", "--dry-run"], ["run"]])
def test_only_that_matches_nothing_is_named(command: list[str], manifest: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "new" / "l.duckdb"
    words = [*command, manifest, "--ledger", ledger, "--only", "sparsity=0.5"]
    none = call(*words, "--only", "model=tinny")
    assert none.returncode == 2 and "model=tinny" in none.stderr and "sparsity=0.5" not in none.stderr
    assert f"sparsebench plan {manifest} --ledger {ledger}" in " ".join(none.stderr.split())
    both = call(*words, "--only", "prune=magnitude", "--only", "method=dense")
    assert both.returncode == 2 and "method=dense" in both.stderr and "sparsity=0.5" in both.stderr
    assert not ledger.parent.exists()
    some = call("plan", *words[len(command) :], "--only", "sparsity=0.7")
    assert some.returncode == 0 and "0.7" in some.stderr and "0.5" not in some.stderr


def test_a_run_decides_what_to_do_while_no_other_can_record(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holders = []

    def deciding(ready: Prepared, records: Path, retry_failed: bool) -> NoReturn:
        holders.append(running_process(ready.ledger))
        raise typer.Exit(3)

    monkeypatch.setattr(run, "decisions", deciding)
    assert call("run", manifest).returncode == 3 and holders == [os.getpid()]


def test_a_death_by_a_signal_that_python_does_not_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("last words\n")
    assert "signal SIGRTMIN+1; it said last: last words" in how_it_died(-signal.SIGRTMIN - 1, tmp_path / "log")
    assert "signal SIGKILL (out of memory?)" in how_it_died(-signal.SIGKILL, tmp_path / "log")


def test_what_only_leaves_out_is_not_called_done(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ready, records = prepare(PlanRequest(manifest, only=(("stage", "structure"),))), tmp_path / "records"

    def said(endings: list[str]) -> str:
        structure = [cell for cell in ready.plan.cells if cell.stage == "structure"]
        for cell, status in zip(structure, endings, strict=True):
            write(records, make(cell, "tiny", CellOutcome(status), "cpu"))
        with suppress(typer.Exit):
            _nothing_to_do(decisions(ready, records, False), ready, [])
        return " ".join(capsys.readouterr().err.split())

    assert "nothing to do: every cell that --only asks for has its result" in said(["done"] * 3)
    assert "1 cell failed before, every other that --only asks for has its" in said(["done", "failed", "done"])


@pytest.mark.long
def test_what_failed_before_is_not_called_done(manifest: Path, tmp_path: Path) -> None:
    call("run", manifest)
    done = (tmp_path / "ledger" / "records").glob("*.done.json")
    record = next(path for path in done if '"stage":"structure"' in path.read_text())
    failed = json.loads(record.read_text()) | {"status": "failed", "reason": "a full disk", "result": None}
    write(record.parent, provenance.sealed(failed))
    again = call("run", manifest)
    assert again.returncode == 1 and "1 cell failed before" in again.stderr and "--retry-failed" in again.stderr
    other = next((tmp_path / "ledger" / "records").glob("*.done.json"))
    other.write_text(other.read_text()[:-9])
    beside = call("run", manifest)
    assert f"made again: {other.name}" in beside.stderr or f"{other.name}: not JSON" in beside.stderr
    assert beside.returncode == 1, "a cell of the manifest is still failed"
    assert "1 cell failed before" in beside.stderr and "1 done" in beside.stderr
    retried = call("run", manifest, "--retry-failed")
    assert retried.returncode == 0 and "1 done" in retried.stderr, retried.stderr
    assert set(statuses(tmp_path / "ledger" / "records").values()) == {"done"}


@pytest.mark.long
def test_fail_fast_ends_at_the_first_failure(manifest: Path, broken: Path, tmp_path: Path) -> None:
    first = f'models:\n  - {{name: broken, source: "path:{broken}", family: decoder}}\n'
    manifest.write_text(manifest.read_text().replace("models:\n", first))
    ended = call("run", manifest, "--fail-fast", "--jobs", "1")
    assert ended.returncode == 1, ended.stderr
    known = list(statuses(tmp_path / "ledger" / "records").values())
    assert "skipped" in known and len(known) < 16, "the other model's cells were begun"
