"""Memory that one tensor after another uses: fresh pages cost more than most of what is done in them."""

from __future__ import annotations

import numpy as np

from sparsebench.storage.words import Bytes


class Scratch:
    """Buffers by use. What ``take`` gave is overwritten when the same use takes again."""

    def __init__(self) -> None:
        self._kept: dict[str, Bytes] = {}

    def take(self, use: str, size: int) -> Bytes:
        """``size`` bytes of any content."""
        if use not in self._kept or self._kept[use].size < size:
            self._kept.pop(use, None)  # before the next one is there: never both
            self._kept[use] = np.empty(size, np.uint8)
        return self._kept[use][:size]
