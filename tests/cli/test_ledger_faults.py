"""Damaged records, plans and ledgers are told in a sentence that names them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparsebench.cli import app
from sparsebench.cli.status import _status_and_reason
from sparsebench.ledger.store import Ledger
from sparsebench.records import write
from tests.adversarial import benign
from tests.cli.conftest import ROOT

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


def test_the_status_of_a_ledger_without_records_is_the_ledgers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = benign.records(ROOT)
    failed = next(record for record in found if record.get("stage") == "structure")
    failed |= {"status": "failed", "reason": "it broke", "result": None}
    left = found.pop()
    Ledger(tmp_path / "theirs.duckdb").ingest(found)
    monkeypatch.setattr(sys, "argv", ["sparsebench", "status", "--ledger", str(tmp_path / "theirs.duckdb"), "--json"])
    with pytest.raises(SystemExit):
        app.main()
    told = json.loads(capsys.readouterr().out)
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


@pytest.mark.parametrize("query", [";", "-- nothing", "/* */"])
def test_no_query_at_all(query: str, run: Callable[..., Any], shared: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text(query)
    code, said = run("sql", "--file", "q.sql", "--ledger", shared / "ledger.duckdb")
    assert code == 2 and said
