"""``sparsebench status``: what is done, failed and left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from sparsebench.cli.options import EXPERIMENT, JSON, LEDGER, REHEARSE
from sparsebench.cli.plan import prepared


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command(rich_help_panel=EXPERIMENT)(status)


def status(
    manifest: Annotated[
        Path | None, typer.Argument(help="The experiment file; default: all in the ledger.", show_default=False)
    ] = None,
    rehearse: REHEARSE = False,
    ledger: LEDGER = None,
    as_json: JSON = False,
) -> None:
    """What is done, failed, skipped and left, with the reasons.

    It changes nothing that a run needs: safe while one goes on.

    \b
    sparsebench status quickstart.yaml
    sparsebench status --json
    """
    from sparsebench.cli.output import emit_json, emit_table, note
    from sparsebench.plan.preflight import ledger_path
    from sparsebench.records import key, planned, read_cell, statuses
    from sparsebench.run.workspace import Workspace

    if manifest:
        ready = prepared(manifest, ledger, True, rehearse, False, None)
        folder = Workspace.of(ready.ledger, ready.work).records
        plans = {
            ready.plan.manifest: [(key(c), str(c.stage), f"{c.variant.label} · {c.label}") for c in ready.plan.cells]
        }
    else:
        folder = Workspace.of(ledger_path(ledger), Path()).records
        plans = planned(folder)
    known = statuses(folder)
    rows, troubles = [], []
    for name, cells in plans.items():
        for stage in dict.fromkeys(stage for _, stage, _ in cells):
            counts = Counter(known.get(cell, "left") for cell, its, _ in cells if its == stage)
            rows.append([name, stage, *(counts[word] for word in ("done", "failed", "unsupported", "skipped", "left"))])
        for cell, _, label in cells:
            if (state := known.get(cell)) in ("failed", "unsupported", "skipped"):
                troubles.append([name, state, label, read_cell(folder, cell, state)["reason"]])
    if as_json:
        keys = ["manifest", "stage", "done", "failed", "unsupported", "skipped", "left"]
        counted = [dict(zip(keys, row, strict=True)) for row in rows]
        why = [dict(zip(["manifest", "status", "cell", "reason"], row, strict=True)) for row in troubles]
        emit_json({"stages": counted, "troubles": why})
        return
    emit_table(["manifest", "stage", "done", "failed", "unsupported", "skipped", "left"], rows)
    for (name, state, reason), labels in _by_reason(troubles).items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        note(f"\n{name}: {labels[0]}{more}: {state}\n  {reason}")


def _by_reason(troubles: list[list[str]]) -> dict[tuple[str, str, str], list[str]]:
    """The labels of the cells that have one manifest, status and reason: what is skipped has it from what it depended on."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, state, label, reason in troubles:
        found.setdefault((name, state, reason), []).append(label)
    return found
