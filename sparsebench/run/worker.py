"""The process that does one job: this module in a child (``children.module_command``), or a fork of the fork server.

It reads a specification, does the job, writes a record as each cell finishes, and reports to the run on the event pipe.
This is the boundary at which any failure becomes a record.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

from sparsebench.errors import known_crash, redact_stderr
from sparsebench.run.handlers import HANDLERS, damaged
from sparsebench.run.recorder import JobSpec, Recorder


def main(spec_path: Path, events: int) -> int:
    """Do the job of a specification, which is removed, report on the descriptor ``events``, and return the exit code."""
    redact_stderr()
    spec: JobSpec = pickle.loads(spec_path.read_bytes())
    spec_path.unlink()
    recorder = Recorder(spec, events)
    try:
        if folders := damaged(spec):
            recorder.damaged(folders)
            return 0
        HANDLERS[spec.job.kind](spec, recorder)
    except BaseException as raised:  # the worker boundary: every failure becomes a record
        error = known_crash(raised) or raised
        if not isinstance(error, Exception):
            raise
        traceback.print_exc()
        if folders := damaged(spec):  # another job's finding may have removed them under this one
            recorder.damaged(folders)
            return 0
        for cell in list(recorder.unrecorded.values()):
            recorder.record(cell, error)
        recorder.job_failed(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
