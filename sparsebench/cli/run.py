"""``run`` does what a manifest asks for, resuming by default; ``status`` shows what is done, failed and left."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsebench import bounded, devices
from sparsebench.cli.options import (
    EXECUTOR,
    EXECUTORS,
    FULL,
    JSON,
    LEDGER,
    LEDGER_TO_WRITE,
    MANIFEST,
    MANIFEST_DEVICE,
    OFFLINE,
    ONLY,
    REHEARSE,
    YEAR,
    check_name,
    file_to_read,
)
from sparsebench.cli.output import emit_json, emit_table, note, notes, stderr
from sparsebench.cli.plan import announce, show
from sparsebench.errors import NoLedgerError, RecordError, UserError

if TYPE_CHECKING:
    from sparsebench.plan.preflight import Prepared
    from sparsebench.run.executor import Executor, RunSettings
    from sparsebench.run.select import Decision


def run(
    manifest: MANIFEST,
    only: ONLY = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    rehearse: REHEARSE = False,
    full: FULL = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failed cell.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=bounded.FEW,
            help="Jobs at once (timed jobs run alone); with GPUs, as many again on the CPU. "
            "Default: up to four, or one per GPU if more, as cores and memory allow.",
        ),
    ] = None,
    silence: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=YEAR,
            metavar="SECONDS",
            help="Stop a job that has shown no output, CPU use or disk access for this long. "
            "Default: an hour, or ten times its estimate if longer.",
            show_default=False,
        ),
    ] = None,
    device: MANIFEST_DEVICE = None,
    executor: EXECUTOR = "local",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With --executor ray: the cluster's address. Default: $RAY_ADDRESS, else the cluster here, else a new one.",
            show_default=False,
        ),
    ] = None,
    ledger: LEDGER_TO_WRITE = None,
    offline: OFFLINE = False,
) -> None:
    """Run every cell of a manifest that has no result yet.

    A finished cell is never repeated; Ctrl-C loses at most the cells in progress.
    The exit code is 1 while a requested cell is recorded as failed or skipped.

    \b
    sparsebench run quickstart.yaml
    sparsebench run experiments.yaml --only model=opt-1.3b --only stage=memory
    sparsebench run experiments.yaml --rehearse
    sparsebench run experiments.yaml --executor ray --address auto
    """
    from sparsebench import provenance
    from sparsebench.ledger.connect import refuse_other
    from sparsebench.ledger.store import Ledger
    from sparsebench.plan.preflight import PlanRequest, prepare
    from sparsebench.plan.resources import slots
    from sparsebench.run.display import Clock, display
    from sparsebench.run.executor import RunSettings
    from sparsebench.run.runner import Runner
    from sparsebench.run.select import LEFT_OUT, decisions, parse_only, verified
    from sparsebench.run.workspace import Leases, Workspace, exclusive

    check_name("executor", executor, EXECUTORS)
    chosen = parse_only(only or [])
    asked = PlanRequest(manifest, ledger, offline, rehearse, full, chosen, device, executor, retry_failed, jobs)
    ready = prepare(asked)
    if dry_run:
        show(ready, as_json=False)
        return
    if (many := len(ready.plan.cells)) > bounded.CELLS:
        raise UserError(
            f"{manifest}: {many:,} cells, and a run's plan holds at most {bounded.CELLS:,}",
            "split it by models: several manifests may share a ledger, one run after another",
        )
    space = Workspace.of(ready.ledger, ready.work)
    found, damaged = verified(decisions(ready, space.records, retry_failed), space.records, ready.device)
    notes("made again", damaged)
    cells = [decision.cell for decision in found if decision.runs]
    refused = [(decision.cell, decision.refused) for decision in found if decision.refused]
    estimate = announce(ready, cells)
    side_by_side = slots(ready)
    settings = RunSettings(space, ready.cache, ready.keep, side_by_side, fail_fast, ready.sizes, silence, ready.device)
    how = _executor(executor, address, settings)
    clock = Clock(estimate, side_by_side, len(devices.chosen(ready.device)))
    refuse_other(space.ledger)
    if cells or refused:
        space.work.mkdir(parents=True, exist_ok=True)
    with exclusive(space.ledger):
        provenance.origin(space.ledger.parent, create_it=True)
        if not space.ledger.exists() and space.records.is_dir():
            made = Ledger(space.ledger).rebuild([space.records], _left_out)
            note(f"no {space.ledger}: rebuilt from the {made} records in {space.records}")
        elif added := Ledger(space.ledger).catch_up(space.records, _left_out):
            note(f"added {added} record{'s' * (added > 1)} that {space.ledger} did not have")
        # Keep the folders that --only leaves out: they may belong to a stopped run that will go on later.
        meant = {
            name for one in found if one.why != LEFT_OUT for name in (one.cell.variant.id, *one.cell.variant.parents)
        }
        own = [variant for variant in ready.plan.variants.values() if variant.id in meant]
        if not cells and not refused:
            if ready.keep != "dense" and os.access(space.work, os.W_OK):
                with Leases(space, own) as leases:
                    leases.tidy(own)
            _nothing(found, ready, address)
            return
        counts = Runner(
            ready.plan,
            settings,
            how,
            Ledger(space.ledger).take,
            display(clock, stderr()),
        ).run(cells, refused, own)
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    note(f"{told}; ledger: {space.ledger}")
    before = _failed_before(found)
    if before:
        note(f"{before} cell{'s' * (before > 1)} failed before and {'were' if before > 1 else 'was'} not tried again")
    if counts["failed"] or counts["skipped"] or before:
        note(_ways(ready, address))
        raise typer.Exit(1)


def _executor(name: str, address: str | None, settings: RunSettings) -> Executor:
    """Return the executor of this name. Raises UserError for an address without ``--executor ray``."""
    if name == "ray":
        from sparsebench.run.cluster import Cluster

        return Cluster(settings, address)
    if address:
        raise UserError(f"--address {address}: jobs run on this machine", "add --executor ray")
    from sparsebench.run.local import Local

    return Local(settings)


def _left_out(error: RecordError) -> None:
    note(f"left out of the ledger: {error}")


def _failed_before(found: list[Decision]) -> int:
    """Count the cells that failed in an earlier run and do not run in this one."""
    return sum(decision.why == "failed before" and not decision.runs for decision in found)


def _again(verb: str, ready: Prepared, address: str | None) -> str:
    """Return the command that asks ``verb`` for the same cells as this run."""
    asked = ready.request
    words = ["sparsebench", verb, str(asked.path), *["--rehearse"] * asked.rehearse, *["--full"] * asked.full]
    words += ["--device", asked.device] if asked.device else []
    words += ["--ledger", str(asked.ledger)] if asked.ledger else []
    if verb != "status":
        words += [word for key, value in asked.only for word in ("--only", f"{key}={value}")]
        words += ["--executor", asked.executor] if asked.executor != "local" else []
        words += ["--address", address] if address else []
        words += ["--offline"] * asked.offline
    return shlex.join(words)


def _ways(ready: Prepared, address: str | None) -> str:
    """Return the commands that show why cells failed and that try them again."""
    see, again = (_again(verb, ready, address) for verb in ("status", "run"))
    return f"see why: {see}; try again: {again} --retry-failed"


def _nothing(found: list[Decision], ready: Prepared, address: str | None) -> None:
    """Say why nothing runs. Raises UserError where --only selects no cell, typer.Exit where cells failed before."""
    from sparsebench.run.select import LEFT_OUT

    asked = [decision for decision in found if decision.why != LEFT_OUT]
    if found and not asked:
        raise UserError(
            "--only matches no cell of the manifest", f"see them all: sparsebench plan {ready.request.path}"
        )
    if failed := _failed_before(found):
        note(f"nothing to do: {failed} cell{'s' * (failed > 1)} failed before, all others have their result")
        note(_ways(ready, address))
        raise typer.Exit(1)
    unable = sum(decision.why.startswith("unsupported") for decision in asked)
    but = f" but {unable}, which cannot run here: {_again('status', ready, address)}" if unable else ""
    note(f"nothing to do: every cell has its result{but}")


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
    from sparsebench.plan.preflight import PlanRequest, ledger_path, prepare
    from sparsebench.run.workspace import holder

    if manifest:
        ready = prepare(PlanRequest(manifest, ledger, True, rehearse, full, device=device))
        path = ready.ledger
        cells = _planned(ready)
    else:
        path = ledger_path(ledger)
        cells = _held(path)
    states = ["done", "failed", "unsupported", "skipped", "left"]
    counts = Counter((cell.manifest, cell.stage, cell.status) for cell in cells)
    stages = dict.fromkeys((cell.manifest, cell.stage) for cell in cells)
    rows = [[name, stage, *(counts[name, stage, state] for state in states)] for name, stage in stages]
    troubles = [cell for cell in cells if cell.status in states[1:-1]]
    running = holder(path)
    heads = ["manifest", "stage", *states]
    if as_json:
        counted = [dict(zip(heads, row, strict=True)) for row in rows]
        why = [
            {"manifest": cell.manifest, "status": cell.status, "cell": cell.label, "reason": cell.reason}
            for cell in troubles
        ]
        emit_json({"stages": counted, "troubles": why, "running": running})
        return
    emit_table(heads, rows)
    by_reason: dict[tuple[str, str, str], list[str]] = {}  # skipped cells have the reason of what they depend on
    for cell in troubles:
        by_reason.setdefault((cell.manifest, cell.status, cell.reason), []).append(cell.label)
    for (name, state, reason), labels in by_reason.items():
        more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
        note(f"\n{name}: {labels[0]}{more}: {state}\n  {reason}")
    if running:
        note(f"\nprocess {running} is running on {path}")


@dataclass(frozen=True)
class _Cell:
    """A cell that a manifest asks for, and its status."""

    manifest: str
    stage: str
    label: str
    status: str
    reason: str


def _planned(ready: Prepared) -> list[_Cell]:
    """Return the cells of a plan, with their status by the records beside its ledger."""
    from sparsebench.records import key
    from sparsebench.run.workspace import Workspace

    folder = Workspace.of(ready.ledger, ready.work).records
    asked = [
        (key(cell, ready.device), str(cell.stage), f"{cell.variant.label} · {cell.label}") for cell in ready.plan.cells
    ]
    return _recorded(folder, {ready.plan.manifest: asked})


def _held(ledger: Path) -> list[_Cell]:
    """Return the cells in a ledger; without a ledger, those of the records beside it.

    Raises NoLedgerError where there is neither.
    """
    from sparsebench.ledger import sqlfiles
    from sparsebench.ledger.query import run as query
    from sparsebench.records import planned
    from sparsebench.run.workspace import Workspace

    if ledger.exists():
        rows = query(ledger, sqlfiles.read("status")).rows
        return [_Cell(*(str(value) for value in row)) for row in rows]
    folder = Workspace.of(ledger, Path()).records
    if not folder.is_dir():
        raise NoLedgerError(f"no ledger at {ledger}", "make one with `sparsebench run MANIFEST`")
    return _recorded(folder, planned(folder))


def _recorded(folder: Path, plans: Mapping[str, list[tuple[str, str, str]]]) -> list[_Cell]:
    """Return the cells of each manifest, given as (key, stage, label), with their status by the records in a folder."""
    from sparsebench.records import read_cell, statuses

    known, found = statuses(folder), []
    for manifest, cells in plans.items():
        for key, stage, label in cells:
            status = known.get(key, "left")
            told = status not in ("done", "left")
            try:
                reason = str(read_cell(folder, key, status).get("reason")) if told else ""
            except RecordError:
                if statuses(folder).get(key) == status:
                    raise
                status, reason = statuses(folder).get(key, "left"), ""  # a run has just replaced it
            found.append(_Cell(manifest, stage, label, status, reason))
    return found
