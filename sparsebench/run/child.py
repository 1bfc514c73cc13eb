"""A running job as its parent knows it, and how it died."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench import children
from sparsebench.plan.cells import Job
from sparsebench.run.executor import RunningJob
from sparsebench.run.silence import Silence


@dataclass
class Child:
    """A running job, and what it has said so far."""

    task: RunningJob
    log: Path
    started: float
    silence: Silence
    buffer: bytes = b""
    broken: str | None = None
    recorded: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job that it does."""
        return self.task.job


def how_it_died(code: int, log: Path) -> str:
    """Say how a process died, with the last lines that it printed."""
    how = f"exit code {code}" if code > 0 else f"signal {children.signal_name(-code)}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the job's process died: {how}{memory}; it said last: {' | '.join(lines[-3:]) or 'nothing'}"
