"""Bundles by manifest: the plan and the cells it asks for, whoever made them; nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sparsebench.errors import LedgerError, RecordError
from sparsebench.paths import write_whole
from sparsebench.records import bundle, read, statuses, unbundle, write

AT = "2026-01-02T03:04:05.000+00:00"


def test_a_bundle_holds_what_its_manifest_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    for name, cells in {"one": ["a", "b"], "two": ["b", "c"]}.items():
        plan = {
            "format": 2,
            "kind": "plan",
            "manifest": name,
            "written_at": AT,
            "cells": [{"cell_id": c} for c in cells],
        }
        (folder / f"plan-{name}.json").write_text(json.dumps(plan))
    for cell in "abc":
        record = {
            "format": 2,
            "cell_id": cell,
            "stage": "storage",
            "status": "done",
            "variant": {"id": "v"},
            "started_at": AT,
        }
        (folder / f"{cell}.done.json").write_text(json.dumps(record | {"manifest": "one"}))
    assert bundle(folder, tmp_path / "two.jsonl.zst", ["two"]) == 3
    found = list(read([tmp_path / "two.jsonl.zst"]))
    assert [record.get("cell_id") for record in found] == [None, "b", "c"]
    with pytest.raises(LedgerError, match="three"):
        bundle(folder, tmp_path / "three.jsonl.zst", ["three"])
    assert not list(tmp_path.glob("*three*"))
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_in_the_folder_that_it_is_of_does_not_hold_itself(tmp_path: Path) -> None:
    record = {"format": 2, "cell_id": "a", "key": "a", "stage": "storage", "status": "done", "variant": {}}
    write(tmp_path, record | {"started_at": AT})
    out = tmp_path / "all.jsonl.zst"
    assert [bundle(tmp_path, out) for _ in range(2)] == [1, 1]


def test_a_run_goes_on_from_what_a_bundle_holds(tmp_path: Path) -> None:
    made = [
        {"format": 2, "cell_id": c, "key": c, "stage": "storage", "status": s, "variant": {"id": "v"}, "started_at": AT}
        for c, s in (("a", "done"), ("b-0f", "failed"))
    ]
    for record in made:
        write(tmp_path / "theirs", record)
    older = tmp_path / "theirs" / "a.failed.json"  # left by a kill between writing the newer and removing this
    older.write_text(json.dumps(made[0] | {"status": "failed"}))
    bundle(tmp_path / "theirs", tmp_path / "b.jsonl.zst")
    write(tmp_path / "ours", made[1] | {"status": "done"})
    assert unbundle(tmp_path / "b.jsonl.zst", tmp_path / "ours") == (1, 1)
    assert statuses(tmp_path / "ours") == {"a": "done", "b-0f": "done"}
    assert next(read([tmp_path / "ours" / "a.done.json"])) == made[0]


@pytest.mark.parametrize("wrong", [{"key": "../a"}, {"key": None}, {"status": "../../a"}])
def test_a_bundle_writes_no_file_outside_of_its_folder(tmp_path: Path, wrong: dict[str, str | None]) -> None:
    record = {
        "format": 2,
        "cell_id": "a",
        "key": "a",
        "stage": "storage",
        "status": "done",
        "variant": {},
        "started_at": AT,
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.done.json").write_text(json.dumps(record | wrong))
    with pytest.raises(RecordError, match="not a valid record"):
        unbundle(tmp_path / "in" / "a.done.json", tmp_path / "x" / "y" / "out")
    assert [path.name for path in tmp_path.rglob("*.json")] == ["a.done.json"]


@pytest.mark.parametrize("kind", ["note", None, ["plan"]])
def test_a_record_of_an_unknown_kind_is_named(tmp_path: Path, kind: object) -> None:
    (tmp_path / "odd.json").write_text(json.dumps({"format": 2, "kind": kind}))
    with pytest.raises(RecordError, match=r"odd\.json.*kind"):
        unbundle(tmp_path / "odd.json", tmp_path / "out")


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.done.json", "{}")
    assert not list(tmp_path.iterdir())
