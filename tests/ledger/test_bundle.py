"""Bundles by manifest: the plan and the cells it asks for, whoever made them; nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsebench.errors import LedgerError
from sparsebench.ledger.records import bundle, read


def test_a_bundle_holds_what_its_manifest_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    for name, cells in {"one": ["a", "b"], "two": ["b", "c"]}.items():
        plan = {"format": 1, "kind": "plan", "manifest": name, "cells": [{"cell_id": cell} for cell in cells]}
        (folder / f"plan-{name}.json").write_text(json.dumps(plan))
    for cell in "abc":
        (folder / f"{cell}.done.json").write_text(json.dumps({"format": 1, "cell_id": cell, "manifest": "one"}))
    assert bundle(folder, tmp_path / "two.jsonl.zst", ["two"]) == 3
    found = list(read([tmp_path / "two.jsonl.zst"]))
    assert [record.get("cell_id") for record in found] == [None, "b", "c"]
    with pytest.raises(LedgerError, match="three"):
        bundle(folder, tmp_path / "three.jsonl.zst", ["three"])
