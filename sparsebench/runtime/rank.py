"""One rank's process, ``python -m sparsebench.runtime.rank SPEC.json RANK``, started by ``launch.NodeRanks``."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import children, errors
from sparsebench.children import call_in_fork, die_with_parent
from sparsebench.errors import SparsebenchError, first_line, mentions, out_of_memory, redact_stderr
from sparsebench.runtime import failures, watch
from sparsebench.runtime.channel import Channel
from sparsebench.runtime.launch import CHANNEL, PARENT
from sparsebench.runtime.results import RankJob, Setting

if TYPE_CHECKING:
    from sparsebench.runtime.rank_jobs import RankWorker


def work(channel: Channel, spec: Mapping[str, Any], rank: int) -> int:
    """Do the job of ``spec`` once for each of its processes, several of them each in a fork; return the exit code."""
    from sparsebench.runtime.rank_jobs import RankWorker  # only now: torch takes seconds, and the parent may die

    job = RankJob.of_json(spec["job"])
    worker, processes = RankWorker(job, Setting.of_json(spec["setting"]), rank, channel), job.processes
    if len(processes) == 1:
        return attempt(worker, partial(worker.do, processes[0]))
    if code := attempt(worker, worker.import_model):
        return code
    for process, port in zip(processes, spec["ports"], strict=True):
        watch.answer_requests()  # this process only relays requests to the last fork, and a fork must not inherit that
        os.environ["MASTER_PORT"] = port
        if code := call_in_fork(partial(attempt, worker, partial(worker.do, process)), watch.relay_requests):
            return code
    return 0


def attempt(worker: RankWorker, call: Callable[[], None]) -> int:
    """Call; return the exit code. A known error is sent to the parent; any other is raised, for the log."""
    try:
        call()
        return 0
    except SparsebenchError as error:
        worker.channel.send("error", type=_known(error), message=error.message, hint=error.hint)
    except (MemoryError, RuntimeError, OSError) as error:
        memory = out_of_memory(error)
        if not memory and not failures.echo(error):
            raise
        traceback.print_exc()
        # In main memory every rank adds a copy of what is not shared; a GPU holds only its own rank's share.
        hint = "use a smaller dtype, fewer ranks, or a larger machine" if memory else None
        if memory and mentions(error, ("cuda", "hip out of memory")):
            hint = "use a smaller dtype, more ranks, the deepspeed-zero3 engine, or a GPU with more memory"
        what = "ran out of memory" if memory else "lost another rank"
        message = f"rank {worker.rank} of {worker.setting.ranks} {what}: {first_line(error)}"
        worker.channel.send("error", type="MeasureError", message=message, hint=hint, echo=not memory)
    return 3


def _known(error: SparsebenchError) -> str:
    """Return the name of the nearest class of an error that the parent knows: a plugin may have a class of its own."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def main(arguments: Sequence[str]) -> int:
    """Run a rank; ``arguments`` are SPEC.json and its number."""
    redact_stderr()
    spec, rank = arguments
    die_with_parent(int(os.environ[PARENT]))
    watch.answer_requests()
    return work(Channel(int(os.environ[CHANNEL])), json.loads(Path(spec).read_text()), int(rank))


if __name__ == "__main__":
    code = 1
    try:
        code = main(sys.argv[1:])
    except BaseException:  # the worker's boundary: the parent shows the end of this log
        traceback.print_exc()
    finally:
        # A regular interpreter shutdown sometimes aborts under gloo's threads, and frees gigabytes slowly.
        children.leave(code)
