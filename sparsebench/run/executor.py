"""What a run needs of that which does its jobs: ``local`` does them in processes of this machine, ``cluster`` on Ray's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.run.recorder import JobSpec
from sparsebench.run.workspace import Workspace
from sparsebench.sources.cache import Cache

GRACE_SECONDS = 5.0
"""So long a job may take to end when it is asked to."""


@dataclass(frozen=True)
class RunSettings:
    """How to run. ``slots`` jobs at once on a machine, each with an equal share of the cores. On GPUs there are as many
    of those that calculate on one, which need few cores, and of those that do not. ``keep`` is a storage format or none.

    ``device`` is resolved; of several GPUs a job that calculates has one to itself, and a timed one all.

    ``sizes`` are those of the models; ``silence`` is for how many seconds a job may do nothing, if not for as long as usual.
    """

    workspace: Workspace
    cache: Cache
    keep: str = "packed"
    slots: int = 1
    fail_fast: bool = False
    sizes: dict[str, ModelSize] = field(default_factory=dict)
    silence: float | None = None
    device: str = "cpu"


class RunningJob(Protocol):
    """A job that was started. ``events`` is a pipe that does not block, with a line of JSON for each of ``Recorder``'s events; it
    is closed when the job has ended."""

    @property
    def job(self) -> Job:
        """What was started."""

    @property
    def events(self) -> int:
        """The descriptor to read from."""

    @property
    def lost(self) -> str:
        """Why the job has to be started again, once it has ended: its machine is gone. Empty where it ended by itself."""

    def used(self) -> tuple[float, float]:
        """CPU seconds and bytes moved so far, as ``runtime.watch`` counts them: they grow while the job does anything."""

    def kill(self) -> None:
        """End it at once, without waiting for its end."""

    def wait(self) -> int:
        """The exit code, once it has ended; a negative one is a signal's number."""


class Executor(Protocol):
    """Starts jobs, and knows how many may run at once. Use as a context manager around a run."""

    def __enter__(self) -> Executor:
        """Get ready to start jobs. Raises UserError where that cannot be."""

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind; all jobs have ended."""

    def begin(self, cells: Iterable[Cell]) -> None:
        """Hear what will be done. Raises UserError where some of it cannot be done here."""

    def room(self, job: Job, running: Sequence[RunningJob]) -> bool:
        """Whether a job may be started now, beside those that are running."""

    def start(self, job: Job, spec: JobSpec, log: Path, running: Sequence[RunningJob]) -> RunningJob:
        """Start a job for which there is room; what it prints is in ``log`` when it has ended. Does not wait for the job."""

    def end(self, running: Sequence[RunningJob]) -> None:
        """End jobs, politely and then not, and all else that was started."""
