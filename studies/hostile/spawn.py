"""Runs one command under limits and says what it and all its descendants took; a process of its own, run as a file.

    python -I -S spawn.py RESULT WALL_SECONDS CPU_SECONDS MEMORY_BYTES FILE_BYTES COMMAND …

A child inherits the peak memory of the process that starts it: this one is small. It adopts what its descendants leave
behind, and ends it. RESULT becomes a line: exit code (negative for a signal), CPU seconds, peak kilobytes of the largest
process, 1 if the command ended by itself.
"""

import ctypes
import os
import resource
import signal
import sys
import time

_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """Start, wait, end and count."""
    result, wall, cpu, memory, size = sys.argv[1:6]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if not child:
        os.setsid()
        limits = {"AS": int(memory), "FSIZE": int(size), "CPU": int(cpu), "CORE": 0}
        for name, limit in limits.items():
            # Of CPU the first limit ends with a signal that says why.
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit + (name == "CPU")))
        os.execvp(sys.argv[6], sys.argv[6:])
    status, in_time = _wait(child, time.monotonic() + float(wall))
    _end_all()
    took = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = os.waitstatus_to_exitcode(status)
    with open(result, "w") as file:
        file.write(f"{code} {took.ru_utime + took.ru_stime:.3f} {took.ru_maxrss} {int(in_time)}\n")


def _wait(child: int, end: float) -> tuple[int, bool]:
    """The child's status, and whether it came by itself; adopted children are waited for on the way."""
    status = None
    while status is None and time.monotonic() < end:
        pid, found = os.waitpid(-1, os.WNOHANG)
        if pid == child:
            status = found
        elif not pid:
            time.sleep(0.01)
    if status is not None:
        return status, True
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1], False


def _end_all() -> None:
    """End the descendants that are left: each becomes a child of this process when its own parent ends."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(word) for word in file.read().split()]
        if not children:
            return
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
