"""How the bytes of one tensor are packed: raw, bitmask, or gaps between the nonzeros; the smallest wins.

An element is zero when all of its bits are zero: -0.0 is a value like any other, so every encoding gives back the
same bits. Floor of the cost: one read of the dense bytes, one write of the packed ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsebench.errors import StorageError
from sparsebench.storage import kernels
from sparsebench.storage.scratch import Scratch
from sparsebench.storage.words import BLOCK, ESCAPE, WORDS, Bytes, Words

__all__ = ["BLOCK", "ENCODINGS", "ESCAPE", "WORDS", "Bytes", "Encoded", "Words", "decode", "encode"]

ENCODINGS = ("raw", "bitmask", *ESCAPE)


@dataclass(frozen=True)
class Encoded:
    """A packed tensor: ``index`` says where the nonzeros are (empty for raw), ``values`` are they, in order, in pieces.

    The values of raw are the tensor's bytes.
    """

    encoding: str
    index: Bytes
    values: tuple[Words, ...]

    @property
    def value_bytes(self) -> int:
        """The size of the values together."""
        return sum(piece.nbytes for piece in self.values)


def encode(bits: Bytes, item: int, scratch: Scratch | None = None) -> Encoded:
    """The smallest encoding of a tensor given as its bytes, of ``item`` bytes per element.

    On equal sizes the simpler encoding wins: raw, then bitmask, then gaps. With ``scratch`` the result lies there.
    """
    found = smallest(bits.view(WORDS[item]), item * 8, scratch or Scratch()) if item in WORDS else None
    return found or Encoded("raw", np.empty(0, np.uint8), (bits,))


def smallest(words: Words, width: int, scratch: Scratch) -> Encoded | None:
    """The smallest encoding that leaves zeros out, where a value is kept in ``width`` bits; None where raw is no larger."""
    scan = kernels.chosen().scan(words, scratch)
    n, count = words.size, scan.count
    room = (n * width + 7) // 8 - (count * width + 7) // 8
    if min((n + 7) // 8, (count + 1) // 2) >= room:
        return None
    mask, values = scan.split()
    choice = "bitmask"
    if count * 4 < n:  # a gap takes half a byte at least, the bitmask n / 8
        sizes = scan.gap_bytes()
        smaller = min(ESCAPE, key=sizes.__getitem__)
        if sizes[smaller] < mask.size:
            choice = smaller
    index = mask if choice == "bitmask" else scan.gaps(choice)
    return Encoded(choice, index, values) if index.size < room else None


def decode(encoding: str, index: Bytes, values: Bytes, size: int, item: int, scratch: Scratch | None = None) -> Bytes:
    """The ``size`` bytes of a tensor from its ``index`` and ``values``; with ``scratch`` they may lie there.

    Raises StorageError (without the tensor's name) when index, values and size do not belong together.
    """
    if encoding == "raw":
        if values.size != size or index.size:
            raise StorageError(f"{values.size} bytes where {size} are expected")
        return values
    if encoding not in ENCODINGS or item not in WORDS or values.size % item:
        raise StorageError(f"encoding {encoding!r} with elements of {item} bytes is unknown")
    n, found = size // item, values.view(WORDS[item])
    if encoding == "bitmask" and index.size != (n + 7) // 8:
        raise StorageError(f"a bitmask of {index.size} bytes for {n} elements")
    words, done = kernels.chosen().place(encoding, index, found, n, scratch or Scratch())
    if done != found.size:
        raise StorageError(f"{found.size} values where its index places {done}")
    return words.view(np.uint8)
