"""What passes between a run and its workers: the specification in, records and events out."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sparsebench import processor, records
from sparsebench.errors import SparsebenchError, UnsupportedError, redacted
from sparsebench.manifest.schema import ManifestModel
from sparsebench.paths import create
from sparsebench.plan.cells import Cell, Job, Variant
from sparsebench.plan.stages import needs_dense
from sparsebench.run.workspace import Workspace
from sparsebench.sources.cache import Cache
from sparsebench.steps.calibration import Calibration


@dataclass(frozen=True)
class JobSpec:
    """All that a worker needs to know.

    ``cache`` is the sources' cache, ``kept_format`` the one kept after storage cells. ``allow_overlap`` lets benchmarks
    be part of the calibration text. ``dense_checksum`` is what the dense model's weights had, if its folder was
    damaged and is made again; ``recorded_checksums`` has those of variants that were recorded as made. ``data`` holds the
    sources of the user's own data by their content. ``device`` is where the job is done, as its process sees it.
    ``nodes`` and ``group`` are those of a runtime ``Setting``, where ranks lie on several nodes of a cluster.
    ``origin`` is the id of the workspace, which records carry. ``threads`` is a file that says how many threads a
    job may take from its next cell on.
    """

    manifest: str
    job: Job
    model: ManifestModel
    dense: Variant
    workspace: Workspace
    cache: Cache
    kept_format: str
    calibration: Calibration
    allow_overlap: bool = False
    device: str = "cpu"
    dense_checksum: str = ""
    recorded_checksums: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    group: str = ""
    origin: str = ""
    threads: Path | None = None

    @property
    def compute_dtype(self) -> str:
        """The precision that the job makes variants and scores in."""
        return processor.compute_dtype(self.model.dtype, self.model.compute_dtype, self.device)

    def save(self, path: Path) -> Path:
        """Pickle the specification for the worker; only the worker's own parent writes these files."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with create(path, "wb") as file:
            pickle.dump(self, file)
        return path


class Recorder:
    """Writes the records of a job's cells and reports each on the event pipe."""

    def __init__(self, spec: JobSpec, events: int) -> None:
        self.spec, self.events = spec, events
        self.unrecorded: dict[str, Cell] = {cell.id: cell for cell in spec.job.cells}
        self.begun = time.perf_counter()
        self.started = datetime.now(UTC)

    def record(self, cell: Cell, outcome: Any) -> None:
        """Record what became of a cell: a result, which is a dataclass whose ``asdict`` is JSON, or an error."""
        if not isinstance(outcome, BaseException):
            self._write(cell, "done", asdict(outcome), None)
        else:
            status = "unsupported" if isinstance(outcome, UnsupportedError) else "failed"
            self._write(cell, status, None, reason_of(outcome))

    def attempt(self, cell: Cell, measure: Callable[[Cell], Any]) -> None:
        """Record what a measurement gives; an error of ours fails this cell alone.

        It is raised again where a folder that the cell reads is damaged: the run makes that again, and then does the cell.
        """
        try:
            outcome = measure(cell)
        except SparsebenchError as error:
            read = [cell.variant, *([self.spec.dense] if needs_dense(cell) else [])]
            # What a format or a method cannot do, no other folder changes.
            if not isinstance(error, UnsupportedError) and any(map(self.spec.workspace.damage, read)):
                raise
            outcome = error
        self.record(cell, outcome)

    def progress(self, done: int, total: int, detail: str = "") -> None:
        """Tell the parent how far the current cell is, and in words (``detail``) what else there is to say."""
        self._send({"event": "progress", "done": done, "total": total, "detail": detail})

    def _write(self, cell: Cell, status: str, result: dict[str, Any] | None, reason: str | None) -> None:
        seconds = time.perf_counter() - self.begun
        content, dtype = self.spec.workspace.content(cell.variant), cell.compute_dtype(self.spec.device)
        outcome = records.CellOutcome(status, result, reason, self.started, seconds, content, dtype)
        record = records.make(cell, self.spec.manifest, outcome, self.spec.device, self.spec.origin)
        records.write(self.spec.workspace.records, record)
        self.unrecorded.pop(cell.id, None)
        self._send({"event": "cell", "cell": cell.id, "status": status, "seconds": seconds, "reason": reason})
        self._take_free_cores()
        self.begun, self.started = time.perf_counter(), datetime.now(UTC)

    def _take_free_cores(self) -> None:
        """Calculate with as many threads as are free now: jobs that ran beside this one may have ended."""
        torch = sys.modules.get("torch")
        if torch and self.spec.threads and self.spec.threads.is_file():
            torch.set_num_threads(int(self.spec.threads.read_text()))

    def _send(self, event: dict[str, Any]) -> None:
        """Send an event. Raises SystemExit where the run is gone: a lost parent is no failure of a cell."""
        try:
            os.write(self.events, json.dumps(event).encode() + b"\n")
        except BrokenPipeError:
            raise SystemExit("the run that started this job is gone") from None

    def variant_failed(self, variant: Variant, error: SparsebenchError) -> None:
        """Tell the parent that a variant could not be made, so that what needs it is skipped with this reason."""
        self._send({"event": "variant_failed", "variant": variant.id, "reason": reason_of(error)})

    def damaged(self, folders: dict[str, str]) -> None:
        """Tell the parent what is wrong with the folders of variants, by id: they are made again, and the job waits for them."""
        self._send({"event": "damaged", "variants": folders})

    def note(self, text: str) -> None:
        """Print a line to the job's log, and send it to the reader of the run."""
        print(text, file=sys.stderr, flush=True)
        self._send({"event": "note", "text": text})

    def job_failed(self, error: BaseException) -> None:
        """Tell the parent that the job as a whole failed, so that what depends on it is skipped with this reason."""
        self._send({"event": "job_failed", "reason": reason_of(error)})


def reason_of(error: BaseException) -> str:
    """Return an error in words: our own as they are, others with the name of their type."""
    return str(error) if isinstance(error, SparsebenchError) else redacted(f"{type(error).__name__}: {error}")
