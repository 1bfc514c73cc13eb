"""Processes of ours: they import what their parent does, and do not outlive it.

``python -m sparsebench.children PARENT MODULE WORDS…`` runs a module as ``python -m`` does, bound to its parent before it imports
anything: a parent may die in the seconds that imports take.
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
from pathlib import Path
from typing import NoReturn

DEATH_SIGNAL, SUBREAPER = 1, 36
"""PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of prctl(2)."""
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Where drivers of NVIDIA, AMD and Windows' Linux are reached."""

_END = """
read _
kill -9 -$0
for each in /proc/[0-9]*; do
    stat=$(cat $each/stat) && set -- ${stat##*) } && [ "$4" = "$0" ] && kill -9 ${each#/proc/}
done
"""
"""In the shell's language: when the standard input is closed, kill a command's process group, and then, where there is /proc, its
whole session: ninja gives each compiler a group of its own."""


def imports() -> dict[str, str]:
    """Environment variables under which another Python imports this very package, and nothing from the current folder.

    ``python -m`` would look there first: a person's own datasets.py, or another checkout, would be taken for ours.
    """
    root, path = str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")
    installed = root in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
    known = [part for part in path.split(os.pathsep) if part]
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(known if installed else [root, *known])}


def may_fork() -> bool:
    """Whether processes that have imported torch may be forked: on Linux, and without a GPU, whose driver does not survive it."""
    return sys.platform == "linux" and not any(Path(device).exists() for device in GPUS)


def leave(code: int) -> NoReturn:
    """End this process at once, whatever becomes of what it has yet to print: no code of a parent's may run here."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def apart(do: Callable[[], int], forked: Callable[[int], object]) -> int:
    """Do it in a fork of this process, which waits: the exit code. ``forked`` is told its number.

    A fork that a signal ends, ends this process by the same signal.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()  # or both would print what waits there
    child = os.fork()
    if not child:
        code = 1
        try:
            die_with_parent(parent)
            code = do()
        except BaseException:
            traceback.print_exc()
        finally:
            leave(code)
    forked(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        if -code != signal.SIGKILL:  # which nobody can handle
            signal.signal(-code, signal.SIG_DFL)
        os.kill(parent, -code)
    return code


def command(module: str, *words: object) -> list[str]:
    """The command that runs a module of ours with ``words`` in a child of this process, which ends with it."""
    return [sys.executable, "-m", __name__, str(os.getpid()), module, *map(str, words)]


def die_with_parent(parent: int) -> None:
    """On Linux this process is killed when its parent, the process ``parent``, dies, however that dies.

    Raises SystemExit where that has died before. Elsewhere only this is checked.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent was gone before this process began")


def adopt() -> None:
    """On Linux what a child leaves behind, such as a compiler whose driver was killed, becomes a child of this process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def run(
    command: Sequence[str], seconds: float, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that starts others, such as a compiler, and keep what it says.

    After ``seconds`` (subprocess.TimeoutExpired), when this process is interrupted or killed, and when the command fails, killed
    or because what it started was, all of them end, not only the first.
    """
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with (
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env, start_new_session=True) as process,
        # It reads from a pipe that nobody writes to, and that is closed when this block ends or this process does.
        subprocess.Popen(
            ["/bin/sh", "-c", _END, str(process.pid)], stdin=pipe, stdout=quiet, stderr=quiet, start_new_session=True
        ) as guard,
    ):
        out, err = process.communicate(timeout=seconds)
        if not process.returncode:
            guard.kill()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    adopt()
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
