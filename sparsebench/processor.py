"""The processor: its name, its instruction sets, and the precision that it calculates in. Nothing here imports torch."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

from sparsebench import devices


def kernel_value(file: str | Path, field: str) -> str:
    """Return the first value of a field in a kernel file, such as ``VmRSS:  1024 kB``; empty where there is none."""
    try:
        match = re.search(rf"^{field}[ \t]*[: \t][ \t]*(.*\S)", Path(file).read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


@cache
def cpu_model() -> str:
    """Return the processor's name, as the system gives it."""
    return kernel_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


@cache
def generation() -> str:
    """Return an x86 processor's family and model, such as ``26.2``; empty elsewhere.

    A virtual machine often gives one name to all of a maker's processors: Zen 4 (25.17) and Zen 5 are ``AMD EPYC``.
    """
    numbers = [kernel_value("/proc/cpuinfo", field) for field in ("cpu family", "model")]
    return ".".join(numbers) if all(numbers) else ""


@cache
def instruction_sets() -> frozenset[str]:
    """Return the instruction sets that an x86 processor reports; empty elsewhere."""
    return frozenset(kernel_value("/proc/cpuinfo", "flags").split())


_AVX512 = frozenset({"avx512bw", "avx512vl", "avx512dq"})
_LEVELS = {
    "AMX": {"amx_bf16"},
    "AVX-512 BF16": _AVX512 | {"avx512_bf16"},
    "AVX-512": _AVX512,
    "AVX2": {"avx2"},
}
_NATIVE = {
    "bfloat16": (_AVX512, frozenset({"avx_ne_convert"})),
    "float16": (_AVX512 | {"avx512_fp16"}, frozenset({"avx_ne_convert"})),
}
"""By precision, alternative instruction sets: with any of them oneDNN, PyTorch's library, multiplies such matrices."""


@cache
def instructions() -> str:
    """Return the widest vector instructions that matter to matrix products, such as ``AVX-512 BF16``; empty if unknown.

    Processors of the same name can differ in them, and in speed by ten times.
    """
    return next((name for name, needed in _LEVELS.items() if needed <= instruction_sets()), "")


@cache
def is_emulated(dtype: str) -> bool:
    """Whether PyTorch has no instructions for matrix products of ``dtype`` on this CPU.

    It then goes through them number by number: bfloat16 at 10 GFLOP/s where float32 reaches 85 (one AVX2 core).
    ``auto`` counts as bfloat16, since what it will become is unknown. False where the CPU does not say.
    """
    alternatives = _NATIVE.get("bfloat16" if dtype == "auto" else dtype, ())
    available = instruction_sets()
    return bool(alternatives and available) and not any(needed <= available for needed in alternatives)


def compute_dtype(stored: str, requested: str = "auto", device: str = "cpu") -> str:
    """Return the precision to calculate in on a resolved device, for weights in the precision ``stored``.

    It is the one asked for; for ``auto`` that of the weights, or float32 where the CPU would emulate it. A GPU runs
    what the CPU beside it would emulate.
    """
    if requested != "auto":
        return requested
    return "float32" if not devices.is_gpu(device) and is_emulated(stored) else stored


def training_dtype(stored: str, requested: str, device: str) -> str:
    """Return the precision of matrix products in a training, whose weights are float32.

    It is as in ``compute_dtype``, but float16 only if asked for.
    """
    return compute_dtype("bfloat16" if stored == "bfloat16" else "float32", requested, device)
