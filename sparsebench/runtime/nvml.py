"""NVIDIA's management library, and what it says of the GPUs that torch counts. It does not heed CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Unavailable(Exception):
    """There is no NVML here, or it refuses; the message says why."""


@contextmanager
def library() -> Iterator[Any]:
    """The library, ready for use. Raises Unavailable, for what is asked of it inside too."""
    try:
        import pynvml
    except ImportError:
        raise Unavailable("nvidia-ml-py is not installed (pip install nvidia-ml-py)") from None
    try:
        pynvml.nvmlInit()  # once more each time is free; it is never shut down, for handles stay in use
        yield pynvml
    except pynvml.NVMLError as error:
        raise Unavailable(f"NVML says: {error}") from error


def device(nvml: Any, index: int) -> Any:
    """The GPU that torch counts as ``index``."""
    import torch

    return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")


def process_bytes(index: int) -> int | None:
    """Memory that this process holds on a GPU, with CUDA's context and kernels, which torch does not count.

    None where NVML does not say: without it, and in a container, where it knows processes by other numbers.
    """
    try:
        with library() as nvml:
            running = nvml.nvmlDeviceGetComputeRunningProcesses(device(nvml, index))
            return next((one.usedGpuMemory for one in running if one.pid == os.getpid()), None)
    except Unavailable:
        return None
