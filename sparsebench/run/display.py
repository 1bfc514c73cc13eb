"""What a person sees of a run: a live bar on a terminal, plain lines in a log. One interface, two faces."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sparsebench.escape import visible
from sparsebench.plan.cells import Cell, Job
from sparsebench.plan.estimate import Estimate, concurrent_jobs, pace_of
from sparsebench.plan.jobs import runs_alone
from sparsebench.plan.stages import is_timed
from sparsebench.units import duration

MARKS = {"done": "✓", "failed": "✗", "unsupported": "–", "skipped": "·"}
SILENCE_SECONDS = 30.0
"""After this long without a line, a log gets one that says what goes on."""
TELLING_SHARE = 0.05
"""From this share of a cell on, its pace tells how long the rest takes."""
COLOURS = {"done": "green", "failed": "bold red", "unsupported": "yellow", "skipped": "dim"}


class Clock:
    """The expected seconds still to go: what the waiting jobs take, as many at once as ``slots`` and ``gpus`` allow."""

    def __init__(self, estimate: Estimate, slots: int = 1, gpus: int = 0) -> None:
        self.estimate, self.slots, self.gpus = estimate, slots, gpus
        self.jobs: dict[str, Job] = {}
        self.start_times: dict[str, float] = {}
        self.cell_progress: dict[str, tuple[float, float]] = {}
        """By job, when its current cell began and the share of the cell that is done."""
        self.uncorrected: dict[str, float] = defaultdict(float)
        """The seconds of ``jobs`` by pace: there may be 100,000 jobs, and each finished cell asks what is left."""

    def begin(self, jobs: Iterable[Job]) -> None:
        """Add jobs, in place of earlier ones under their ids."""
        for job in jobs:
            self.forget(job)
            self.jobs[job.id] = job
            self.uncorrected[pace_of(job)] += self._wall_seconds(job)

    def started(self, job: Job) -> None:
        """Note that a job has begun, perhaps with fewer cells than when it was added."""
        self.begin([job])
        self.start_times[job.id] = time.monotonic()

    def progressed(self, job: Job, share: float) -> None:
        """Note the share of a job's cell that is done; one that is smaller than before is another cell's."""
        began, before = self.cell_progress.get(job.id, (self.start_times.get(job.id, time.monotonic()), 0.0))
        self.cell_progress[job.id] = (began if share >= before else time.monotonic(), share)

    def ended(self, job: Job, seconds: float | None) -> None:
        """Note that a job took ``seconds``; None where it ended without having done its work."""
        if seconds is not None:
            self.estimate.learn(job, seconds)
        self.forget(job)

    def forget(self, job: Job) -> None:
        """Forget a job that will not run."""
        self.start_times.pop(job.id, None)
        self.cell_progress.pop(job.id, None)
        if forgotten := self.jobs.pop(job.id, None):
            self.uncorrected[pace_of(forgotten)] -= self._wall_seconds(forgotten)

    def seconds_left(self) -> float:
        """Return the seconds to go if the rest compares with its estimates as the finished part did."""
        now = time.monotonic()
        total = sum(seconds * self.estimate.ratio(pace) for pace, seconds in self.uncorrected.items())
        for job_id, started_at in self.start_times.items():
            job = self.jobs[job_id]
            estimated = self.estimate.seconds(job)
            to_go = max(0.0, estimated - (now - started_at), self._cell_seconds(job_id, now))
            total += (to_go - estimated) / concurrent_jobs(job, self.slots, self.gpus)
        return max(0.0, total)

    def _cell_seconds(self, job_id: str, now: float) -> float:
        """Return how long the rest of a job's cell takes at the pace of what is done of it; 0 where that says too little."""
        began, share = self.cell_progress.get(job_id, (now, 0.0))
        return (now - began) * (1 - share) / share if share >= TELLING_SHARE else 0.0

    def _wall_seconds(self, job: Job) -> float:
        return self.estimate.uncorrected(job) / concurrent_jobs(job, self.slots, self.gpus)


class ModelAnswers:
    """What came out of a model, shown once all of its cells are done but those that are timed.

    ``answer`` gives a model's lines out of the ledger, none where it has none.
    """

    def __init__(self, answer: Callable[[str], str]) -> None:
        self.answer = answer
        self.open_cells: Counter[str] = Counter()
        self.due_models: list[str] = []

    def begin(self, cells: Iterable[Cell]) -> None:
        """Begin a run of ``cells``."""
        self.open_cells.update(cell.variant.model for cell in cells if not is_timed(cell.stage))

    def ended(self, cell: Cell) -> None:
        """Note that a cell has its record."""
        if is_timed(cell.stage):
            return
        self.open_cells[cell.variant.model] -= 1
        if not self.open_cells[cell.variant.model]:
            self.due_models.append(cell.variant.model)

    def take(self) -> Iterator[str]:
        """Yield the lines that are due, each once."""
        while self.due_models:
            if lines := self.answer(self.due_models.pop(0)):
                yield lines


class Display:
    """The plain face: one line per finished cell. It is also the base of the live one."""

    def __init__(self, clock: Clock, stream: IO[str] | None = None) -> None:
        self.clock = clock
        self.stream = stream or sys.stderr
        self.cell_count = 0
        self.recorded_count = 0
        self.begun_at = self.last_line = time.monotonic()
        self.running: dict[str, tuple[Job, str]] = {}

    def begin(self, cells: list[Cell], jobs: list[Job]) -> None:
        """Begin a run of ``cells`` in ``jobs``."""
        self.cell_count = len(cells)
        self.begun_at = time.monotonic()
        self.clock.begin(jobs)

    def started(self, job: Job) -> None:
        """Note that a job begins."""
        self.clock.started(job)
        self.running[job.id] = (job, "")
        self.changed()

    def progress(self, job: Job, done: int, total: int, detail: str = "") -> None:
        """Note how far a job is, and what else it says."""
        self.running[job.id] = (job, f"{done}/{total} {detail}".rstrip())
        self.clock.progressed(job, done / max(1, total))
        if not self.quiet(job):
            self.changed()

    def finished(self, cell: Cell, status: str, seconds: float, reason: str | None) -> None:
        """Show that a cell has its record: ``✓ [12/94, 3m left] smollm2 dense · piqa (7.1 s)``."""
        self.recorded_count += 1
        first_line = visible(reason.splitlines()[0]) if reason else ""
        ending = f" ({seconds:.1f} s)" if status == "done" else f": {status}: {first_line}"
        name = visible(f"{cell.variant.label} · {cell.label}")
        self.line(f"{MARKS[status]} {self._position()} {name}{ending}", COLOURS[status])

    def ended(self, job: Job, seconds: float | None, trouble: str | None) -> None:
        """Note that a job's process has ended, as ``Clock.ended``; show its ``trouble`` if it has no cells that could."""
        self.clock.ended(job, seconds)
        self.running.pop(job.id, None)
        if trouble and not job.cells:
            self.line(f"✗ {visible(trouble)}", COLOURS["failed"])
        self.changed()

    def skipped(self, job: Job) -> None:
        """Note that a job will not run, because what it needs has failed."""
        self.clock.forget(job)

    def due(self) -> float:
        """Return the seconds until a line is due if nothing happens."""
        return self.last_line + SILENCE_SECONDS - time.monotonic()

    def tick(self) -> None:
        """Write a line if one is due. While something is being timed, this is called only then."""
        if self.due() <= 0:
            labels = (visible(f"{job.label} {detail}".rstrip()) for job, detail in self.running.values())
            elapsed = duration(time.monotonic() - self.begun_at)
            self.line(f"… {self._position()} {elapsed}: {', '.join(labels) or 'nothing yet'}", "dim")

    def changed(self) -> None:
        """Note that other jobs run than before, or that one got further."""

    def end(self) -> None:
        """End the display of the run."""

    def line(self, text: str, style: str) -> None:
        """Write one line for the reader."""
        print(text, file=self.stream, flush=True)
        self.last_line = time.monotonic()

    def quiet(self, job: Job) -> bool:
        """Whether a job is being timed, with the machine to itself."""
        return runs_alone(job, bool(self.clock.gpus))

    def _position(self) -> str:
        return f"[{self.recorded_count}/{self.cell_count}, {duration(self.clock.seconds_left())} left]"


class LiveDisplay(Display):
    """The face for terminals: finished cells scroll by above a bar with the jobs that run."""

    def __init__(self, clock: Clock, console: Console) -> None:
        super().__init__(clock)
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, cells: list[Cell], jobs: list[Job]) -> None:
        super().begin(cells, jobs)
        self.live.start()

    def due(self) -> float:
        """Return infinity: the bar says enough."""
        return math.inf

    def tick(self) -> None:
        self.live.update(self._bar(), refresh=True)

    def changed(self) -> None:
        self.tick()

    def end(self) -> None:
        self.live.stop()

    def line(self, text: str, style: str) -> None:
        self.live.console.print(Text(text, style))  # rich would make an emoji of the ``:100:`` in ``load.py:100:``

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.cell_count), completed=self.recorded_count, width=24)
        elapsed, remaining = duration(time.monotonic() - self.begun_at), duration(self.clock.seconds_left())
        grid.add_row(bar, f"{self.recorded_count}/{self.cell_count} cells · {elapsed} · {remaining} left")
        for job, detail in self.running.values():
            remark = " (quiet: being timed)" if self.quiet(job) else ""
            grid.add_row("", Text(visible(f"{job.label} {detail}{remark}")))  # a name may look like markup
        return grid


def display_for(clock: Clock, console: Console) -> Display:
    """Return the face that fits where the console writes."""
    return LiveDisplay(clock, console) if console.is_terminal else Display(clock, console.file)
