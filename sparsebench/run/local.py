"""Jobs in processes of this machine: some must have it to themselves, the others run side by side in ``slots``.

Where jobs calculate on GPUs, those that stay on the CPU have as many slots of their own, so that no GPU waits for them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from sparsebench import children, devices, environment
from sparsebench.paths import create, temporary_folder
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.jobs import ranks_of, runs_alone, takes_all_cores, uses_device
from sparsebench.run.executor import GRACE_SECONDS, RunningJob, RunSettings
from sparsebench.run.forkserver import ForkServer, Process
from sparsebench.run.handlers import LIBRARIES
from sparsebench.run.recorder import JobSpec
from sparsebench.runtime import watch


@dataclass(frozen=True, eq=False)
class LocalJob:
    """A job's process, its event pipe and the GPUs that are its own, if any, as a value of CUDA_VISIBLE_DEVICES.

    It has no ``loss_reason``: it runs on the run's own machine.
    """

    job: Job
    process: Process
    events: int
    own_gpus: str = ""
    loss_reason: str = ""

    def usage(self) -> tuple[float, float]:
        """Return what it, and all that it started, has used."""
        return watch.process_tree_usage(self.process.pid, include_writes=True)

    def kill(self) -> None:
        """Kill it, or the fork server where that has not forked it yet."""
        _signal_group(self.process, signal.SIGKILL)

    def wait(self) -> int:
        return self.process.wait()


class Local:
    """The executor on this machine, which needs no cluster. Its jobs are ``LocalJob``."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.gpus = [gpu.handle for gpu in devices.selected_gpus(settings.device)]
        self.forkservers: dict[tuple[str, ...], ForkServer] = {}

    def __enter__(self) -> Local:
        self.folder = temporary_folder()
        self.temporary = self.folder.name
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.forkservers.values():
            server.close()
        self.folder.cleanup()

    @property
    def threads_file(self) -> Path:
        """The file that says how many threads a job may take."""
        return Path(self.temporary) / "threads"

    def begin(self, cells: Iterable[Cell]) -> None:
        """Do nothing: a plan has refused what this machine cannot do."""

    def has_room(self, job: Job, running: Sequence[RunningJob]) -> bool:
        """Whether there is a slot of its kind, and GPUs if it calculates on them; or, for a job alone, the machine."""
        if self._is_alone(job):
            return not running
        if any(self._is_alone(task.job) for task in running):
            return False
        on_gpu = self._on_gpu(job)
        if on_gpu and len(self._idle_gpus(running)) < ranks_of(job):
            return False
        return sum(self._on_gpu(task.job) == on_gpu for task in running) < self.settings.slots

    def _on_gpu(self, job: Job) -> bool:
        return bool(self.gpus) and uses_device(job)

    def _is_alone(self, job: Job) -> bool:
        return runs_alone(job, bool(self.gpus))

    def _takes_all_cores(self, job: Job) -> bool:
        return takes_all_cores(job, bool(self.gpus))

    def _idle_gpus(self, running: Sequence[RunningJob]) -> list[str]:
        """Return the GPUs that no job has to itself."""
        busy = {gpu for task in running if isinstance(task, LocalJob) for gpu in task.own_gpus.split(",")}
        return [gpu for gpu in self.gpus if gpu not in busy]

    def gpus_of(self, job: Job, running: Sequence[RunningJob]) -> str:
        """Return the GPUs that a job with room would have to itself, as a value of CUDA_VISIBLE_DEVICES."""
        if self._is_alone(job) or not uses_device(job):
            return ""
        return ",".join(self._idle_gpus(running)[: ranks_of(job)])

    def start(self, job: Job, spec: JobSpec, log: Path, running: Sequence[RunningJob] = ()) -> LocalJob:
        """Start a process for the job."""
        # What makes a variant calculates with as many threads throughout.
        if not (self.gpus or self._takes_all_cores(job) or job.makes):
            spec = replace(spec, threads=self.threads_file)
        path = spec.save(Path(self.temporary) / f"{job.kind}-{job.id}.job")
        own_gpus = self.gpus_of(job, running)
        reading, writing = os.pipe()
        try:
            process = self._process(job, path, log, writing, own_gpus)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        return LocalJob(job, process, reading, own_gpus)

    def _process(self, job: Job, spec_path: Path, log: Path, events: int, own_gpus: str) -> Process:
        """Start a process of the job's own that prints to ``log``; of ``own_gpus``, if any, it sees no others."""
        if job.kind in LIBRARIES and not own_gpus and children.may_fork():
            create(log, "ab").close()  # a fork server that dies leaves no log
            libraries = LIBRARIES[job.kind]
            if libraries not in self.forkservers or not self.forkservers[libraries].alive:
                self.forkservers[libraries] = ForkServer(libraries, self._environment(job, own_gpus))
            return self.forkservers[libraries].start(spec_path, log, events)
        with create(log, "wb") as output:
            return subprocess.Popen(
                children.module_command("sparsebench.run.worker", spec_path, events),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(job, own_gpus),
                pass_fds=[events],
                start_new_session=True,
            )

    def _environment(self, job: Job, own_gpus: str) -> dict[str, str]:
        """Return a worker's environment, decided only here: what it imports, threads, GPUs, quiet libraries, offline.

        Without a GPU, jobs of one kind have the same. Temporary files that a killed job or its compiler leaves are
        removed with the run's folder.
        """
        variables = {
            "OMP_NUM_THREADS": str(
                environment.cores() if self._takes_all_cores(job) else self._cores_for(self.settings.slots)
            ),
            "TOKENIZERS_PARALLELISM": "false",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": self.temporary,
        }
        if self.settings.cache.offline:
            variables |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        if not self._is_alone(job):  # idle threads that spin take the cores of the jobs beside
            variables["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
        visible_devices = devices.visible_to_child(self.settings.device if uses_device(job) else "cpu")
        if own_gpus:
            visible_devices = {devices.VISIBLE_DEVICES: own_gpus}
        return {**os.environ, **children.import_variables(), **variables, **visible_devices}

    def _cores_for(self, jobs: int) -> int:
        return max(1, environment.cores() // jobs)

    def share_cores(self, running: Sequence[RunningJob]) -> None:
        """Write how many threads each job may take, which those that measure read between their cells."""
        if running:
            new_file = self.threads_file.with_suffix(".new")
            new_file.write_text(str(self._cores_for(min(len(running), self.settings.slots))))
            new_file.replace(self.threads_file)

    def end(self, running: Sequence[RunningJob]) -> None:
        """End every job with its process group."""
        processes = [task.process for task in running if isinstance(task, LocalJob)]
        for send in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                _signal_group(process, send)
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                time.sleep(0.05)


def _signal_group(process: Process, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
