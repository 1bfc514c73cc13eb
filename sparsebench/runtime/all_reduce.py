"""DeepSpeed's shared-memory all-reduce: checks that it can be compiled, compiles it once, removes the files it leaves.

``python -m sparsebench.runtime.all_reduce`` compiles it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sparsebench import children, devices, environment, processor
from sparsebench.native.build import compiler_words
from sparsebench.sources import Cache

REASON_DISABLED = "SPARSEBENCH_PLAIN_GLOO"
"""Environment variable of a rank with the reason why the operation is not used; unset or empty where it is used."""
ALL_REDUCE = "DeepSpeed's shared-memory all-reduce"
BUFFER_FOLDER = Path("/dev/shm")
BUFFER_BYTES = 69_000_000
"""What one rank takes in that folder."""
COMPILE_SECONDS = 600


def is_used(engine: str, ranks: int, device: str) -> bool:
    """Return whether ranks on one machine use the operation: ``deepspeed``'s, where they share its CPU."""
    return engine == "deepspeed" and ranks > 1 and not devices.is_gpu(device)


def path_with_tools() -> str:
    """Return PATH with the interpreter's folder in front: pip puts ninja there, and the venv may not be activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def requirements() -> tuple[tuple[str, bool, str], ...]:
    """List what compiling the operation needs, whether each part is installed, and how to install it."""
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    compiler = compiler_words("c++")[0]  # torch's choice
    return (
        ("C++ compiler", bool(shutil.which(compiler, path=path_with_tools())), "install g++"),
        ("ninja", bool(shutil.which("ninja", path=path_with_tools())), "pip install ninja"),
        ("Python headers", header.is_file(), "install python3-dev"),
    )


def extensions_dir(cache: Cache) -> Path:
    """Return the folder of the compiled operation: one for each set of libraries and kind of processor."""
    versions = environment.versions()
    flags = processor.kernel_value("/proc/cpuinfo", "flags") or processor.kernel_value("/proc/cpuinfo", "Features")
    key = (versions["torch"], versions["deepspeed"], platform.python_version(), platform.machine(), flags)
    return cache.root / "torch_extensions" / hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def compile_once(cache: Cache) -> str | None:
    """Compile the operation if that was not tried before; return why it cannot be used, or None.

    Only one process compiles at a time, under a lock that dies with its holder. Where the compiler was killed, for
    example for lack of memory, the outcome is not kept, and the next call tries again.
    """
    if missing := [f"no {part} ({fix})" for part, installed, fix in requirements() if not installed]:
        return "; ".join(missing)
    try:
        return _compile(extensions_dir(cache), cache)
    except OSError as error:  # such as a cache that cannot be written
        return f"{ALL_REDUCE} is not compiled into the cache ({error})"


def _compile(folder: Path, cache: Cache) -> str | None:
    folder.mkdir(parents=True, exist_ok=True)
    outcome_file = folder / "outcome.txt"  # empty, or why it does not compile
    remove_stale_locks(folder)
    with cache.lock("torch_extensions"):
        if outcome_file.is_file():
            return outcome_file.read_text() or None
        variables = {
            **os.environ,
            **children.import_variables(),
            "TORCH_EXTENSIONS_DIR": str(folder),
            "PATH": path_with_tools(),
        }
        command = children.module_command("sparsebench.runtime.all_reduce")
        try:
            finished = children.run(command, COMPILE_SECONDS, variables)
        except subprocess.TimeoutExpired:
            return f"compiling {ALL_REDUCE} took over {COMPILE_SECONDS} seconds"
        reason = ""
        if finished.returncode:
            lines = (finished.stderr or finished.stdout).strip().splitlines() or [f"exit code {finished.returncode}"]
            reason = f"{ALL_REDUCE} does not compile here ({lines[-1]}; remove {folder} to try again)"
        was_killed = finished.returncode < 0 or "killed" in (finished.stderr + finished.stdout).lower()
        if not was_killed:
            outcome_file.write_text(reason)
        return reason or None


def remove_stale_locks(folder: Path) -> dict[Path, int]:
    """Remove torch's lock files below ``folder`` whose owner is dead; return the others, each with its process.

    A process that loads a compiled operation makes such a file, keeps it open, and removes it some milliseconds later.
    A rank that dies in between leaves the file, and every later rank would wait for its removal.
    """
    owners = {}
    for lock in folder.glob("*/lock"):
        with suppress(FileNotFoundError):  # the lock has just been released
            before = lock.stat()
            if owner := _owner(lock):
                owners[lock] = owner
            elif lock.stat().st_ctime_ns == before.st_ctime_ns:  # else another process has made it since
                lock.unlink()
    return owners


def _owner(path: Path) -> int | None:
    """Return a local process that has the file open, as far as this user may look; None where there is none."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.samefile(path):
                return int(link.parts[2])
    return None


def remove_buffers(address: str, port: str, ranks: Iterable[int]) -> None:
    """Remove exactly the buffers of a group's ``ranks`` from /dev/shm; ranks that have mapped one keep it."""
    for rank in ranks:
        (BUFFER_FOLDER / f"deepspeed_allreduce_buffer_{os.getuid()}_{address}_{port}_{rank}").unlink(missing_ok=True)


if __name__ == "__main__":
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load()
