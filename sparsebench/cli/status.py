"""``sparsebench status``: which cells are done, failed, skipped and left, with the reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import FULL, JSON, LEDGER, MANIFEST_DEVICE, REHEARSE, file_to_read
from sparsebench.cli.output import emit_json, emit_table, note
from sparsebench.errors import RecordError
from sparsebench.ledger import sqlfiles
from sparsebench.ledger.query import run as query
from sparsebench.paths import ledger_path
from sparsebench.plan.preflight import PlanRequest, Prepared, prepare
from sparsebench.records import read_cell, record_key, statuses
from sparsebench.run.workspace import Workspace, running_process

STATES = ("done", "failed", "unsupported", "skipped", "left")
WITHOUT_REASON = ("done", "left")
"""The states that need no reason."""


def status(
    manifest: Annotated[
        Path | None,
        typer.Argument(help="The experiment file. Default: every experiment in the ledger.", parser=file_to_read),
    ] = None,
    rehearse: REHEARSE = False,
    full: FULL = False,
    device: MANIFEST_DEVICE = None,
    ledger: LEDGER = None,
    as_json: JSON = False,
) -> None:
    """Show which cells are done, failed, skipped and left, with the reasons.

    Without a manifest it shows every cell in the ledger, those ingested from
    other machines included. It is safe during a run, because it changes nothing
    that a run needs.

    \b
    sparsebench status quickstart.yaml
    sparsebench status --json
    sparsebench status --ledger ledger/sparsebench.duckdb
    """
    if manifest:
        ready = prepare(PlanRequest(manifest, ledger, offline=True, rehearse=rehearse, full=full, device=device))
        path = ready.ledger
        cells = _planned(ready)
    else:
        path = ledger_path(ledger)
        cells = [_CellStatus(*map(str, row)) for row in query(path, sqlfiles.read("status")).rows]
    unfinished = [cell for cell in cells if cell.status not in WITHOUT_REASON]
    counts = _counts(cells)
    running = running_process(path)
    if as_json:
        troubles = [
            {"manifest": cell.manifest, "status": cell.status, "cell": cell.label, "reason": cell.reason}
            for cell in unfinished
        ]
        emit_json({"stages": counts, "troubles": troubles, "running": running})
        return
    emit_table(["manifest", "stage", *STATES], [list(row.values()) for row in counts])
    by_reason: dict[tuple[str, str, str], list[str]] = {}  # skipped cells have the reason of what they depend on
    for cell in unfinished:
        by_reason.setdefault((cell.manifest, cell.status, cell.reason), []).append(cell.label)
    for (name, state, reason), labels in by_reason.items():
        others = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        note(f"\n{name}: {labels[0]}{others}: {state}\n  {reason}")
    if running:
        note(f"\nprocess {running} is running on {path}")


@dataclass(frozen=True)
class _CellStatus:
    """A cell that a manifest asks for, and its status."""

    manifest: str
    stage: str
    label: str
    status: str
    reason: str


def _counts(cells: list[_CellStatus]) -> list[dict[str, str | int]]:
    """Return a row for each manifest and stage, in the cells' order, with how many cells are in each state."""
    counts = Counter((cell.manifest, cell.stage, cell.status) for cell in cells)
    return [
        {"manifest": name, "stage": stage, **{state: counts[name, stage, state] for state in STATES}}
        for name, stage in dict.fromkeys((cell.manifest, cell.stage) for cell in cells)
    ]


def _planned(ready: Prepared) -> list[_CellStatus]:
    """Return the cells of a plan, with their status by the records beside its ledger."""
    folder = Workspace.of(ready.ledger, ready.work).records
    recorded, cells = statuses(folder), []
    for cell in ready.plan.cells:
        key, label = record_key(cell, ready.device), f"{cell.variant.label} · {cell.label}"
        status, reason = _status_and_reason(folder, key, recorded.get(key, "left"))
        cells.append(_CellStatus(ready.plan.manifest, cell.stage, label, status, reason))
    return cells


def _status_and_reason(folder: Path, key: str, status: str) -> tuple[str, str]:
    """Return the status of a cell, which was ``status`` when the folder was listed, and why it is not done."""
    if status in WITHOUT_REASON:
        return status, ""
    try:
        return status, str(read_cell(folder, key, status).get("reason"))
    except RecordError:
        current = statuses(folder).get(key, "left")
        if current == status:
            raise
        return _status_and_reason(folder, key, current)  # a run has just replaced it
