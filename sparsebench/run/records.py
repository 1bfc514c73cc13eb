"""Records: one atomic file per finished cell, named ``<cell id>.<status>.json``.

The status is in the name so that a plan needs no reading. A record appears whole or not at all,
and writing it again with another status replaces the old one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsebench import bounded, environment
from sparsebench.errors import LedgerError
from sparsebench.paths import create
from sparsebench.plan.cells import Cell, Variant
from sparsebench.plan.stages import timed

FORMAT = 2
STATUSES = ("done", "failed", "unsupported", "skipped")


@dataclass(frozen=True)
class Outcome:
    """How a cell ended. ``reason`` says why, for every status but ``done``; ``seconds`` is the cell's own time.

    ``content`` is the checksum of the weights that it was measured on, ``dtype`` the precision that it ran in.
    """

    status: str
    result: dict[str, Any] | None = None
    reason: str | None = None
    started_at: datetime | None = None
    seconds: float = 0.0
    content: str = ""
    dtype: str = ""


def key(cell: Cell) -> str:
    """What a cell's record is filed under: its id, with the place where the answer is that place's alone."""
    return f"{cell.id}-{environment.where()['id']}" if timed(cell.stage) else cell.id


def make(cell: Cell, manifest: str, outcome: Outcome) -> dict[str, Any]:
    """The record of one cell, as it is stored."""
    started = outcome.started_at or datetime.now(UTC)
    return {
        "format": FORMAT,
        "cell_id": cell.id,
        "key": key(cell),
        "stage": cell.stage,
        "status": outcome.status,
        "reason": outcome.reason,
        "manifest": manifest,
        "variant": cell.variant.record(),
        "content": outcome.content,
        "settings": cell.settings,
        "where": {**environment.where(), "dtype": outcome.dtype},
        "versions": environment.versions(),
        "environment": environment.as_json(),
        "started_at": started.isoformat(timespec="milliseconds"),
        "seconds": round(outcome.seconds, 3),
        "result": outcome.result,
    }


def write(folder: Path, record: dict[str, Any]) -> Path:
    """Store a record atomically and durably; an earlier one of the same cell goes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record['key']}.{record['status']}.json"
    write_atomically(path, json.dumps(record, separators=(",", ":")))
    for status in STATUSES:
        if status != record["status"]:
            (folder / f"{record['key']}.{status}.json").unlink(missing_ok=True)
    return path


def write_plan(folder: Path, manifest: str, cells: Iterable[Cell]) -> dict[str, Any]:
    """Store which cells a manifest asks for, so that a ledger can be rebuilt with its manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": FORMAT,
        "kind": "plan",
        "manifest": manifest,
        "machine": environment.machine(),
        "written_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "cells": [
            {
                "cell_id": cell.id,
                "key": key(cell),
                "stage": cell.stage,
                "label": cell.label,
                "settings": cell.settings,
                "variant": cell.variant.record(),
            }
            for cell in cells
        ],
    }
    write_atomically(folder / f"plan-{manifest}.json", json.dumps(record, separators=(",", ":")))
    return record


def write_atomically(path: Path, text: str) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with create(partial) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def statuses(folder: Path) -> dict[str, str]:
    """The status of every recorded cell by its ``key``, from the names alone; done, where a kill left an older record beside."""
    if not folder.is_dir():
        return {}
    found: dict[str, str] = {}
    for name in os.listdir(folder):
        words = name.split(".")
        if len(words) == 3 and words[2] == "json" and words[1] in STATUSES and found.get(words[0]) != "done":
            found[words[0]] = words[1]
    return found


def read(folder: Path, name: str, status: str) -> dict[str, Any]:
    """The record that the cell of this ``key`` left with this status."""
    return bounded.read_object(folder / f"{name}.{status}.json", LedgerError, "remove the file: its cell runs again")


def planned(folder: Path) -> dict[str, list[tuple[str, str, str]]]:
    """The cells of every manifest that was run here: (key, stage, label) by manifest, in the plan's order."""
    found = {}
    for path in sorted(folder.glob("plan-*.json")):
        plan = bounded.read_object(path, LedgerError, "remove the file: the next run writes it again")
        cells = [(c["key"], c["stage"], f"{Variant.read(c['variant']).label} · {c['label']}") for c in plan["cells"]]
        found[plan["manifest"]] = cells
    return found
