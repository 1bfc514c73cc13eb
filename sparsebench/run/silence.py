"""How long a job may say nothing and do nothing before it is given up."""

from __future__ import annotations

import time
from dataclasses import dataclass

LOOKS = 10
"""How many times a silent job is looked at before it is given up."""
IDLE_SHARE = 3e-5
"""Share of a processor below which a job counts as idle: a thread may wake now and then (tqdm's every ten seconds)."""


@dataclass
class Silence:
    """Since when a job has been silent and idle, its ``limit`` in seconds, and what it had used at the last look."""

    limit: float
    since: float
    looked: float
    used: tuple[float, float] = (0.0, 0.0)

    @property
    def next(self) -> float:
        """When to look again."""
        return self.looked + self.limit / LOOKS

    def over(self, used: tuple[float, float]) -> bool:
        """Return whether the job has been silent and idle for too long, now that it has ``used`` so much."""
        now = time.monotonic()
        (cpu, moved), (cpu_then, moved_then) = used, self.used
        if cpu - cpu_then > IDLE_SHARE * (now - self.looked) or moved != moved_then:
            self.since = now
        self.looked, self.used = now, used
        return now - self.since >= self.limit
