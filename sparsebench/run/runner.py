"""The parent of a run: it has an executor start jobs, takes in their events, keeps the ledger, and outlives failures.

The parent sleeps while a timed job runs. It is the ledger's only writer.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparsebench import devices, provenance, records
from sparsebench.errors import Interrupted, LedgerError, SparsebenchError
from sparsebench.escape import visible
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.estimate import silence_seconds
from sparsebench.plan.expand import Plan
from sparsebench.plan.jobs import jobs, made_from, remaking_jobs, runs_alone, unpacks, uses_device
from sparsebench.plan.stages import JOB_KINDS, MAKE, needs_dense
from sparsebench.run.child import Child, StallTimer, how_it_died
from sparsebench.run.display import Display, ModelAnswers
from sparsebench.run.executor import Executor, RunningJob, RunSettings
from sparsebench.run.feed import Ingest, RecordFeed
from sparsebench.run.queue import Queue, variants_opened
from sparsebench.run.recorder import JobSpec
from sparsebench.run.workspace import Leases
from sparsebench.runtime.channel import complete_lines

MAX_RESTARTS = 3
"""A job whose machine is lost is started again at most this many times: the job itself may be what kills machines."""


@dataclass(frozen=True)
class Remade:
    """A damaged folder: the checksum that its weights had, the job that makes it again, and when it was removed."""

    checksum: str
    maker: str
    removed_at: float


class Runner:
    """Runs a plan's open cells. Use ``run`` once.

    ``answer`` gives what is shown of a model once all is done but timing, out of the ledger.
    """

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        executor: Executor,
        ingest: Ingest,
        display: Display,
        answer: Callable[[str], str] = lambda model: "",
    ) -> None:
        self.plan = plan
        self.executor = executor
        self.settings = settings
        self.workspace = settings.workspace
        self.display = display
        self.feed = RecordFeed(ingest, self._left_out)
        self.answers = ModelAnswers(answer)
        self.origin = provenance.origin(self.workspace.ledger.parent, create_it=True)
        self.selector = selectors.DefaultSelector()
        self.children: list[Child] = []
        self.waiting = Queue()
        self.leases: Leases
        self.unavailable: dict[str, str] = {}
        self.remade: dict[str, Remade] = {}
        self.machines_lost: Counter[str] = Counter()
        self.notes: set[str] = set()
        self.counts: dict[str, int] = dict.fromkeys(records.STATUSES, 0)

    def run(
        self, cells: Iterable[Cell], refused: Iterable[tuple[Cell, str]], releasable: Iterable[Variant]
    ) -> dict[str, int]:
        """Do ``cells``, record why others are ``refused``, and return how many cells ended in each status.

        The folders of ``releasable`` variants are removed once no cell needs them.
        Raises Interrupted after Ctrl-C or SIGTERM, with all finished work kept.
        """
        with Leases(self.workspace, self.plan.variants.values()) as leases, self.executor:
            self.leases = leases
            return self._run_cells(list(cells), list(refused), releasable)

    def _run_cells(
        self, cells: list[Cell], refused: list[tuple[Cell, str]], releasable: Iterable[Variant]
    ) -> dict[str, int]:
        plan_record = records.write_plan(
            self.workspace.records, self.plan.manifest, self.plan.cells, self.settings.device, self.origin
        )
        self.feed.ingest([(f"{self.workspace.records}/plan-{self.plan.manifest}.json", plan_record)], self._left_out)
        self.answers.begin(cells)
        self.waiting.add(jobs(self.plan, cells, self.workspace.present, self.workspace.has_packed))
        self.workspace.sweep()
        self._release(releasable)
        previous_handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            self.executor.begin(cells)
            self.display.begin([*cells, *(cell for cell, _ in refused)], list(self.waiting))
            for cell, reason in refused:
                self._record(cell, "unsupported", reason)
            while self.waiting or self.children:
                self._start_ready()
                if self.children:
                    self._listen()
                elif self.waiting:
                    raise self._stuck()
                self._show_answers()
                # A model that cannot be prepared leaves skipped cells, and none that failed.
                if self.settings.fail_fast and self.counts["failed"] + self.counts["skipped"]:
                    self.waiting.clear()
        except KeyboardInterrupt:
            raise Interrupted("interrupted: everything finished is kept", "run the same command to go on") from None
        finally:
            self._end_all()
            self.display.end()
            signal.signal(signal.SIGTERM, previous_handler)
            self.feed.flush(last=True)
        return self.counts

    def _start_ready(self) -> None:
        """Start the jobs whose predecessors have ended, as many as there is room for."""
        while job := self.waiting.take(lambda job: self.executor.has_room(job, self._tasks)):
            if remaining_job := self._without_unavailable(job):
                self._start(remaining_job)

    def _stuck(self) -> SparsebenchError:
        """Return the error for waiting jobs of which none can ever start: nothing runs that could make way for them."""
        job = next(iter(self.waiting))
        reason = ", ".join(self.waiting.predecessors_of(job)) or "room that the executor does not have"
        return SparsebenchError(f"{job.label} can never start: it waits for {reason}", "report this, with the manifest")

    def _without_unavailable(self, job: Job) -> Job | None:
        """Return the part of a job that can be done, None if nothing can.

        Its cells are skipped where their variant, or what it is made from, could not be made.
        """
        reasons = {variant.id: reason for variant in job.variants if (reason := self._why_unavailable(job, variant))}
        for cell in job.cells:
            if cell.variant.id in reasons:
                self._record(cell, "skipped", reasons[cell.variant.id])
        self.unavailable |= {variant.id: reasons[variant.id] for variant in job.makes if variant.id in reasons}
        cells = tuple(cell for cell in job.cells if cell.variant.id not in reasons)
        makes = tuple(variant for variant in job.makes if variant.id not in reasons)
        if cells or makes:
            return replace(job, cells=cells, makes=makes)
        self.waiting.end(job)
        self.display.skipped(job)
        self._release(variants_opened(job))
        return None

    def _why_unavailable(self, job: Job, variant: Variant) -> str | None:
        """Return why a variant, or what it needs, is not available; None where nothing says so."""
        if variant in job.makes:
            needed = () if unpacks(job, variant, self.workspace.has_packed) else made_from(variant)
        else:
            reads_dense = any(needs_dense(cell) for cell in job.cells if cell.variant == variant)
            needed = (variant.id, *(variant.parents[:1] if reads_dense else ()))
        return next((self.unavailable[name] for name in needed if name in self.unavailable), None)

    def _start(self, job: Job) -> None:
        variant = job.variants[0]
        spec = JobSpec(
            manifest=self.plan.manifest,
            job=job,
            model=self.plan.model(variant.model),
            dense=self.plan.dense[variant.model],
            workspace=self.workspace,
            cache=self.settings.cache,
            kept_format=self.settings.kept_format,
            calibration=self.plan.calibration,
            allow_overlap=self.plan.allow_overlap,
            data=self.plan.data,
            device=devices.single_device(self.settings.device) if uses_device(job) else "cpu",
            origin=self.origin,
            dense_checksum=self.remade[variant.id].checksum if variant.is_dense and variant.id in self.remade else "",
            recorded_checksums=self._recorded_checksums(job),
        )
        self.workspace.logs.mkdir(parents=True, exist_ok=True)
        log = self.workspace.logs / f"{job.kind}-{job.id}.log"
        task = self.executor.start(job, spec, log, self._tasks)
        now = time.monotonic()
        limit = self.settings.silence or silence_seconds(job, self.settings.sizes, self.settings.device)
        child = Child(task, log, now, StallTimer(limit, now, now))
        self.children.append(child)
        self.executor.share_cores(self._tasks)
        self.selector.register(task.events, selectors.EVENT_READ, child)
        self.display.started(job)

    def _recorded_checksums(self, job: Job) -> dict[str, str]:
        """Return the checksums that variants of the job had when an earlier run made and recorded them."""
        made_again = {variant.id for variant in job.makes} - {cell.variant.id for cell in job.cells}
        if not made_again:  # there may be 100,000 cells
            return {}
        makes = (cell for cell in self.plan.cells if cell.stage == MAKE.name and cell.variant.id in made_again)
        return records.weight_checksums(self.workspace.records, makes)

    def _listen(self) -> None:
        """Wait for events and handle them.

        While a timed job runs, only its events, a look at its silence or a line due in a log wake the parent.
        """
        timed = any(runs_alone(child.job, self.settings.on_gpu) for child in self.children)
        due = min(child.stall_timer.next_check for child in self.children) - time.monotonic()
        due = min(due, self.display.due())
        for key, _ in self.selector.select(max(0.0, due if timed else min(due, 1.0))):
            if not self._read_events(key.data):
                self._finish(key.data)
        for child in list(self.children):
            # A job may have done nothing for too long, or another process may hold its pipe after its end.
            if time.monotonic() >= child.stall_timer.next_check and child.stall_timer.observe(child.task.usage()):
                child.failure = (
                    f"the job was ended: for {child.stall_timer.limit:g} seconds it had said and done nothing"
                )
                child.task.kill()
                self._finish(child)
        if not timed or self.display.due() <= 0:
            self.display.tick()
        if not timed:
            self.feed.flush_if_due()

    def _read_events(self, child: Child) -> bool:
        """Take in what a child has said; return False where its pipe is closed or empty."""
        try:
            received = os.read(child.task.events, 1 << 16)
        except BlockingIOError:
            return False
        child.stall_timer.last_activity = time.monotonic()
        lines, child.buffer = complete_lines(child.buffer, received)
        for line in lines:
            self._handle_event(child, json.loads(line))
        return bool(received)

    def _read_all_events(self, child: Child) -> None:
        while self._read_events(child):
            pass

    def _handle_event(self, child: Child, event: dict[str, Any]) -> None:
        match event["event"]:
            case "cell":
                cell = next(cell for cell in child.job.cells if cell.id == event["cell"])
                child.recorded.add(cell.id)
                key = records.record_key(cell, self.settings.device)
                path = self.workspace.records / f"{key}.{event['status']}.json"
                self._note_ended(cell, path, event["status"], event["seconds"], event["reason"])
            case "progress":
                self.display.progress(child.job, event["done"], event["total"], event["detail"])
            case "damaged":
                child.damaged = event["variants"]
            case "note":
                if event["text"] not in self.notes:  # several jobs may say the same
                    self.display.line(f"! {visible(event['text'])}", "yellow")
                self.notes.add(event["text"])
            case "variant_failed":
                self.unavailable[event["variant"]] = event["reason"]
            case "job_failed":
                child.failure = event["reason"]

    def _finish(self, child: Child) -> None:
        """Collect a job whose pipe has closed, record the cells it left undone, and free what nobody needs any more."""
        code = child.task.wait()  # first, so that Ctrl-C finds a child whole or not at all
        self._read_all_events(child)
        self.children.remove(child)
        self.executor.share_cores(self._tasks)
        self._close(child)
        if child.damaged and self._remake(child):
            return
        if child.task.loss_reason and self._retry_lost(child):
            return
        reason = child.failure or child.task.loss_reason or next(iter(child.damaged.values()), "")
        if code and not reason:
            reason = how_it_died(code, child.log)
        for cell in child.job.cells:
            if cell.id not in child.recorded:
                self._record(cell, "failed", reason or f"the job ended without a result; see {child.log}")
        summary = f"{child.job.label}: {reason or 'left no folder'}"
        absent = [variant.id for variant in child.job.makes if not self.workspace.present(variant)]
        self.unavailable = dict.fromkeys(absent, summary) | self.unavailable
        self.waiting.end(child.job)
        seconds = None if reason else time.monotonic() - child.started
        self.display.ended(child.job, seconds, summary if absent else None)
        self.feed.flush_if_due()
        self._release(variants_opened(child.job))

    def _retry_lost(self, child: Child) -> bool:
        """Start again what a job on a lost machine had left; False if nothing is left, or after too many losses."""
        job, remaining = child.job, self._remaining(child)
        self.machines_lost[job.id] += 1
        if self.machines_lost[job.id] > MAX_RESTARTS or not remaining:
            return False
        self.display.ended(job, None, None)
        self.display.line(f"! {visible(job.label)}: {visible(child.task.loss_reason)}: started again", "yellow")
        self.display.clock.begin([remaining])
        self.waiting.add([remaining], first=True)
        self._release(variants_opened(job))
        return True

    def _remaining(self, child: Child) -> Job | None:
        """Return the part of a job that it has not done; None if it has done all."""
        cells = tuple(cell for cell in child.job.cells if cell.id not in child.recorded)
        unrecorded = {cell.variant.id for cell in cells}

        def unmade(variant: Variant) -> bool:
            if variant.id in unrecorded:
                return True
            return variant.id not in self.unavailable and not self.workspace.present(variant)

        makes = tuple(filter(unmade, child.job.makes))
        return replace(child.job, cells=cells, makes=makes) if cells or makes else None

    def _remake(self, child: Child) -> bool:
        """Make the folders again that a job found damaged, and then do the rest of the job.

        False where that was done before, or where the job has nothing left to do: what else reads the folders finds it.
        """
        remaining = self._remaining(child)
        remade_before = [self.remade[name] for name in child.damaged if name in self.remade]
        if not remaining or any(child.started > remade.removed_at for remade in remade_before):
            return False
        self.display.ended(child.job, None, None)
        damaged = {name: self.plan.variants[name] for name in child.damaged if name not in self.remade}
        checksums = {name: self.workspace.content(variant) for name, variant in damaged.items()}
        for name, variant in damaged.items():
            self.display.line(f"! {visible(variant.label)}: {child.damaged[name]}: made again", "yellow")
            self.workspace.discard(self.workspace.folder(variant))
        makers = remaking_jobs(self.plan, damaged.values(), self.workspace.present)
        for job in makers:
            for variant in job.makes:
                if variant.id in damaged:
                    self.remade[variant.id] = Remade(checksums[variant.id], job.id, time.monotonic())
        planned = {job.id for job in (*self.waiting, *(other.job for other in self.children))}
        makers = [job for job in makers if job.id not in planned]
        jobs_behind = [self._behind_makers(job, child.damaged) for job in (remaining, *self.waiting)]
        self.waiting.clear()
        self.waiting.add([*makers, *jobs_behind])
        self.display.clock.begin([*makers, remaining])
        self._release(variants_opened(child.job))
        return True

    def _behind_makers(self, job: Job, remade: Iterable[str]) -> Job:
        """Return a job that also waits for the makers of those of the variants ``remade`` that it opens."""
        opened = {variant.id for variant in variants_opened(job)} | {self.plan.dense[job.variants[0].model].id}
        makers = (self.remade[name].maker for name in remade if name in opened)
        # A maker may wait for room itself when another job reports the same damage.
        return replace(job, after=(*job.after, *(maker for maker in makers if maker != job.id)))

    def _release(self, variants_done: Iterable[Variant]) -> None:
        """Remove the folders of variants that no waiting or running job needs any more, unless all are kept."""
        for variant in variants_done:
            if not self.waiting.needs(variant) and self.settings.kept_format != "dense":
                self.leases.release(variant)

    def _record(self, cell: Cell, status: str, reason: str) -> None:
        outcome = records.CellOutcome(status, reason=reason)
        record = records.make(cell, self.plan.manifest, outcome, self.settings.device, self.origin)
        self._note_ended(cell, records.write(self.workspace.records, record), status, 0.0, reason)

    def _note_ended(self, cell: Cell, path: Path, status: str, seconds: float, reason: str | None) -> None:
        """Note that a cell has its record, in the file ``path``."""
        self.feed.waiting.append(path)
        self.counts[status] += 1
        self.answers.ended(cell)
        self.display.finished(cell, status, seconds, reason)

    def _show_answers(self) -> None:
        """Show the answers that are due, unless something is timed now."""
        if self.answers.due_models and not any(JOB_KINDS[child.job.kind].timed for child in self.children):
            self.feed.flush()
            for lines in self.answers.take():
                self.display.line(lines, "bold")

    def _left_out(self, error: LedgerError) -> None:
        self.display.line(f"! left out of the ledger: {visible(str(error))}", "yellow")

    def _end_all(self) -> None:
        """End every child, and take in what it had said."""
        self.executor.end(self._tasks)
        for child in self.children:
            self._read_all_events(child)  # it may wait for room in its pipe
            child.task.wait()
            self._read_all_events(child)
            self._close(child)
        self.children = []

    @property
    def _tasks(self) -> list[RunningJob]:
        return [child.task for child in self.children]

    def _close(self, child: Child) -> None:
        self.selector.unregister(child.task.events)
        os.close(child.task.events)
