"""Bundles by manifest: the plan and the cells it asks for, whoever made them; nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sparsebench.errors import LedgerError
from sparsebench.ledger.incoming import unbundle
from sparsebench.paths import write_whole
from sparsebench.provenance import sealed
from sparsebench.records import bundle, read, statuses, write


def failed(found: list[dict[str, Any]], cell: str) -> dict[str, Any]:
    """The record, without a checksum, of a cell of this id that failed."""
    record = next(record for record in found if record.get("stage") == "storage")
    kept = {key: value for key, value in record.items() if key not in ("checksum", "origin")}
    return kept | {"cell_id": cell, "key": cell, "status": "failed", "result": None}


AT = "2026-01-02T03:04:05.000+00:00"


def test_a_bundle_holds_what_its_manifest_asks_for(tmp_path: Path, found: list[dict[str, Any]]) -> None:
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
        record = failed(found, cell) | {"manifest": "one"}
        (folder / f"{cell}.failed.json").write_text(json.dumps(record))
    assert bundle(folder, tmp_path / "two.jsonl.zst", ["two"]) == 3
    found = list(read([tmp_path / "two.jsonl.zst"]))
    assert [record.get("cell_id") for record in found] == [None, "b", "c"]
    with pytest.raises(LedgerError, match="three"):
        bundle(folder, tmp_path / "three.jsonl.zst", ["three"])
    assert not list(tmp_path.glob("*three*"))
    assert not list(tmp_path.glob(".*"))


def test_a_bundle_in_the_folder_that_it_is_of_does_not_hold_itself(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    write(tmp_path, failed(found, "a"))
    out = tmp_path / "all.jsonl.zst"
    assert [bundle(tmp_path, out) for _ in range(2)] == [1, 1]


def test_a_run_goes_on_from_what_a_bundle_holds(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    first = next(record for record in found if record.get("stage") == "storage")
    second = next(record for record in found if record.get("stage") == "latency")
    cut = [sealed(record | {"status": "failed", "result": None}) for record in (first, second)]
    write(tmp_path / "theirs", cut[1])
    write(tmp_path / "theirs", first)
    older = tmp_path / "theirs" / f"{first['key']}.failed.json"  # left by a kill before this was removed
    older.write_text(json.dumps(cut[0], separators=(",", ":")))
    bundle(tmp_path / "theirs", tmp_path / "b.jsonl.zst")
    write(tmp_path / "ours", second)
    assert unbundle(tmp_path / "b.jsonl.zst", tmp_path / "ours") == (1, 1)
    assert statuses(tmp_path / "ours") == {first["key"]: "done", second["key"]: "done"}
    assert next(read([tmp_path / "ours" / f"{first['key']}.done.json"])) == first


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "a.done.json", "{}")
    assert not list(tmp_path.iterdir())
