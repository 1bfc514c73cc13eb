"""Child processes of this program: they import what their parent does, and do not outlive it.

``python -m sparsebench.children PARENT MODULE WORDS…`` runs a module as ``python -m`` does, but binds it to its parent
first: a parent may die in the seconds that imports take.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

DEATH_SIGNAL, SUBREAPER = 1, 36
"""PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)."""
GPU_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""The device files of NVIDIA's and AMD's drivers, and of the Windows Subsystem for Linux."""


def import_variables() -> dict[str, str]:
    """Return environment variables with which another Python imports this very package, none from the current folder.

    ``python -m`` would look there first, and take a user's own datasets.py or another checkout for ours.
    """
    root, path = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")
    installed = root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    search_path = [folder for folder in path.split(os.pathsep) if folder]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(search_path if installed else [root, *search_path])}


def may_fork() -> bool:
    """Whether a process that imported torch may fork: without a GPU, whose driver does not survive it."""
    return not any(Path(device).exists() for device in GPU_DEVICE_FILES)


def leave(code: int) -> NoReturn:
    """End this process at once, even if its buffered output cannot be printed: no code of a parent's may run here."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def call_in_fork(action: Callable[[], int], on_fork: Callable[[int], object]) -> int:
    """Call ``action`` in a fork of this process, wait for it, and return its exit code. ``on_fork`` is given its id.

    If a signal ends the fork, the same signal ends this process.
    """
    own_id = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()  # or both processes would print what is buffered
    child = os.fork()
    if not child:
        code = 1
        try:
            die_with_parent(own_id)
            code = action()
        except BaseException:  # nothing may leave the fork: its parent's code would run twice
            traceback.print_exc()
        finally:
            leave(code)
    on_fork(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:  # which nobody can handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(own_id, -code)
    return code


def signal_name(number: int) -> str:
    """Return the name of a signal, such as ``SIGKILL``. Python names only two of the real-time signals."""
    names_by_number = {member.value: member.name for member in signal.Signals}
    return names_by_number.get(number, f"SIGRTMIN{number - signal.SIGRTMIN:+d}")


def module_command(module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of ours with ``arguments`` in a child of this process, which ends with it."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *map(str, arguments)]


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, the process ``parent``, dies in any way.

    Raises SystemExit where the parent has already died.
    """
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent was gone before this process began")


def run(
    command: Sequence[str], seconds: float, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that starts others, such as a compiler, and return what it prints.

    All of its processes end, not only the first, after ``seconds`` (subprocess.TimeoutExpired), when this process is
    interrupted, and when the command fails, for instance because one of them was killed.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=variables, start_new_session=True,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            if process.returncode != 0:
                _end_session(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _end_session(session: int) -> None:
    """Kill all processes of a session: ninja gives each compiler a process group of its own."""
    import psutil

    for process in psutil.process_iter():
        with suppress(OSError, psutil.Error):
            if os.getsid(process.pid) == session:
                process.kill()


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    # Be the parent of what a child leaves behind, such as a compiler whose driver was killed.
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
