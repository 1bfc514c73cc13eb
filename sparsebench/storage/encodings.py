"""How the bytes of one tensor are packed: raw, bitmask, or gaps between the nonzeros; the smallest wins.

An element is zero when all of its bits are zero: -0.0 is a value like any other, so every encoding gives back the
same bits. Floor of the cost: one read of the dense bytes, one write of the packed ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError

BLOCK = 1 << 17
"""Elements (or gap symbols) handled at a time, a multiple of 8: their temporaries stay in the cache."""
WORDS: dict[int, type[np.unsignedinteger]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
"""Element sizes in bytes that can be packed; others stay raw."""
ESCAPE = {"gaps8": 255, "gaps4": 15}
"""The symbol that means "so many zeros and no value yet"."""
ENCODINGS = ("raw", "bitmask", *ESCAPE)

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.unsignedinteger]


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


def encode(bits: Bytes, item: int) -> Encoded:
    """The smallest encoding of a tensor given as its bytes, of ``item`` bytes per element.

    On equal sizes the simpler encoding wins: raw, then bitmask, then gaps.
    """
    raw = Encoded("raw", np.empty(0, np.uint8), (bits,))
    if item not in WORDS:
        return raw
    words = bits.view(WORDS[item])
    n, count = words.size, int(np.count_nonzero(words))
    if count * item + min((n + 7) // 8, (count + 1) // 2) >= bits.size:
        return raw
    mask = np.empty((n + 7) // 8, np.uint8)
    values, runs = [], []
    sizes = dict.fromkeys(ESCAPE, count)
    last = -1
    for start in range(0, n, BLOCK):
        block = words[start : start + BLOCK]
        present = block != 0
        mask[start // 8 : (start + BLOCK) // 8] = np.packbits(present, bitorder="little")
        places = np.flatnonzero(present)
        values.append(block.take(places))
        if count * 4 < n and places.size:  # a gap takes half a byte at least, the bitmask n / 8
            gaps = (np.diff(places, prepend=last - start) - 1).astype(np.min_scalar_type(n))
            last = start + int(places[-1])
            runs.append(gaps)
            for name, escape in ESCAPE.items():
                sizes[name] += int((gaps // escape).sum(dtype=np.int64))
    sizes["gaps4"] = (sizes["gaps4"] + 1) // 2
    choice = min(ESCAPE, key=sizes.__getitem__)
    if count * 4 >= n or sizes[choice] >= mask.size:
        choice = "bitmask"
    index = mask if choice == "bitmask" else _gap_symbols(runs, choice)
    return raw if index.size + count * item >= bits.size else Encoded(choice, index, tuple(values))


def decode(encoding: str, index: Bytes, values: Bytes, size: int, item: int) -> Bytes:
    """The ``size`` bytes of a tensor from its ``index`` and ``values``.

    Raises StorageError (without the tensor's name) when index, values and size do not belong together.
    """
    if encoding == "raw":
        if values.size != size or index.size:
            raise StorageError(f"{values.size} bytes where {size} are expected")
        return values
    if encoding not in ENCODINGS or item not in WORDS or values.size % item:
        raise StorageError(f"encoding {encoding!r} with elements of {item} bytes is unknown")
    words, found = np.zeros(size // item, WORDS[item]), values.view(WORDS[item])
    done = 0
    for places in _mask_places(index, words.size) if encoding == "bitmask" else _gap_places(index, ESCAPE[encoding]):
        piece = found[done : done + places.size]
        if piece.size != places.size or (places.size and places[-1] >= words.size):
            raise StorageError("its index does not fit its values")
        words[places] = piece
        done += places.size
    if done != found.size:
        raise StorageError(f"{found.size} values where its index places {done}")
    return words.view(np.uint8)


def _mask_places(mask: Bytes, n: int) -> Iterator[npt.NDArray[np.intp]]:
    if mask.size != (n + 7) // 8:
        raise StorageError(f"a bitmask of {mask.size} bytes for {n} elements")
    for start in range(0, n, BLOCK):
        piece = mask[start // 8 : (start + BLOCK) // 8]
        present = np.unpackbits(piece, count=min(BLOCK, n - start), bitorder="little")
        yield np.flatnonzero(present.view(np.bool_)) + start


def _gap_symbols(runs: list[npt.NDArray[np.unsignedinteger]], encoding: str) -> Bytes:
    escape = ESCAPE[encoding]
    pieces = [np.empty(0, np.uint8)]
    for gaps in runs:
        escapes = gaps // escape
        ends = np.cumsum(escapes, dtype=np.int64) + np.arange(gaps.size)
        symbols = np.full(int(ends[-1]) + 1, escape, np.uint8)
        symbols[ends] = gaps - escapes * escape
        pieces.append(symbols)
    symbols = np.concatenate(pieces)
    if encoding == "gaps8":
        return symbols
    if symbols.size % 2:
        symbols = np.append(symbols, np.uint8(escape))
    return np.bitwise_or(symbols[::2], symbols[1::2] << 4, dtype=np.uint8)


def _gap_places(index: Bytes, escape: int) -> Iterator[npt.NDArray[np.intp]]:
    position = 0
    for start in range(0, index.size, BLOCK):
        symbols = index[start : start + BLOCK]
        if escape == 15:
            symbols = np.stack([symbols & 15, symbols >> 4], axis=1).reshape(-1)
        lands = symbols != escape
        ends = np.cumsum(symbols, dtype=np.intp)
        ends += np.cumsum(lands, dtype=np.intp)
        ends += position
        position = int(ends[-1])
        yield ends.take(np.flatnonzero(lands)) - 1
