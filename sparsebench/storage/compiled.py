"""The operations on a tensor's bits: C++ where it can be compiled (native/packing.cpp, native/checksum.cpp), else numpy.

The resulting bytes are the same. numpy works in blocks whose temporaries stay in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError
from sparsebench.native import Missing, library
from sparsebench.storage.words import BLOCK, ESCAPE, Bytes, Scratch, Words, halves, pairs

_VECTOR = 64
"""Extra bytes that a buffer for values needs, because whole vectors are written to it."""
_SIGNATURES: dict[str, tuple[type | None, str]] = {
    "packing_simd": (ctypes.c_int, ""),
    "packing_split": (ctypes.c_int64, "pnippi"),
    "packing_count_gaps": (None, "pnppi"),
    "packing_write_gaps": (None, "pnipi"),
    "packing_place_mask": (ctypes.c_int64, "ppnipni"),
    "packing_place_gaps": (ctypes.c_int64, "pnipnipn"),
    "packing_split_planes": (None, "pniip"),
    "packing_join_plane": (None, "pniiip"),
    "checksum_simd": (ctypes.c_int, ""),
    "checksum_crc32": (ctypes.c_uint32, "pni"),
}
"""What each function returns and takes: p a pointer, n a 64-bit number, i an int."""
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int}
_TOO_MANY = "its index places more values than there are, or one beyond the last element"


@dataclass(frozen=True)
class CompiledKernels:
    """The operations of ``NumpyKernels`` in C++; ``simd`` and ``crc_simd`` are vector widths, 0 for none."""

    packing: ctypes.CDLL
    checksum: ctypes.CDLL
    simd: int
    crc_simd: int

    @classmethod
    def available(cls) -> CompiledKernels | None:
        """Return the operations with this processor's widest vectors; None where a library cannot be built."""
        packing, checksum = library("packing"), library("checksum")
        if isinstance(packing, Missing) or isinstance(checksum, Missing):
            return None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(packing if name.startswith("packing") else checksum, name)
            function.restype, function.argtypes = result, [_TYPES[letter] for letter in arguments]
        return cls(packing, checksum, packing.packing_simd(), checksum.checksum_simd())

    def scan(self, words: Words, scratch: Scratch) -> CompiledScan:
        return CompiledScan(self, words, scratch)

    def place(self, encoding: str, index: Bytes, values: Words, n: int, scratch: Scratch) -> tuple[Words, int]:
        words = scratch.take("words", n * values.itemsize).view(values.dtype)
        arguments = values.ctypes.data, values.size, values.itemsize, words.ctypes.data, n
        if encoding == "bitmask":
            placed = self.packing.packing_place_mask(index.ctypes.data, *arguments, self.simd)
        else:
            placed = self.packing.packing_place_gaps(index.ctypes.data, index.size, ESCAPE[encoding], *arguments)
        if placed < 0:
            raise StorageError(_TOO_MANY)
        return words, placed

    def split_planes(self, words: Words, rotate: int) -> npt.NDArray[np.uint8]:
        words = np.ascontiguousarray(words)
        planes = np.empty((words.itemsize, words.size), np.uint8)
        self.packing.packing_split_planes(words.ctypes.data, words.size, words.itemsize, rotate, planes.ctypes.data)
        return planes

    def join_planes(self, planes: Sequence[Bytes], word: type[np.unsignedinteger], rotate: int) -> Words:
        words = np.empty(planes[0].size, word)
        for number, plane in enumerate(planes):
            arguments = plane.ctypes.data, words.size, words.itemsize, number, rotate, words.ctypes.data
            self.packing.packing_join_plane(*arguments)
        return words

    def crc32(self, bits: Bytes) -> int:
        if not self.crc_simd:  # without carry-less multiplication zlib is as fast
            return zlib.crc32(bits.data)
        return int(self.checksum.checksum_crc32(bits.ctypes.data, bits.size, self.crc_simd))


class CompiledScan:
    """A tensor split in one pass, as by ``NumpyScan``; its parts are in scratch memory until the next scan."""

    def __init__(self, kernels: CompiledKernels, words: Words, scratch: Scratch) -> None:
        self.kernels = kernels
        self.words = np.ascontiguousarray(words)
        self.scratch = scratch
        self.mask = scratch.take("mask", (words.size + 7) // 8)
        self.values = scratch.take("values", words.nbytes + _VECTOR)
        pointers = self.mask.ctypes.data, self.values.ctypes.data
        start, n, item = self.words.ctypes.data, words.size, words.itemsize
        self.count = int(kernels.packing.packing_split(start, n, item, *pointers, kernels.simd))

    def split(self) -> tuple[Bytes, tuple[Words, ...]]:
        values = self.values[: self.count * self.words.itemsize].view(self.words.dtype)
        return self.mask, (values,)

    def gaps(self, encoding: str) -> Bytes:
        out = self.scratch.take("gaps", self.gap_bytes[encoding])
        start, n, escape = self.mask.ctypes.data, self.words.size, ESCAPE[encoding]
        self.kernels.packing.packing_write_gaps(start, n, escape, out.ctypes.data, self.kernels.simd)
        return out

    @functools.cached_property
    def gap_bytes(self) -> dict[str, int]:
        """The bytes that ``gaps8`` and ``gaps4`` would take, counted in one pass over the mask."""
        eights, fours = ctypes.c_int64(), ctypes.c_int64()
        totals = ctypes.byref(eights), ctypes.byref(fours)
        mask, simd = self.mask.ctypes.data, self.kernels.simd
        self.kernels.packing.packing_count_gaps(mask, self.words.size, *totals, simd)
        return {"gaps8": eights.value, "gaps4": (fours.value + 1) // 2}


class NumpyKernels:
    """The expensive operations; ``CompiledKernels`` has the same in C++."""

    def scan(self, words: Words, scratch: Scratch) -> NumpyScan:
        """Return a scan that splits a tensor; its parts may be in scratch memory."""
        return NumpyScan(words)

    def place(self, encoding: str, index: Bytes, values: Words, n: int, scratch: Scratch) -> tuple[Words, int]:
        """Return ``n`` elements from an index and values, and how many values the index places.

        A bitmask has ``(n + 7) // 8`` bytes: the caller has checked that.
        Raises StorageError when it places more values than there are, or one beyond the last element.
        """
        words = np.zeros(n, values.dtype)
        placed = 0
        all_places = _mask_places(index, n) if encoding == "bitmask" else _gap_places(index, ESCAPE[encoding])
        for places in all_places:
            piece = values[placed : placed + places.size]
            if piece.size != places.size or (places.size and places[-1] >= n):
                raise StorageError(_TOO_MANY)
            words[places] = piece
            placed += places.size
        return words, placed

    def split_planes(self, words: Words, rotate: int) -> npt.NDArray[np.uint8]:
        """Return byte planes (bytes per word, words) of words rotated left by ``rotate`` bits, lowest byte first."""
        item = words.itemsize
        planes = np.empty((item, words.size), np.uint8)
        for start in range(0, words.size, BLOCK):
            turned = _rotated(words[start : start + BLOCK], rotate).view(np.uint8).reshape(-1, item)
            planes[:, start : start + BLOCK] = turned.T
        return planes

    def join_planes(self, planes: Sequence[Bytes], word: type[np.unsignedinteger], rotate: int) -> Words:
        """Return the words that ``split_planes`` split with the same ``rotate``."""
        words = np.empty(planes[0].size, word)
        bytes_of_words = words.view(np.uint8).reshape(-1, words.itemsize)
        for number, plane in enumerate(planes):
            bytes_of_words[:, number] = plane
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
        words, block, n = self.words, BLOCK, self.words.size
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
    for start in range(0, n, BLOCK):
        piece = mask[start // 8 : (start + BLOCK) // 8]
        present = np.unpackbits(piece, count=min(BLOCK, n - start), bitorder="little")
        yield np.flatnonzero(present.view(np.bool_)) + start


def _gap_places(index: Bytes, escape: int) -> Iterator[npt.NDArray[np.intp]]:
    position = 0
    for start in range(0, index.size, BLOCK):
        symbols = index[start : start + BLOCK]
        if escape == ESCAPE["gaps4"]:
            symbols = halves(symbols)
        lands = symbols != escape
        ends = np.cumsum(symbols, dtype=np.intp)
        ends += np.cumsum(lands, dtype=np.intp)
        ends += position
        position = int(ends[-1])
        yield ends.take(np.flatnonzero(lands)) - 1


PackingKernels = CompiledKernels | NumpyKernels
Scan = CompiledScan | NumpyScan


@functools.cache
def packing_kernels() -> PackingKernels:
    """Return the fastest kernels that this machine has."""
    return CompiledKernels.available() or NumpyKernels()
