"""What the encodings share: tensors as words of bits, the symbols of the gap codings, and memory that is used again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 17
"""Elements (or gap symbols) that numpy handles at a time, a multiple of 8: their temporaries stay in the cache."""
WORDS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Element sizes in bytes that can be packed; others stay raw."""
ESCAPE = {"gaps8": 255, "gaps4": 15}
"""The symbol that means "so many zeros and no value yet"."""

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]


def halves(data: Bytes, out: Bytes | None = None) -> Bytes:
    """The halves of bytes, each as a byte, the lower one first; in ``out`` where it is given."""
    found = np.empty(data.size * 2, np.uint8) if out is None else out
    np.bitwise_and(data, 15, out=found[::2])
    np.right_shift(data, 4, out=found[1::2])
    return found


def pairs(symbols: Bytes, filler: int = 0) -> Bytes:
    """The reverse of ``halves``; an odd one out is followed by ``filler``."""
    if symbols.size % 2:
        symbols = np.append(symbols, np.uint8(filler))
    return np.bitwise_or(symbols[::2], symbols[1::2] << 4, dtype=np.uint8)


class Scratch:
    """Memory that one tensor after another uses: fresh pages cost more than most of what is done in them.

    What ``take`` gave is overwritten when the same use takes again.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Bytes] = {}

    def take(self, use: str, size: int) -> Bytes:
        """``size`` bytes of any content."""
        if use not in self._kept or self._kept[use].size < size:
            self._kept.pop(use, None)  # before the next one is there: never both
            self._kept[use] = np.empty(size, np.uint8)
        return self._kept[use][:size]
