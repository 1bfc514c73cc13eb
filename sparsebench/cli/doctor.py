"""``sparsebench doctor``: what works on this machine, each with its fix."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from sparsebench.cli.options import JSON, OFFLINE
from sparsebench.cli.output import emit_json

if TYPE_CHECKING:
    from sparsebench.run.doctor import Finding

COLOURS = {"ok": "green", "slower": "yellow", "missing": "red", "absent": ""}


def doctor(as_json: JSON = False, offline: OFFLINE = False) -> None:
    """What works on this machine, what is slower than it could be, and the fix for each.

    Exits with 1 where something is missing without which a stage cannot run.

    \b
    sparsebench doctor
    sparsebench doctor --offline --json
    """
    from sparsebench.run.doctor import examine

    findings = []
    for finding in examine(offline):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)


def _show(finding: Finding) -> None:
    """One finding, its fix below it: wrapped under itself on a terminal, a line each in a pipe."""
    console = Console(highlight=False)
    lines = [finding.detail, *([f"→ {finding.fix}"] if finding.fix else [])]
    if not console.is_terminal:
        print(f"{finding.state:8} {finding.what:15} {'  '.join(lines)}", flush=True)
        return
    head = Text.assemble((f"{finding.state:8} ", COLOURS[finding.state]), f"{finding.what:15} ")
    for line in lines:
        for part in Text(line).wrap(console, max(console.width - len(head), 20)):
            part.rstrip()
            console.print(head + part, soft_wrap=True)
            head = Text(" " * len(head))
