"""Data of one's own through a whole run: scored, compared with dense, above a floor, and told in bits a byte."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Call = Callable[..., subprocess.CompletedProcess[str]]
MORE = """\
  - {floor: zero-weights}
  - {floor: heuristic}
structure: null
storage: null
benchmarks:
  decoder:
    - {task: perplexity, source: path:notes.txt, length: 32}
    - {task: choices, source: path:quiz.jsonl}
"""
ASKED = """
select task, sparsity, n, bits_per_byte is not null as bits, floor is not null as floor, verdict is not null as verdict
from results where task is not null order by task, sparsity
"""


@pytest.mark.long
def test_a_text_and_questions_of_ones_own(manifest: Path, tmp_path: Path, sparsebench: Call) -> None:
    (tmp_path / "notes.txt").write_text("the cat sat on the mat of a big red house\n" * 40)
    records = [
        {"context": f"the cat {place}", "choices": ["sat", "ran", "mat"], "gold": place % 3} for place in range(12)
    ]
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, records)))
    manifest.write_text(manifest.read_text() + MORE)
    run = sparsebench("run", manifest)
    assert run.returncode == 0, run.stderr
    told = sparsebench("sql", "--ledger", tmp_path / "ledger" / "test.duckdb", "--format", "csv", ASKED)
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    told_of = {(row["task"], row["sparsity"]): (row["bits"], row["verdict"]) for row in rows}
    assert told_of == {
        (task, share): (str(task != "choices-quiz"), str(share != "0.0"))
        for task in ("choices-quiz", "perplexity-notes")
        for share in ("0.0", "0.5", "0.9")
    }
    assert {row["floor"] for row in rows} == {"True"}
    # The heuristic reads no model: nothing is made for it.
    asked = "select stage, label, status from cells where recipe = 'heuristic'"
    told = sparsebench("sql", "--ledger", tmp_path / "ledger" / "test.duckdb", "--format", "csv", asked)
    assert [*csv.reader(io.StringIO(told.stdout))][1:] == [["benchmarks", "choices-quiz", "done"]]
    assert {row["n"] for row in rows if row["task"] == "choices-quiz"} == {"12"}
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, records[:-1])))
    again = json.loads(sparsebench("plan", manifest, "--json").stdout)
    assert {row["what"] for row in again if row["runs"]} == {"choices-quiz"}
