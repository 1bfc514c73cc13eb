"""What a run needs of its executor: ``local`` does jobs in processes of this machine, ``cluster`` on Ray's nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sparsebench import devices
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import ModelSize
from sparsebench.run.recorder import JobSpec
from sparsebench.run.workspace import Workspace
from sparsebench.sources.cache import Cache

GRACE_SECONDS = 5.0
"""How long a job may take to end when it is asked to."""


@dataclass(frozen=True)
class RunSettings:
    """How to run.

    ``slots`` jobs run at once on a machine, each with an equal share of the cores; a job that measures takes those that
    are free from its next cell on. With GPUs, ``slots`` jobs that calculate on them, which need few cores, run beside
    ``slots`` others. ``kept_format`` is a storage format or none.

    ``device`` is resolved. Of several GPUs, a job that calculates has one per rank to itself; a job alone has all.

    ``sizes`` are those of the models, by name. A job may do nothing for ``silence`` seconds, None: for the usual time.
    """

    workspace: Workspace
    cache: Cache
    kept_format: str = "packed"
    slots: int = 1
    fail_fast: bool = False
    sizes: dict[str, ModelSize] = field(default_factory=dict)
    silence: float | None = None
    device: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether jobs that calculate do so on GPUs."""
        return devices.is_gpu(self.device)


class RunningJob(Protocol):
    """A job that was started.

    ``events`` is a non-blocking pipe with a line of JSON for each of ``Recorder``'s events. It is closed when the job
    has ended.
    """

    @property
    def job(self) -> Job:
        """The job that was started."""

    @property
    def events(self) -> int:
        """The descriptor to read from."""

    @property
    def loss_reason(self) -> str:
        """Why an ended job must be started again: its machine is gone. Empty where it ended by itself."""

    def usage(self) -> tuple[float, float]:
        """Return CPU seconds and bytes moved so far, by ``runtime.watch``: they grow while the job does anything."""

    def kill(self) -> None:
        """End it at once, without waiting for its end."""

    def wait(self) -> int:
        """Wait for its end and return the exit code; a negative one is a signal's number."""


class Executor(Protocol):
    """Starts jobs, and decides how many may run at once. Use as a context manager around a run."""

    def __enter__(self) -> Executor:
        """Get ready to start jobs. Raises UserError where that is not possible."""

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind; all jobs have ended."""

    def begin(self, cells: Iterable[Cell]) -> None:
        """Prepare for the cells of the run. Raises UserError where some of them cannot be done here."""

    def has_room(self, job: Job, running: Sequence[RunningJob]) -> bool:
        """Whether a job may be started now, beside those that are running."""

    def start(self, job: Job, spec: JobSpec, log: Path, running: Sequence[RunningJob]) -> RunningJob:
        """Start a job for which there is room; what it prints is in ``log`` when it has ended. Does not wait for the job."""

    def share_cores(self, running: Sequence[RunningJob]) -> None:
        """Let the jobs that run know which cores are free: one of them has just started, or another has ended."""

    def end(self, running: Sequence[RunningJob]) -> None:
        """End jobs, first politely and then by force, and all else that was started."""
