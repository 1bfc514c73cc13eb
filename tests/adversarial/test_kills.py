"""Runs that are killed: what it takes for lost, twice, wrong, left behind, false or alive is found."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sparsebench.ledger.store import Ledger
from tests.adversarial import benign, homes, kills
from tests.adversarial.homes import ROOT, Home, compare
from tests.adversarial.kills import Attack


def home(folder: Path, records: list[dict[str, Any]], kept: bool = True) -> Home:
    """A home as a run leaves it; ``kept``: with its ledger."""
    made = Home(folder, folder / "attack.yaml")
    (made.ledger.parent / "records").mkdir(parents=True)
    for record in records:
        name = f"plan-{record['manifest']}" if record.get("kind") else f"{record['key']}.{record['status']}"
        (made.ledger.parent / "records" / f"{name}.json").write_text(json.dumps(record))
    if kept:
        Ledger(made.ledger).ingest(records)
    return made


def changed(records: list[dict[str, Any]], stage: str, **more: Any) -> list[dict[str, Any]]:
    """The same with another record of one stage."""
    return [record | more if record.get("stage") == stage else record for record in records]


def test_what_differs_from_the_undisturbed_run_is_found_by_kind(tmp_path: Path) -> None:
    # Scores cost a second of statistics a ledger.
    records = [record for record in benign.records(ROOT) if record.get("stage") in (None, "structure", "storage")]
    wanted = home(tmp_path / "wanted", records)
    later = changed(records, "structure", seconds=5.0, started_at="2027-01-01T00:00:00+00:00")
    other = home(tmp_path / "later", later)
    assert list(compare(other, wanted)) == [], "times may differ"
    Ledger(other.ledger).ingest(records)
    (other.folder / "tmp").mkdir()
    assert {kind for kind, _ in compare(other, wanted)} == {"twice", "left behind"}

    size = next(record for record in records if record.get("stage") == "storage")
    sizes = [one | {"bytes": one["bytes"] + 1} for one in size["result"]["sizes"]]
    less = [record for record in records if record.get("stage") != "structure"]
    other = home(tmp_path / "other", changed(less, "storage", result=size["result"] | {"sizes": sizes}))
    found = dict(compare(other, wanted))
    assert found.keys() == {"lost", "wrong"} and size["key"] in found["wrong"]


def test_a_failure_is_false_unless_it_names_a_kill_that_there_was(tmp_path: Path) -> None:
    for reason, hit, false in (("signal SIGKILL", True, 0), ("signal SIGKILL", False, 1), ("broken pipe", True, 1)):
        broken = changed(benign.records(ROOT), "structure", status="failed", result=None, reason=reason)
        mine = home(tmp_path / f"{reason} {hit}", broken, kept=False)
        judge = Attack(random.Random(0), 1.0)
        judge.failures(mine, set(), hit, "here")
        assert (len(judge.tally.wrong["false failures"]), judge.tally.honest) == (false, 1 - false)


def test_a_process_that_outlives_its_run_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "ALIVE_SECONDS", 0.2)
    mine = Home(tmp_path, tmp_path / "attack.yaml")
    program = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {homes.MARK: str(tmp_path)}, check=True)
    (left,) = mine.others()
    assert [str(left.pid) in found for found in mine.outliving()] == [True]
    left.kill()
    until = time.monotonic() + 60
    while mine.others() and time.monotonic() < until:
        time.sleep(0.02)
    assert mine.outliving() == []


@pytest.mark.long
def test_kills_leave_what_an_undisturbed_run_leaves(tmp_path: Path) -> None:
    tally = kills.attack(tmp_path, 4)
    assert tally.total == 4 and not any(tally.wrong.values()), tally
