"""``sparsebench run``: does what a manifest asks for, resuming by default."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sparsebench import bounded, devices, provenance
from sparsebench.cli import options
from sparsebench.cli.output import note, notes, stderr
from sparsebench.cli.plan import announce, prepare_plan, show
from sparsebench.errors import LedgerError, RecordError, UserError
from sparsebench.ledger.connect import check_is_ledger
from sparsebench.ledger.store import Ledger
from sparsebench.paths import check_writable
from sparsebench.plan.cells import Variant
from sparsebench.plan.preflight import Prepared
from sparsebench.plan.resources import slots
from sparsebench.run.display import Clock, display_for
from sparsebench.run.executor import Executor, RunSettings
from sparsebench.run.local import Local
from sparsebench.run.runner import Runner
from sparsebench.run.select import Decision, DecisionKind, command_like, decisions, verified
from sparsebench.run.workspace import Leases, Workspace, exclusive
from sparsebench.units import counted

JOBS = (
    "Jobs at once (timed jobs run alone); with GPUs, as many again on the CPU. "
    "Default: up to four, or one per GPU if more, as cores and memory allow."
)
SILENCE = typer.Option(
    min=0.1,
    max=options.YEAR,
    metavar="SECONDS",
    help="Stop a job that has shown no output, CPU use or disk access for this long. "
    "Default: an hour, or ten times its estimate if longer.",
    show_default=False,
)
ADDRESS = typer.Option(
    metavar="HOST:PORT",
    help="With --executor ray: the cluster's address. Default: $RAY_ADDRESS, else the cluster here, else a new one.",
    show_default=False,
)


def run(
    manifest: options.MANIFEST,
    only: options.ONLY = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed cells again.")] = False,
    rehearse: options.REHEARSE = False,
    full: options.FULL = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first failed cell.")] = False,
    jobs: Annotated[int | None, options.count(JOBS, maximum=bounded.MOST_PROCESSES)] = None,
    silence: Annotated[float | None, SILENCE] = None,
    device: options.MANIFEST_DEVICE = None,
    executor: options.EXECUTOR = "local",
    address: Annotated[str | None, ADDRESS] = None,
    ledger: options.LEDGER_TO_WRITE = None,
    offline: options.OFFLINE = False,
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
    if address and executor != "ray":
        raise UserError(f"--address {address}: jobs run on this machine", "add --executor ray")
    ready = prepare_plan(
        manifest,
        only,
        executor,
        ledger=ledger,
        offline=offline,
        rehearse=rehearse,
        full=full,
        device=device,
        retry_failed=retry_failed,
        jobs=jobs,
    )
    if dry_run:
        show(ready, as_json=False)
        return
    _check_cells(ready)
    settings = _settings(ready, fail_fast, silence)
    workspace, chosen_executor = settings.workspace, _executor(executor, address, settings)
    check_is_ledger(workspace.ledger)
    check_writable(workspace.work, folder=True)
    with exclusive(workspace.ledger):  # before anything is decided: another run may be recording these cells
        decided, damaged = verified(decisions(ready, workspace.records, retry_failed), workspace.records, ready.device)
        notes("made again", damaged)
        _run(ready, decided, settings, chosen_executor, address)


def _check_cells(ready: Prepared) -> None:
    if (cell_count := len(ready.plan.cells)) > bounded.CELLS:
        raise UserError(
            f"{ready.request.path}: {cell_count:,} cells, and a run's plan holds at most {bounded.CELLS:,}",
            "split it by models: several manifests may share a ledger, one run after another",
        )


def _settings(ready: Prepared, fail_fast: bool, silence: float | None) -> RunSettings:
    return RunSettings(
        Workspace.of(ready.ledger, ready.work),
        ready.cache,
        kept_format=ready.keep,
        slots=slots(ready),
        fail_fast=fail_fast,
        sizes=ready.sizes,
        silence=silence,
        device=ready.device,
    )


def _run(
    ready: Prepared, decided: list[Decision], settings: RunSettings, executor: Executor, address: str | None
) -> None:
    """Run the cells that were decided on, and end with exit code 1 while one of those asked for has no result.

    The caller holds the ledger's lock.
    """
    workspace, more = settings.workspace, _run_words(settings, address)
    cells = [decision.cell for decision in decided if decision.runs]
    refused = [(decision.cell, decision.refused) for decision in decided if decision.refused]
    clock = Clock(announce(ready, cells), settings.slots, len(devices.selected_gpus(ready.device)))
    if cells or refused:
        workspace.work.mkdir(parents=True, exist_ok=True)
    provenance.origin(workspace.ledger.parent, create_it=True)
    _bring_up_to_date(workspace)
    # Keep the folders that --only leaves out: they may belong to a stopped run that will go on later.
    requested = [decision.cell.variant for decision in decided if decision.kind != DecisionKind.LEFT_OUT]
    ids = {name for variant in requested for name in (variant.id, *variant.parents)}
    variants = [variant for variant in ready.plan.variants.values() if variant.id in ids]
    if not cells and not refused:
        _tidy(ready, workspace, variants)
        _show_answer(workspace.ledger, ready.plan.manifest)
        _nothing_to_do(decided, ready, more)
        return
    answer = partial(_answer, workspace.ledger, ready.plan.manifest)
    shown_by, ledger = display_for(clock, stderr()), Ledger(workspace.ledger)
    runner = Runner(ready.plan, settings, executor, ledger.verify_and_add, shown_by, answer)
    counts = runner.run(cells, refused, variants)
    _show_answer(workspace.ledger, ready.plan.manifest)
    note(f"{', '.join(f'{count} {status}' for status, count in counts.items() if count)}; ledger: {workspace.ledger}")
    if before := _failed_before(decided):
        note(f"{counted(before, 'cell')} failed before and {'were' if before > 1 else 'was'} not tried again")
    if counts["failed"] or counts["skipped"] or before:
        note(_next_commands(ready, more))
        raise typer.Exit(1)


def _answer(ledger: Path, manifest: str, model: str = "") -> str:
    """Return what the ledger says of a model's variants, of all where none is named; empty where nothing passes."""
    from sparsebench.report import answer_table

    try:
        return answer_table(ledger, [manifest], [model] if model else [])
    except LedgerError as error:  # a table is no reason to end a run
        return f"no table: {error.message}"


def _show_answer(ledger: Path, manifest: str) -> None:
    if table := _answer(ledger, manifest):
        note(f"\n{table}")


def _bring_up_to_date(workspace: Workspace) -> None:
    """Add to the ledger the records beside it that it does not have; where there is no ledger, make one of them."""

    def left_out(error: RecordError) -> None:
        note(f"left out of the ledger: {error}")

    if not workspace.ledger.exists() and workspace.records.is_dir():
        record_count = Ledger(workspace.ledger).rebuild([workspace.records], left_out)
        note(f"no {workspace.ledger}: rebuilt from the {record_count} records in {workspace.records}")
    elif added := Ledger(workspace.ledger).catch_up(workspace.records, left_out):
        note(f"added {counted(added, 'record')} that {workspace.ledger} did not have")


def _tidy(ready: Prepared, workspace: Workspace, variants: list[Variant]) -> None:
    """Remove the folders that a run would have removed at its end."""
    if ready.keep != "dense" and os.access(workspace.work, os.W_OK):
        with Leases(workspace, variants) as leases:
            workspace.sweep()
            for variant in variants:
                leases.release(variant)


def _executor(name: str, address: str | None, settings: RunSettings) -> Executor:
    """Return the executor of this name."""
    if name == "ray":
        from sparsebench.run.cluster import Cluster

        return Cluster(settings, address)
    return Local(settings)


def _failed_before(decided: list[Decision]) -> int:
    """Count the cells that failed in an earlier run and do not run in this one."""
    return sum(decision.kind == DecisionKind.FAILED and not decision.runs for decision in decided)


def _run_words(settings: RunSettings, address: str | None) -> list[str]:
    """Return the options of a run that say how it is done, as they were given."""
    words = ["--address", address] if address else []
    words += ["--fail-fast"] if settings.fail_fast else []
    return words + (["--silence", f"{settings.silence:.15g}"] if settings.silence else [])


def _next_commands(ready: Prepared, more: Sequence[str]) -> str:
    """Return the commands that show why cells failed and that try them again; ``more`` are options of this run."""
    again = command_like("run", ready.request, [*more, "--retry-failed"])
    return f"see why: {command_like('status', ready.request)}; try again: {again}"


def _nothing_to_do(decided: list[Decision], ready: Prepared, more: Sequence[str]) -> None:
    """Say why nothing runs. Raises typer.Exit where cells failed before."""
    asked = " that --only asks for" if any(decision.kind == DecisionKind.LEFT_OUT for decision in decided) else ""
    exceptions = ""
    if refused_count := sum(decision.kind == DecisionKind.UNSUPPORTED for decision in decided):
        exceptions = f" but {refused_count}, which cannot run here: {command_like('status', ready.request)}"
    if failed := _failed_before(decided):
        note(f"nothing to do: {counted(failed, 'cell')} failed before, every other{asked} has its result{exceptions}")
        note(_next_commands(ready, more))
        raise typer.Exit(1)
    note(f"nothing to do: every cell{asked} has its result{exceptions}")
