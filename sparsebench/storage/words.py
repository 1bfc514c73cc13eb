"""What the encodings share: tensors as words of bits, and the symbols of the gap codings."""

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
