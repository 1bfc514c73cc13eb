"""The size of a forward pass: on a CPU what is fastest, on a GPU what fits into memory; halved when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from sparsebench.errors import BenchmarkError, out_of_memory
from sparsebench.models.files.families import dimensions
from sparsebench.units import counted

MEMORY_SHARE = 0.5
"""Share of a GPU's free memory that is used. The rest makes up for errors of the estimate."""
MOST_TOKENS = 1 << 15
"""Most tokens per forward pass: with more a GPU is no faster."""

BatchRow = TypeVar("BatchRow")
BatchResult = TypeVar("BatchResult")


def tokens_at_once(model: Any, minimum: int) -> int:
    """Return the tokens per forward pass: ``minimum`` (the fastest) on a CPU, as many as fit on the model's GPU."""
    if model.device.type != "cuda":
        return minimum
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    # What torch keeps for reuse is free too: without it, a later task would get smaller passes than the first.
    free_bytes += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return fitting_tokens(model, free_bytes, minimum)


def fitting_tokens(model: Any, free_bytes: int, minimum: int) -> int:
    """Return how many tokens' activations fit into MEMORY_SHARE of ``free_bytes``: from ``minimum`` to MOST_TOKENS.

    Per token these are two blocks' states and their feed-forward parts, with temporary copies, and the logits over the
    vocabulary with their logarithms, in float32.
    """
    size = dimensions(model.config.to_dict())
    bytes_per_token = 2 * model.dtype.itemsize * (4 * size.hidden + 3 * size.inner) + 8 * size.vocabulary
    return max(minimum, min(MOST_TOKENS, int(MEMORY_SHARE * free_bytes / bytes_per_token)))


@dataclass
class BatchSize:
    """At most ``most_rows`` per forward pass, halved when memory runs out; not if ``is_fixed``, as the user's number is."""

    most_rows: int
    is_fixed: bool = False

    def parts(
        self, rows: Sequence[BatchRow], run: Callable[[Sequence[BatchRow]], BatchResult]
    ) -> Iterator[tuple[Sequence[BatchRow], BatchResult]]:
        """Yield parts of ``rows`` in order, each with what ``run`` returns for it.

        Raises BenchmarkError when memory is too small for one row, or for the number that the user asked for.
        """
        start = 0
        while start < len(rows):
            batch = rows[start : start + self.most_rows]
            try:
                result = run(batch)
            except (RuntimeError, MemoryError) as error:
                self.halve(len(batch), error)
            else:
                yield batch, result
                start += len(batch)
                continue
            release_memory()  # after the except clause, where nothing refers to the failed pass any more

    def each(
        self, rows: Sequence[BatchRow], run: Callable[[Sequence[BatchRow]], Iterable[BatchResult]]
    ) -> Iterator[tuple[BatchRow, BatchResult]]:
        """Yield every row with what ``run`` returns for it, part by part as ``parts`` does."""
        for batch, results in self.parts(rows, run):
            yield from zip(batch, results, strict=True)

    def halve(self, failed_rows: int, error: Exception) -> None:
        """Allow half of ``failed_rows`` from now on, after a pass of so many failed with ``error``.

        Raises that error if it is not about memory, and BenchmarkError for a single row or a number that the user asked
        for.
        """
        if not out_of_memory(error):
            raise error
        if self.is_fixed or failed_rows == 1:
            raise BenchmarkError(
                f"a forward pass of {counted(failed_rows, 'sequence')} does not fit into memory: "
                f"{(str(error).splitlines() or ['out of memory'])[0]}",
                "leave `batch` out: as many are taken as fit"
                if self.is_fixed
                else "use a smaller dtype, or more memory",
            ) from error
        self.most_rows = failed_rows // 2


def release_memory() -> None:
    """Return the memory that a failed pass has left to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
