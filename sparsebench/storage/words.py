"""What all encodings share: tensors as words of bits, the symbols of the gap codings, and reused memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 17
"""Elements (or gap symbols) that numpy handles at a time, a multiple of 8: their temporaries stay in the cache."""
WORD_TYPES: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Element sizes in bytes that can be packed; others stay raw."""
ESCAPE = {"gaps8": 255, "gaps4": 15}
"""The escape symbol of a gap coding: that many zeros, and no value yet."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]


def halves(data: Bytes, out: Bytes | None = None) -> Bytes:
    """Return the 4-bit halves of bytes, each as a byte, the lower half first; in ``out`` if given."""
    symbols = np.empty(data.size * 2, np.uint8) if out is None else out
    np.bitwise_and(data, 15, out=symbols[::2])
    np.right_shift(data, 4, out=symbols[1::2])
    return symbols


def pairs(symbols: Bytes, filler: int = 0) -> Bytes:
    """Return bytes of pairs of 4-bit symbols, the reverse of ``halves``; ``filler`` follows an odd last symbol."""
    if symbols.size % 2:
        symbols = np.append(symbols, np.uint8(filler))
    return np.bitwise_or(symbols[::2], symbols[1::2] << 4, dtype=np.uint8)


class Scratch:
    """Memory that is reused from tensor to tensor: fresh pages cost more time than most operations in them.

    What ``take`` returned is overwritten when it is called again with the same ``use``.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Bytes] = {}

    def take(self, use: str, size: int) -> Bytes:
        """Return ``size`` bytes with arbitrary content."""
        if use not in self._kept or self._kept[use].size < size:
            self._kept.pop(use, None)  # freed before the larger one is allocated
            self._kept[use] = np.empty(size, np.uint8)
        return self._kept[use][:size]
