"""Measures a rank's peak memory by the kernel's high-water mark, reset before each phase, so that nothing is polled.

It sees every peak, however short; its counters are kept per CPU and exact to about a megabyte.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from sparsebench import devices, processor
from sparsebench.errors import UnsupportedError
from sparsebench.runtime.machine import process_gpu_bytes
from sparsebench.runtime.results import RankMemory

STATUS = Path("/proc/self/status")
WHOLE_GPU = "CUDA max_memory_allocated; held by the process: all that is taken of the GPU, other programs' too"
LINUX_HINT = "measure memory on Linux 4.5 or later"
RESET_PEAK = "5"  # proc(5), clear_refs: reset VmHWM to the current RSS


def copy_out(module: Any) -> None:
    """Copy the parameters and buffers of ``module`` that are on the CPU into anonymous memory, in place.

    transformers maps the file. Its pages do not count as anonymous memory and come and go with memory pressure, so a
    loaded model would look gigabytes smaller, or its first step slower, than it is.

    The copies are ordinary tensors, also in inference mode: an inference tensor does not tell torch that it needs a
    gradient. Of a weight that needs none torch 2.13 copies the transpose in each product with a slice of the hidden
    states, as the head's with the last token's: that made a prompt of 16 tokens five times slower with Qwen2.5-1.5B.
    """
    copies: dict[tuple[int, int], torch.Tensor] = {}  # a head and an embedding in one memory stay there
    with torch.inference_mode(mode=False):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.device.type == "cpu" and tensor.numel():
                key = tensor.data_ptr(), tensor.nbytes
                if key not in copies:
                    copies[key] = tensor.data.clone()
                tensor.data = copies[key].view(tensor.dtype).view(tensor.shape)
    gc.collect()


def settle_allocator() -> None:
    """Allocate and free one block of just under 32 MiB, so that two models loaded in turn are laid out alike in memory.

    glibc maps large blocks one by one until one is freed, and from then on takes blocks up to that size from its heap,
    32 MiB at most. Without this the first model is laid out differently, and was seen 1-4% off a second copy of itself.
    """
    bytearray(32 * 2**20 - 2**13)


def tensor_bytes(model: Any) -> int:
    """Return the bytes of a model's parameters and buffers, each storage once, plus the engine's ``hidden_bytes``."""
    module = getattr(model, "module", model)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values()) + int(getattr(model, "hidden_bytes", 0))


def cache_bytes(cache: Any) -> int | None:
    """Return the bytes of the tensors that ``cache`` holds, at any depth, each storage once; None for None."""
    storages: dict[int, int] = {}
    visited: set[int] = set()
    pending = [cache]
    while pending:
        member = pending.pop()
        if id(member) in visited or isinstance(member, torch.nn.Module | type):
            continue
        visited.add(id(member))
        if isinstance(member, torch.Tensor):
            storages[member.untyped_storage().data_ptr()] = member.untyped_storage().nbytes()
        elif isinstance(member, Mapping):
            pending += member.values()
        elif isinstance(member, list | tuple):
            pending += member
        else:
            pending += getattr(member, "__dict__", {}).values()
    return None if cache is None else sum(storages.values())


class MemoryMeter:
    """Measures one rank phase by phase. Create it after the imports: what is resident then is the baseline.

    Raises UnsupportedError where the kernel offers no resettable high-water mark.
    """

    def __init__(self, rank: int, device: str) -> None:
        self.rank, self.cuda = rank, devices.is_gpu(device)
        self.source = "CUDA max_memory_allocated" if self.cuda else "VmHWM less baseline"
        self.memories: list[RankMemory] = []
        self.tensor_bytes = 0
        _settle()
        _reset_peak()
        self.baseline = _status("VmRSS")

    @contextmanager
    def phase(self, name: str, cache: Callable[[], Any] = tuple) -> Iterator[None]:
        """Measure what runs inside the ``with`` block as phase ``name``, and append a row.

        ``cache`` returns what is kept between tokens at its end, None where that is unknown.
        """
        _settle()
        _reset_peak()
        if self.cuda:
            torch.cuda.empty_cache()  # do not count the last phase's reservation
            torch.cuda.reset_peak_memory_stats()
        yield
        peak = _status("VmHWM")
        allocated = reserved = process_bytes = None
        if self.cuda:
            torch.cuda.synchronize()
            allocated, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            process_bytes = process_gpu_bytes(torch.cuda.current_device())
            if process_bytes is None:  # for example in a container, where NVML knows processes by other numbers
                free, total = torch.cuda.mem_get_info()
                process_bytes = total - free
                self.source = WHOLE_GPU
        self.memories.append(
            RankMemory(
                rank=self.rank,
                phase=name,
                peak_rss_bytes=peak,
                peak_bytes=peak - self.baseline if allocated is None else allocated,
                anon_bytes=_status("RssAnon"),
                pss_bytes=_tree_pss(),
                tensor_bytes=self.tensor_bytes,
                cache_bytes=cache_bytes(cache()),
                baseline_bytes=self.baseline,
                cuda_allocated_bytes=allocated,
                cuda_reserved_bytes=reserved,
                cuda_process_bytes=process_bytes,
            )
        )


def _settle() -> None:
    """Give freed memory back to the system, so that a phase does not inherit the last one's heap."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc only
        trim(0)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK)
    except OSError as error:
        raise UnsupportedError(
            f"exact peak memory needs /proc/self/clear_refs: {error.strerror}", LINUX_HINT
        ) from error


def _status(field: str) -> int:
    """Return one field of /proc/self/status, in bytes. Raises UnsupportedError where it is missing."""
    if not (text := processor.kernel_value(STATUS, field)):
        raise UnsupportedError(f"{STATUS} has no {field}", LINUX_HINT)
    return int(text.split()[0]) * 1024


def _tree_pss() -> int | None:
    """Return the proportional set size of this process and its descendants, in bytes; None where it is unknown."""
    own = _process_pss("self")
    children = (str(child.pid) for child in psutil.Process().children(recursive=True))
    return None if own is None else own + sum(_process_pss(child) or 0 for child in children)


def _process_pss(process: str) -> int | None:
    """Return the proportional set size of one process; None for one that has ended, too."""
    text = processor.kernel_value(f"/proc/{process}/smaps_rollup", "Pss")
    return int(text.split()[0]) * 1024 if text else None
