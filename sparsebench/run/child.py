"""A running job as its parent knows it: what it said, how long it has been silent, and how it died."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from sparsebench import children
from sparsebench.plan.cells import Job
from sparsebench.run.executor import RunningJob

CHECKS_PER_LIMIT = 10
"""How many times a silent job is checked before it is given up."""
IDLE_CPU_SHARE = 3e-5
"""Share of a processor below which a job counts as idle: a thread may wake now and then (tqdm's every ten seconds)."""


@dataclass
class StallTimer:
    """Notices a job that is silent and idle for ``limit`` seconds, by what it had used at the last check."""

    limit: float
    last_activity: float
    last_check: float
    last_usage: tuple[float, float] = (0.0, 0.0)

    @property
    def next_check(self) -> float:
        """When to check again."""
        return self.last_check + self.limit / CHECKS_PER_LIMIT

    def observe(self, usage: tuple[float, float]) -> bool:
        """Take in a job's ``usage`` so far; return whether it has been silent and idle for too long."""
        now = time.monotonic()
        (cpu_now, bytes_now), (cpu_then, bytes_then) = usage, self.last_usage
        if cpu_now - cpu_then > IDLE_CPU_SHARE * (now - self.last_check) or bytes_now != bytes_then:
            self.last_activity = now
        self.last_check, self.last_usage = now, usage
        return now - self.last_activity >= self.limit


@dataclass
class Child:
    """A running job, and what it has said so far."""

    task: RunningJob
    log: Path
    started: float
    stall_timer: StallTimer
    buffer: bytes = b""
    failure: str | None = None
    recorded: set[str] = field(default_factory=set)
    damaged: dict[str, str] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        """The job that it does."""
        return self.task.job


def how_it_died(code: int, log: Path) -> str:
    """Say how a process died, with the last lines that it printed."""
    ending = f"exit code {code}" if code > 0 else f"signal {children.signal_name(-code)}"
    memory = " (out of memory?)" if code == -signal.SIGKILL else ""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the job's process died: {ending}{memory}; it said last: {' | '.join(lines[-3:]) or 'nothing'}"
