"""What a person, a disk or a stranger gets wrong is told in a sentence that names it: never a traceback."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench.cli.status import _status_and_reason
from sparsebench.ledger.store import Ledger
from sparsebench.records import write
from tests.adversarial import benign
from tests.cli.conftest import MANIFEST, ROOT
from tests.command import call


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ledger: taken", "not a ledger"),
        ("ledger: tiny.yaml", "not a DuckDB file"),
        ("work_dir: tiny.yaml", "tiny.yaml"),
        ("ledger: ~nobody-of-that-name/l.duckdb", "no user nobody-of-that-name"),
        ('ledger: "a\\0b.duckdb"', "`\\0`"),
    ],
)
def test_a_run_that_cannot_begin_leaves_nothing(line: str, says: str, run: Callable[..., Any], tmp_path: Path) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "tiny.yaml").write_text(f"{MANIFEST}{line}\n")
    before = sorted(tmp_path.rglob("*"))
    code, said = run("run", "tiny.yaml")
    assert code == 2 and says in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_readonly_cache_is_blamed(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPARSEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    code, said = run("inspect", "model")
    assert code == 2 and "SPARSEBENCH_CACHE" in said and f"the cache {tmp_path / 'file' / 'cache'}" in said


@pytest.mark.parametrize("size", [-8, 10**9])
def test_sizes_that_no_model_has_are_refused(size: int, run: Callable[..., Any], tmp_path: Path) -> None:
    benign.model(tmp_path / "model", {**benign.LLAMA, "hidden_size": size, "num_attention_heads": 1})
    (tmp_path / "tiny.yaml").write_text(MANIFEST)
    code, said = run("plan", "tiny.yaml")
    assert code == 2 and "tiny" in said and "parameters" in said


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("odd.yaml", 'pattern: "\\ud800"', "odd.yaml:3"),
        ("odd.yaml", 'sparsity: 0.5, "\\ud800": 1', "odd.yaml:3"),
        ("x" * 245 + ".yaml", "sparsity: 0.5", "name"),
    ],
)
def test_what_no_record_can_carry_is_refused(
    name: str, place: str, says: str, run: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(MANIFEST.replace("sparsity: 0.5", place))
    code, said = run("plan", name)
    assert code == 2 and says in said


def test_ctrl_c_while_the_program_is_imported_shows_no_traceback() -> None:
    program = (
        "import builtins, os, runpy, signal\n"
        "real = builtins.__import__\n"
        "def hook(name, *more, **words):\n"
        "    if name == 'typer':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *more, **words)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "builtins.__import__ = hook\n"
        "runpy.run_module('sparsebench', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


HEAD = "-- title: t $\\bad$\n-- kind: KIND\n-- x: x\n-- y: y\n"
FIGURES: dict[str, tuple[str, int]] = {
    "bad mathtext": ("select 1 as x, 2 as y", 0),
    "a list": ("select 1 as x, [1, 2] as y", 2),
    "an interval": ("select interval 1 day as x, 2 as y", 2),
    "text": ("select 1 as x, 'two' as y", 2),
    "huge integers": ("select 170141183460469231731687303715884105727 as x, 2 as y union all select 1, 3", 0),
    "no numbers": ("select 'nan'::double as x, 'inf'::double as y", 0),
    "text with mathtext": ("select '$\\bad$' as x, 2 as y", 0),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_rows(name: str, run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    sql, wanted = FIGURES[name]
    (tmp_path / "figures").mkdir()
    kind = "bars" if "mathtext" in name else "line"
    (tmp_path / "figures" / "own.sql").write_text(HEAD.replace("KIND", kind) + sql)
    code, said = run("figures", "own", "--format", "svg", "--out", "out", "--ledger", shared / "ledger.duckdb")
    assert code == wanted, said
    assert not wanted or "own.sql" in said


@pytest.mark.parametrize(
    "make", [lambda path: path.write_bytes(b"-- title: \xff\n"), Path.mkdir, lambda path: path.symlink_to("nowhere")]
)
def test_a_figure_that_is_no_text(
    make: Callable[[Path], object], run: Callable[..., Any], shared: Path, tmp_path: Path
) -> None:
    path = tmp_path / "figures" / "own.sql"
    path.parent.mkdir()
    make(path)
    code, said = run("figures", "own", "--out", "out", "--ledger", shared / "ledger.duckdb")
    assert code == 2 and "own.sql" in said


def test_streams_that_are_closed_or_narrow(shared: Path) -> None:
    program = f"{sys.executable} -m sparsebench"
    ledger = shared / "ledger.duckdb"
    narrow = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    commands = {
        f"{program} --help | head -1": 0,
        f"{program} schema | true": 0,
        f"{program} doctor --help >&-": 0,
        f"{program} sql \"select 'é → ✓' as x\" --ledger {ledger}": 0,
        f"{program} sql 'select 1' --ledger {ledger} 2>&-": 0,
    }
    for command, code in commands.items():
        done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, check=False, env=narrow)
        assert done.returncode == code and b"Traceback" not in done.stderr, (command, done.stderr)


@pytest.mark.parametrize(
    ("task", "named"),
    [("perplexity", "no such folder"), ("classify", "--manifest"), ("picqa", "piqa"), ("zzz", "score --list")],
)
def test_a_task_that_score_cannot_take_by_name_has_a_way_out(task: str, named: str, run: Callable[..., Any]) -> None:
    """A kind of one's own data may be a task as well."""
    code, shown = run("score", "no-such-model", "--task", task)
    assert code == 2 and named in shown


@pytest.mark.parametrize("second", [("--task", "piqa"), ("--manifest", "tasks.yaml")])
def test_a_task_that_is_named_twice_is_refused(
    second: tuple[str, str], run: Callable[..., Any], tmp_path: Path
) -> None:
    benign.model(tmp_path / "model")
    (tmp_path / "tasks.yaml").write_text(f"{MANIFEST}benchmarks: {{decoder: [{{task: piqa, num_fewshot: 5}}]}}\n")
    code, shown = run("score", "path:model", "--task", "piqa", *second)
    assert code == 2 and "piqa: named twice" in shown


BAD: dict[str, bytes] = {
    "not UTF-8": b'{"format": 2, "x": "\xff"}',
    "null format": b'{"format": null}',
    "a lone surrogate": b'{"format": 2, "cell_id": "\\ud800", "stage": "s", "status": "done", "variant": {}, "started_at": "x"}',
    "a bad time": b'{"format": 2, "cell_id": "c", "stage": "s", "status": "done", "variant": {}, "started_at": "then"}',
    "a variant of text": b'{"format": 2, "cell_id": "c", "stage": "s", "status": "done", "variant": "v", "started_at": "2026"}',
    "no cells": b'{"format": 2, "kind": "plan", "manifest": "m", "written_at": "never", "cells": 5}',
    "half a record": b'{"format": 2, "cell_id": "c',
}  # fmt: skip


def test_bad_records_are_named_and_the_rest_comes_in(run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "records", tmp_path / "records")
    for number, text in enumerate(BAD.values()):
        (tmp_path / "records" / f"bad{number}.json").write_bytes(text)
    code, said = run("ingest", "records", "--ledger", "l.duckdb")
    assert code == 1
    assert [number for number in range(len(BAD)) if f"bad{number}.json" not in said] == []
    assert "3 records read" in said
    assert run("sql", "select 1", "--ledger", "l.duckdb")[0] == 0


@pytest.mark.parametrize("verb", ["sql", "figures", "report", "tables x", "compare a/dense b/dense", "status"])
def test_a_ledger_that_is_not_there(verb: str, run: Callable[..., Any]) -> None:
    code, said = run(*verb.split(), "--ledger", "none.duckdb")
    assert code == 2 and "none.duckdb" in said


def test_the_status_of_a_ledger_without_records_is_the_ledgers(tmp_path: Path) -> None:
    found = benign.records(ROOT)
    failed = next(record for record in found if record.get("stage") == "structure")
    failed |= {"status": "failed", "reason": "it broke", "result": None}
    left = found.pop()
    Ledger(tmp_path / "theirs.duckdb").ingest(found)
    told = json.loads(call("status", "--ledger", tmp_path / "theirs.duckdb", "--json").stdout)
    counts = {row["stage"]: row for row in told["stages"]}
    assert counts["structure"]["failed"] == 1 and counts[left["stage"]]["left"] == 1
    assert sum(row["done"] for row in told["stages"]) == len(found) - 2, "all but the plan and the failed one"
    assert [(row["status"], row["reason"]) for row in told["troubles"]] == [("failed", "it broke")]


def test_a_record_that_is_replaced_while_it_is_read_has_its_new_reason(tmp_path: Path) -> None:
    failed = next(record for record in benign.records(ROOT) if record.get("stage") == "structure")
    write(tmp_path, failed | {"status": "failed", "reason": "it broke", "result": None})
    assert _status_and_reason(tmp_path, failed["key"], "skipped") == ("failed", "it broke")
    assert _status_and_reason(tmp_path, "another", "skipped") == ("left", "")


@pytest.mark.parametrize("place", [12288 + 100, 798720 + 100, -200_000])
def test_a_damaged_ledger_can_be_rebuilt(place: int, run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    data = bytearray((shared / "ledger.duckdb").read_bytes())
    data[place] ^= 255
    (tmp_path / "bad.duckdb").write_bytes(data[:place] if place < 0 else data)
    found = [run(*words, "--ledger", "bad.duckdb") for words in (["report"], ["sql", "select * from results"])]
    assert all(code in (0, 1) for code, _ in found) and any(code for code, _ in found)
    assert all("sparsebench ingest" in said and "bad.duckdb" in said for code, said in found if code)


def test_a_ledger_called_as_its_schema(run: Callable[..., Any], shared: Path) -> None:
    code, said = run("ingest", shared / "records", "--ledger", "base.duckdb")
    assert code == 2 and "base.duckdb" in said
