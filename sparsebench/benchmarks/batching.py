"""How much a forward pass takes: on a CPU what is fastest there, on a GPU what fits; half as much where memory is wanting."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sparsebench.errors import BenchmarkError
from sparsebench.models.dimensions import dimensions
from sparsebench.runtime.parity import out_of_memory

SHARE = 0.5
"""Of the memory that is free on a GPU: the rest is for what is only estimated."""
MOST = 1 << 15
"""Tokens beyond which a GPU is no faster."""

Item = TypeVar("Item")
Found = TypeVar("Found")


def tokens_at_once(model: Any, least: int) -> int:
    """Tokens that a forward pass may take: ``least``, what is fastest on a CPU, or as many as the model's GPU has room for."""
    if model.device.type != "cuda":
        return least
    import torch

    free, _ = torch.cuda.mem_get_info(model.device)
    return fitting(model, free, least)


def fitting(model: Any, free: int, least: int) -> int:
    """Tokens whose activations fit into so many free bytes: two blocks' states and their feed-forward part, with copies on the
    way, and logits over the vocabulary with their logarithms, in float32."""
    size = dimensions(model.config.to_dict())
    each = 2 * model.dtype.itemsize * (4 * size.hidden + 3 * size.inner) + 8 * size.vocabulary
    return max(least, min(MOST, int(SHARE * free / each)))


@dataclass
class BatchSize:
    """At most ``most`` rows a forward pass; half as many whenever memory was wanting, unless their number was ``asked`` for."""

    most: int
    asked: bool = False

    def parts(
        self, rows: Sequence[Item], run: Callable[[Sequence[Item]], Found]
    ) -> Iterator[tuple[Sequence[Item], Found]]:
        """Every row in turn, so many at a time, with what ``run`` makes of them.

        Raises BenchmarkError where memory is too small for one row, or for as many as were asked for.
        """
        start = 0
        while start < len(rows):
            part = rows[start : start + self.most]
            try:
                found = run(part)
            except (RuntimeError, MemoryError) as error:
                self.halve(len(part), error)
            else:
                yield part, found
                start += len(part)
                continue
            release()  # behind the except clause, where nothing holds the failed pass any more

    def halve(self, rows: int, error: Exception) -> None:
        """Take half of so many rows from now on, which failed with ``error``.

        Raises that error where it is not for want of memory, BenchmarkError where there is nothing to halve, or where so many
        were asked for.
        """
        if not out_of_memory(error):
            raise error
        if self.asked or rows == 1:
            raise BenchmarkError(
                f"a forward pass of {rows} sequence{'s' * (rows > 1)} does not fit into memory: "
                f"{(str(error).splitlines() or ['out of memory'])[0]}",
                "leave `batch` out: as many are taken as fit" if self.asked else "use a smaller dtype, or more memory",
            ) from error
        self.most = rows // 2


def release() -> None:
    """Give what a failed pass has left back to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
