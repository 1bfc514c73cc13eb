"""How fast the ranks read memory: the speed that no engine can exceed, where a token needs every weight."""

from __future__ import annotations

import mmap
from statistics import median

import torch

from sparsebench import devices
from sparsebench.runtime.latency import RankSync

READ_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}
"""Bytes that a rank reads at a time: far more than caches hold."""
READS = 7


def read_bytes_per_second(sync: RankSync, device: str) -> float:
    """Return the bytes that all ranks together read in a second, each adding up float32 numbers with all of its threads.

    It is the median of ``READS``. The numbers lie outside the heap, so that models are laid out as without them.
    """
    kind = device.split(":")[0]
    nbytes = READ_BYTES[kind]
    if devices.is_gpu(device):
        numbers = torch.ones(nbytes // 4, device=device)
    else:
        numbers = torch.frombuffer(mmap.mmap(-1, nbytes), dtype=torch.float32).fill_(1)
    numbers.sum()
    seconds = median(sync.timed(numbers.sum)[1][0] for _ in range(READS))
    del numbers
    if devices.is_gpu(device):
        torch.cuda.empty_cache()
    return sync.ranks * nbytes / seconds
