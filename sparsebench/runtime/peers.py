"""The ranks of a group as one clock: all start a step together, and all know how long the slowest took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


class Peers:
    """This process and the other ranks; at one rank there is nobody to wait for."""

    def __init__(self, ranks: int, cuda: bool) -> None:
        self.ranks, self.cuda = ranks, cuda

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.ranks > 1:
            import torch.distributed as dist

            dist.barrier()

    def timed(self, step: Callable[[], Value]) -> tuple[Value, tuple[float, float]]:
        """Run ``step`` on all ranks at once: its value, (wall seconds of the slowest rank, CPU seconds of all).

        Both numbers are the same on every rank, so that decisions taken from them are, too.
        """
        self.barrier()
        self._finish()
        cpu, wall = time.process_time(), time.perf_counter()
        value = step()
        self._finish()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if self.ranks > 1:
            import torch
            import torch.distributed as dist

            device = "cuda" if self.cuda else "cpu"
            slowest, total = (torch.tensor(seconds, dtype=torch.float64, device=device) for seconds in (wall, cpu))
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
            dist.all_reduce(total)
            wall, cpu = float(slowest), float(total)
        return value, (wall, cpu)

    def _finish(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()
