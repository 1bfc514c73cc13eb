"""Hidden states between blocks: in memory, or in files that the page cache may drop."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.errors import ModelError, UnsupportedError

if TYPE_CHECKING:
    import torch


class States:
    """For each stream, the states that the next block reads and those that it writes, each (samples, length, width).

    With a ``folder`` they are memory-mapped files there, unlinked at once and freed with their last tensor, so that
    anonymous memory does not grow. A buffer is made when it is first written. Copies that are read are on ``device``,
    and so are buffers without a ``folder``.
    """

    def __init__(self, streams: int, samples: int, folder: Path | None = None, device: str = "cpu") -> None:
        self.device = device
        self.samples = samples
        self.folder = folder
        self.streams = streams
        self._read: list[torch.Tensor | None] = [None] * streams
        self._write: list[torch.Tensor | None] = [None] * streams

    def read(self, stream: int, rows: slice) -> torch.Tensor:
        """Return a copy of the states (group, length, width) of a group of samples; the model may write into it."""
        states = self._read[stream]
        assert states is not None, "read before the first block was written"
        return self._copy(states[rows])

    def written(self, stream: int, rows: slice) -> torch.Tensor:
        """Return a copy of a group's states that were written since the last ``swap``."""
        states = self._write[stream]
        assert states is not None, "nothing was written"
        return self._copy(states[rows])

    def write(self, stream: int, rows: slice, values: torch.Tensor) -> None:
        """Keep a group's new states until ``swap`` makes them readable.

        Raises UnsupportedError when groups differ in dtype, length or width.
        """
        states = self._write[stream]
        if states is None:
            states = self._write[stream] = self._buffer(values)
        if _form(states) != _form(values):
            one, other = (f"{tuple(some.shape[1:])} {some.dtype}" for some in (states, values))
            raise UnsupportedError(f"hidden states of a block are {one} in one group of samples and {other} in another")
        states[rows] = values

    def _copy(self, states: torch.Tensor) -> torch.Tensor:
        there = states.to(self.device)
        return states.clone() if there is states else there

    def swap(self) -> None:
        """Make the written states those that are read from now on."""
        self._read, self._write = self._write, self._read
        # Embeddings may have a lower precision than the outputs of the first block.
        for stream, (new, old) in enumerate(zip(self._read, self._write, strict=True)):
            if new is not None and old is not None and _form(new) != _form(old):
                self._write[stream] = None

    def shrink(self) -> None:
        """Free the write buffers."""
        self._write = [None] * len(self._write)

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        import torch

        shape = (self.samples, *like.shape[1:])
        if self.folder is None:
            return torch.empty(shape, dtype=like.dtype, device=self.device)
        self.folder.mkdir(parents=True, exist_ok=True)
        size = math.prod(shape)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="states-") as file:
            try:
                # Writing into a mapping of a file with holes ends in SIGBUS when the disk is full.
                os.posix_fallocate(file.fileno(), 0, size * like.dtype.itemsize)
            except OSError as error:
                what = f"no room for {size * like.dtype.itemsize} bytes of hidden states ({error.strerror})"
                raise ModelError(f"{self.folder}: {what}", "free some space, or use fewer samples") from error
            return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(shape)


def _form(states: torch.Tensor) -> tuple[torch.dtype, torch.Size]:
    return states.dtype, states.shape[1:]
