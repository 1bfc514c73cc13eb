"""``sparsebench doctor``: what works on this machine, each with its fix."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from sparsebench import bounded, devices
from sparsebench.cli.options import DEVICE, JSON, OFFLINE, count, writes_file
from sparsebench.cli.output import emit_json
from sparsebench.errors import UserError
from sparsebench.escape import visible
from sparsebench.paths import create
from sparsebench.run.doctor import Finding, examine

COLOURS = {"ok": "green", "slower": "yellow", "missing": "red", "absent": "", "offline": "yellow"}


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Run thirteen checks on the GPUs; they take some minutes.")
    ] = False,
    device: DEVICE = "auto",
    ranks: Annotated[
        int | None,
        count("With --gpu: the most ranks. Default: one per GPU; two on a CPU.", maximum=bounded.MOST_PROCESSES),
    ] = None,
    out: Annotated[Path | None, writes_file("With --gpu: also write the results to this file, as JSON.")] = None,
    as_json: JSON = False,
    offline: OFFLINE = False,
) -> None:
    """Check what works on this machine and what is slower than it could be, and name the fixes.

    The exit code is 1 if something is missing that a stage needs,
    or if a check of --gpu says no.

    \b
    sparsebench doctor
    sparsebench doctor --offline --json
    sparsebench doctor --gpu --out gpu-acceptance.json
    sparsebench doctor --gpu --device cpu
    """
    if gpu:
        if offline:
            raise UserError("--offline is for the checks without --gpu", "leave it out: those of --gpu fetch nothing")
        _check_gpus(device, ranks, out, as_json)
        return
    if out or ranks or device != "auto":
        raise UserError("--device, --ranks and --out are for the checks of GPUs", "add --gpu")

    findings = []
    for finding in examine(offline):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _check_gpus(device_option: str, ranks: int | None, out: Path | None, as_json: bool) -> None:
    """Run the checks of ``doctor --gpu`` and print each as it ends. Raises typer.Exit where one says no."""
    from sparsebench.run.gpu import report, run_checks  # torch is heavy

    device = devices.resolve(device_option)
    if device_option == "auto" and not devices.is_gpu(device):
        raise UserError("there is no GPU here", "run the checks that need none: sparsebench doctor --gpu --device cpu")
    checks = []
    for check in run_checks(device, ranks or len(devices.selected_gpus(device)) or 2):
        checks.append(check)
        if not as_json:
            print(visible(f"{check.verdict:5} {check.number:2} {check.what:45} {check.detail}"), flush=True)
    results = report(device, checks)
    if as_json:
        emit_json(results)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        with create(out) as file:
            json.dump(results, file, indent=1)
    if any(check.verdict == "no" for check in checks):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    """Print a finding: on a terminal wrapped, with its fix below it; in a pipe as one line."""
    console = Console(highlight=False)
    lines = [finding.detail, *([f"→ {finding.fix}"] if finding.fix else [])]
    if not console.is_terminal:
        print(f"{finding.state:8} {finding.what:15} {'  '.join(lines)}", flush=True)
        return
    prefix = Text.assemble((f"{finding.state:8} ", COLOURS[finding.state]), f"{finding.what:15} ")
    for line in lines:
        for piece in Text(line).wrap(console, max(console.width - len(prefix), 20)):
            piece.rstrip()
            console.print(prefix + piece, soft_wrap=True)
            prefix = Text(" " * len(prefix))
