"""``sparsebench doctor``: what works on this machine, each with its fix."""

from __future__ import annotations

import typer

from sparsebench.cli.options import JSON, OFFLINE


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(doctor)


def doctor(
    as_json: JSON = False,
    offline: OFFLINE = False,
) -> None:
    """What works here: torch, DeepSpeed and its shared-memory op, sparse kernels, compiler, GPU, hub, index, disk, memory.

    \b
    sparsebench doctor
    """
    from dataclasses import asdict

    from sparsebench.cli.output import emit_json, stderr
    from sparsebench.run.doctor import examine

    findings = []
    colours = {"ok": "green", "slower": "yellow", "missing": "red", "absent": "dim"}
    for finding in examine(offline):
        findings.append(finding)
        if not as_json:
            console = stderr()
            console.print(f"{finding.state:8}", style=colours[finding.state], end="")
            console.print(f"{finding.what:16} {finding.detail}", markup=False, soft_wrap=True)
            if finding.fix:
                console.print(f"{'':8}{'':16} → {finding.fix}", markup=False, soft_wrap=True)
    if as_json:
        emit_json([asdict(finding) for finding in findings])
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
