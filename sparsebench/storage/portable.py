"""The operations on a tensor's bits in numpy, in blocks whose temporaries stay in the cache."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError
from sparsebench.storage import words as layout
from sparsebench.storage.words import ESCAPE, Bytes, Scratch, Words, halves, pairs


class Portable:
    """The expensive operations; ``compiled.Compiled`` has the same in C++."""

    def scan(self, words: Words, scratch: Scratch) -> NumpyScan:
        """Return a scan that splits a tensor; its parts may be in scratch memory."""
        return NumpyScan(words)

    def place(self, encoding: str, index: Bytes, values: Words, n: int, scratch: Scratch) -> tuple[Words, int]:
        """Return ``n`` elements from an index and values, and how many values the index places.

        A bitmask has ``(n + 7) // 8`` bytes: the caller has checked that.
        Raises StorageError when it places more values than there are, or one beyond the last element.
        """
        words = np.zeros(n, values.dtype)
        done = 0
        for places in _mask_places(index, n) if encoding == "bitmask" else _gap_places(index, ESCAPE[encoding]):
            piece = values[done : done + places.size]
            if piece.size != places.size or (places.size and places[-1] >= n):
                raise StorageError("its index places more values than there are, or one beyond the last element")
            words[places] = piece
            done += places.size
        return words, done

    def split_planes(self, words: Words, rotate: int) -> npt.NDArray[np.uint8]:
        """Return byte planes (bytes per word, words) of words rotated left by ``rotate`` bits, lowest byte first."""
        item = words.itemsize
        planes = np.empty((item, words.size), np.uint8)
        for start in range(0, words.size, layout.BLOCK):
            turned = _rotated(words[start : start + layout.BLOCK], rotate).view(np.uint8).reshape(-1, item)
            planes[:, start : start + layout.BLOCK] = turned.T
        return planes

    def join_planes(self, planes: Sequence[Bytes], word: type[np.unsignedinteger], rotate: int) -> Words:
        """Return the words that ``split_planes`` split with the same ``rotate``."""
        words = np.empty(planes[0].size, word)
        each = words.view(np.uint8).reshape(-1, words.itemsize)
        for number, plane in enumerate(planes):
            each[:, number] = plane
        return _rotated(words, words.itemsize * 8 - rotate)

    def crc32(self, bits: Bytes) -> int:
        """Return the CRC-32 of zlib."""
        return zlib.crc32(bits.data)


class NumpyScan:
    """One tensor, split on request; ``count`` is the number of its nonzero elements.

    ``split`` keeps the gaps between them, from which both gap codings are made.
    """

    def __init__(self, words: Words) -> None:
        self.words = words
        self.count = int(np.count_nonzero(words))
        self.runs: list[npt.NDArray[np.unsignedinteger]] = []

    def split(self) -> tuple[Bytes, tuple[Words, ...]]:
        """Return the bitmask, and the nonzero elements in order, in pieces. Called only where there is a zero."""
        words, block, n = self.words, layout.BLOCK, self.words.size
        mask = np.empty((n + 7) // 8, np.uint8)
        values = []
        last = -1
        for start in range(0, n, block):
            present = words[start : start + block] != 0
            mask[start // 8 : (start + block) // 8] = np.packbits(present, bitorder="little")
            places = np.flatnonzero(present)
            values.append(words[start : start + block].take(places))
            if self.count * 4 < n and places.size:
                self.runs.append((np.diff(places, prepend=last - start) - 1).astype(np.min_scalar_type(n)))
                last = start + int(places[-1])
        return mask, tuple(values)

    @property
    def gap_bytes(self) -> dict[str, int]:
        """The bytes of each gap coding. Read it only after ``split``, and where less than a quarter is nonzero."""
        symbols = {
            name: self.count + sum(int((gaps // escape).sum(dtype=np.int64)) for gaps in self.runs)
            for name, escape in ESCAPE.items()
        }
        return {"gaps8": symbols["gaps8"], "gaps4": (symbols["gaps4"] + 1) // 2}

    def gaps(self, encoding: str) -> Bytes:
        """Return the index in a gap coding. Call only where ``gap_bytes`` may be read."""
        escape = ESCAPE[encoding]
        pieces = [np.empty(0, np.uint8)]
        for gaps in self.runs:
            escapes = gaps // escape
            ends = np.cumsum(escapes, dtype=np.int64) + np.arange(gaps.size)
            symbols = np.full(int(ends[-1]) + 1, escape, np.uint8)
            symbols[ends] = gaps - escapes * escape
            pieces.append(symbols)
        symbols = np.concatenate(pieces)
        return symbols if encoding == "gaps8" else pairs(symbols, escape)


def _rotated(words: Words, left: int) -> Words:
    width = words.itemsize * 8
    if left % width == 0:
        return words
    kind = words.dtype.type
    return (words << kind(left)) | (words >> kind(width - left))


def _mask_places(mask: Bytes, n: int) -> Iterator[npt.NDArray[np.intp]]:
    for start in range(0, n, layout.BLOCK):
        piece = mask[start // 8 : (start + layout.BLOCK) // 8]
        present = np.unpackbits(piece, count=min(layout.BLOCK, n - start), bitorder="little")
        yield np.flatnonzero(present.view(np.bool_)) + start


def _gap_places(index: Bytes, escape: int) -> Iterator[npt.NDArray[np.intp]]:
    position = 0
    for start in range(0, index.size, layout.BLOCK):
        symbols = index[start : start + layout.BLOCK]
        if escape == 15:
            symbols = halves(symbols)
        lands = symbols != escape
        ends = np.cumsum(symbols, dtype=np.intp)
        ends += np.cumsum(lands, dtype=np.intp)
        ends += position
        position = int(ends[-1])
        yield ends.take(np.flatnonzero(lands)) - 1
