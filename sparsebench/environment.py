"""Where a number was measured: machine, libraries, git state, threads and load. Nothing here imports torch."""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from sparsebench import devices, processor

_CONTROL_GROUP = Path("/sys/fs/cgroup")

LIBRARIES = (
    "torch", "transformers", "accelerate", "deepspeed", "lm-eval", "datasets", "duckdb", "safetensors", "numpy",
    "tokenizers", "gguf", "scipy", "zstandard", "pymetis", "xllamacpp",
)  # fmt: skip
EXTRAS = {"pymetis": "'pymetis>=2025.2'", "xllamacpp": "'xllamacpp>=2026.10'"}
"""What pip must be given where a library's name alone would not do."""


@cache
def versions() -> dict[str, str]:
    """Return the installed version of every library that can change a result, by distribution name.

    ``absent`` stands for one that is not installed.
    """
    return {library: _installed_version(library) for library in LIBRARIES}


def version(library: str) -> str:
    """Return a library's version as ``versions`` does, also that of one which only a plugin names."""
    return versions()[library] if library in LIBRARIES else _installed_version(library)


def _installed_version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "absent"


def major_minor(library: str) -> str:
    """Return the part of a library's version that is taken to change results: ``5.24`` of ``5.24.0``."""
    return ".".join(version(library).split("+")[0].split(".")[:2])


def cores() -> int:
    """Return how many cores this process may use: in a container they are fewer than the machine has."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CONTROL_GROUP / "cpu.max").read_text().split()
        return min(allowed, max(1, int(quota) // int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no control group, or no limit: `max`
        return allowed


def busy_cores() -> float:
    """Return how many of the machine's cores are busy, on average, over half a second from now."""
    return float(psutil.cpu_percent(0.5)) / 100 * (os.cpu_count() or 1)


def memory() -> tuple[int, int]:
    """Return total and available memory in bytes, each the smaller of the machine's and the control group's."""
    state = psutil.virtual_memory()
    total, available = int(state.total), int(state.available)
    try:
        limit = int((_CONTROL_GROUP / "memory.max").read_text())
        used = int((_CONTROL_GROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return total, available
    return min(total, limit), min(available, max(0, limit - used + _reclaimable_bytes(_CONTROL_GROUP)))


def peak_rss() -> int:
    """Return this process's peak RSS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk that ``path``, which need not exist yet, is or will be on."""
    absolute = path.absolute()
    return shutil.disk_usage(next(folder for folder in (absolute, *absolute.parents) if folder.exists())).free


def _reclaimable_bytes(group: Path) -> int:
    """Return the bytes of idle cached files in a control group: they count as used, but the kernel takes them back."""
    return int(processor.kernel_value(group / "memory.stat", "inactive_file") or 0)


@cache
def hardware_class(device: str = "cpu") -> str:
    """Return the class of hardware within which latencies may be compared: ``AMD EPYC (AVX2, model 25.1) ×2, 23 GiB``.

    GPUs count by name, however many there are: how many a measurement takes is a setting, and the others are idle.
    """
    details = [processor.instructions()] if processor.instructions() else []
    if processor.generation():
        details.append(f"model {processor.generation()}")
    cpu = f"{processor.cpu_model()} ({', '.join(details)})" if details else processor.cpu_model()
    words = [f"{cpu} ×{cores()}", f"{memory()[0] // 2**30} GiB"]
    if devices.is_gpu(device):
        words.append(devices.hardware_name(device))
    return ", ".join(words)


@cache
def place(device: str = "cpu") -> dict[str, str]:
    """Return the place where something is measured, for a resolved device; ``id`` is a hash of the rest.

    Times and memory of two places are not compared.
    """
    facts = {
        "machine": hardware_class(device),
        "device": devices.hardware_name(device),
        "cuda": devices.cuda_version() if devices.is_gpu(device) else "",
    }
    return {"id": hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:8], **facts}


@cache
def git_state() -> tuple[str, bool]:
    """Return the commit of the checkout that this package lies in, and whether files differ; ("", False) elsewhere."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists() or shutil.which("git") is None:
        return "", False

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))


def environment_record(device: str = "cpu") -> dict[str, object]:
    """Return this machine and its libraries now, as a record stores them, for what is calculated on ``device``.

    ``id`` covers what is stable (hardware, libraries, git state); ``load`` and ``available_bytes`` are of the moment.
    ``machine`` is the class of hardware within which runtime numbers are compared.
    """
    total, available = memory()
    commit, dirty = git_state()
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # of a list, the outermost level
    facts: dict[str, object] = {
        "machine": hardware_class(device),
        "platform": platform.platform(),
        "cpu": processor.cpu_model(),
        "cores": cores(),
        "memory_bytes": total,
        "gpus": devices.gpu_names(),
        "python": platform.python_version(),
        "libraries": dict(versions()),
        "git_commit": commit,
        "git_dirty": dirty,
        "threads": int(threads) if threads.isdecimal() else cores(),
        "load": os.getloadavg()[0],
        "available_bytes": available,
    }
    return {"id": environment_id(facts), **facts}


def environment_id(environment: Mapping[str, Any]) -> str:
    """Return the id of what is stable in an environment: hardware, libraries and the state of the code."""
    identity = [environment[name] for name in ("machine", "platform", "python")]
    stable = (*identity, sorted(environment["libraries"].items()), environment["git_commit"], environment["git_dirty"])
    return hashlib.sha256(repr(stable).encode()).hexdigest()[:16]
