"""The process that does one job: this module in a child (``children.command``), or a fork of the fork server.

It reads a specification, does the job, writes a record as each cell finishes, and reports to the run on the event pipe.
This is the boundary at which any failure becomes a record.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

from sparsebench.errors import redact_stderr
from sparsebench.run.handlers import HANDLERS, variants_read
from sparsebench.run.recorder import JobSpec, Recorder


def main(path: Path, events: int) -> int:
    """Do the job of the specification at ``path``, report on the descriptor ``events``, and return the exit code."""
    redact_stderr()
    spec: JobSpec = pickle.loads(path.read_bytes())
    recorder = Recorder(spec, events)
    try:
        if damaged := _damaged(spec):
            recorder.damaged(damaged)
            return 0
        HANDLERS[spec.job.kind](spec, recorder)
    except Exception as error:  # the worker boundary: every failure becomes a record
        traceback.print_exc()
        for cell in list(recorder.open.values()):
            recorder.failed(cell, error)
        recorder.broken(error)
        return 1
    return 0


def _damaged(spec: JobSpec) -> dict[str, str]:
    """Return what is wrong with the damaged folders among those that the job opens, by id of their variants."""
    variants = {variant.id: variant for variant in variants_read(spec)}
    found = {name: spec.workspace.damage(variant) for name, variant in variants.items()}
    return {name: why for name, why in found.items() if why}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
