"""Who does the work on the bits: our C++ where it can be compiled, else numpy. The bytes are the same either way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sparsebench.storage.scratch import Scratch
from sparsebench.storage.words import Bytes, Words


class Scan(Protocol):
    """One tensor taken apart, as far as it was asked for; ``count`` is the number of its nonzero elements."""

    count: int

    def split(self) -> tuple[Bytes, tuple[Words, ...]]:
        """The bitmask, and the nonzero elements in order, in pieces. Asked for only where there is a zero."""

    def gap_bytes(self) -> dict[str, int]:
        """The size of each gap coding. Only after ``split``, and where less than a quarter is nonzero."""

    def gaps(self, encoding: str) -> Bytes:
        """A gap coding; only after ``split``."""


class Kernels(Protocol):
    """The operations that cost."""

    def scan(self, words: Words, scratch: Scratch) -> Scan:
        """Begin to take a tensor apart; the parts may lie in the scratch memory."""

    def place(self, encoding: str, index: Bytes, values: Words, n: int, scratch: Scratch) -> tuple[Words, int]:
        """``n`` elements from an index and values, and how many values the index places.

        A bitmask has ``(n + 7) // 8`` bytes: the caller has checked that.
        Raises StorageError when it places more values than there are, or one beyond the last element.
        """

    def split_planes(self, words: Words, rotate: int) -> npt.NDArray[np.uint8]:
        """Words rotated to the left by ``rotate`` bits, taken apart into bytes: (bytes per word, words), lowest first."""

    def join_planes(self, planes: Sequence[Bytes], word: type[np.unsignedinteger], rotate: int) -> Words:
        """The words again."""

    def crc32(self, bits: Bytes) -> int:
        """The CRC-32 of zlib."""


@functools.cache
def chosen() -> Kernels:
    """The fastest that this machine has."""
    from sparsebench.storage.compiled import Compiled
    from sparsebench.storage.portable import Portable

    return Compiled.available() or Portable()
