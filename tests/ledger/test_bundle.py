"""Bundles by manifest: the plan and the cells it asks for, whoever made them; nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsebench.errors import LedgerError
from sparsebench.records import bundle, read

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
