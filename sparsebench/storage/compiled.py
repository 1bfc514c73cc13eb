"""The operations on a tensor's bits: C++ where it can be compiled (native/packing.cpp, native/checksum.cpp), else numpy.

The resulting bytes are the same.
"""

from __future__ import annotations

import ctypes
import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError
from sparsebench.native import Missing, library
from sparsebench.storage.portable import NumpyScan, Portable
from sparsebench.storage.words import ESCAPE, Bytes, Scratch, Words

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


@dataclass(frozen=True)
class Compiled:
    """The operations of ``portable.Portable`` in C++; ``simd`` and ``crc_simd`` are vector widths, 0 for none."""

    packing: ctypes.CDLL
    checksum: ctypes.CDLL
    simd: int
    crc_simd: int

    @classmethod
    def available(cls) -> Compiled | None:
        """Return the operations with this processor's widest vectors; None where a library cannot be built."""
        packing, checksum = library("packing"), library("checksum")
        if isinstance(packing, Missing) or isinstance(checksum, Missing):
            return None
        for name, (returned, taken) in _SIGNATURES.items():
            function = getattr(packing if name.startswith("packing") else checksum, name)
            function.restype, function.argtypes = returned, [_TYPES[letter] for letter in taken]
        return cls(packing, checksum, packing.packing_simd(), checksum.checksum_simd())

    def scan(self, words: Words, scratch: Scratch) -> CompiledScan:
        return CompiledScan(self, words, scratch)

    def place(self, encoding: str, index: Bytes, values: Words, n: int, scratch: Scratch) -> tuple[Words, int]:
        words = scratch.take("words", n * values.itemsize).view(values.dtype)
        ends = values.ctypes.data, values.size, values.itemsize, words.ctypes.data, n
        if encoding == "bitmask":
            done = self.packing.packing_place_mask(index.ctypes.data, *ends, self.simd)
        else:
            done = self.packing.packing_place_gaps(index.ctypes.data, index.size, ESCAPE[encoding], *ends)
        if done < 0:
            raise StorageError("its index places more values than there are, or one beyond the last element")
        return words, done

    def split_planes(self, words: Words, rotate: int) -> npt.NDArray[np.uint8]:
        words = np.ascontiguousarray(words)
        planes = np.empty((words.itemsize, words.size), np.uint8)
        self.packing.packing_split_planes(words.ctypes.data, words.size, words.itemsize, rotate, planes.ctypes.data)
        return planes

    def join_planes(self, planes: Sequence[Bytes], word: type[np.unsignedinteger], rotate: int) -> Words:
        words = np.empty(planes[0].size, word)
        for number, plane in enumerate(planes):
            ends = plane.ctypes.data, words.size, words.itemsize, number, rotate, words.ctypes.data
            self.packing.packing_join_plane(*ends)
        return words

    def crc32(self, bits: Bytes) -> int:
        if not self.crc_simd:  # without carry-less multiplication zlib is as fast
            return zlib.crc32(bits.data)
        return int(self.checksum.checksum_crc32(bits.ctypes.data, bits.size, self.crc_simd))


class CompiledScan:
    """A tensor split in one pass, as by ``portable.NumpyScan``; its parts are in scratch memory until the next scan."""

    def __init__(self, by: Compiled, words: Words, scratch: Scratch) -> None:
        self.by = by
        self.words = np.ascontiguousarray(words)
        self.scratch = scratch
        self.mask = scratch.take("mask", (words.size + 7) // 8)
        self.values = scratch.take("values", words.nbytes + _VECTOR)
        pointers = self.mask.ctypes.data, self.values.ctypes.data
        at, n, item = self.words.ctypes.data, words.size, words.itemsize
        self.count = int(by.packing.packing_split(at, n, item, *pointers, by.simd))

    def split(self) -> tuple[Bytes, tuple[Words, ...]]:
        values = self.values[: self.count * self.words.itemsize].view(self.words.dtype)
        return self.mask, (values,)

    def gaps(self, encoding: str) -> Bytes:
        out = self.scratch.take("gaps", self.gap_bytes[encoding])
        at, n, escape = self.mask.ctypes.data, self.words.size, ESCAPE[encoding]
        self.by.packing.packing_write_gaps(at, n, escape, out.ctypes.data, self.by.simd)
        return out

    @functools.cached_property
    def gap_bytes(self) -> dict[str, int]:
        """The bytes that ``gaps8`` and ``gaps4`` would take, counted in one pass over the mask."""
        eights, fours = ctypes.c_int64(), ctypes.c_int64()
        totals = ctypes.byref(eights), ctypes.byref(fours)
        self.by.packing.packing_count_gaps(self.mask.ctypes.data, self.words.size, *totals, self.by.simd)
        return {"gaps8": eights.value, "gaps4": (fours.value + 1) // 2}


PackingKernels = Compiled | Portable
Scan = CompiledScan | NumpyScan


@functools.cache
def packing_kernels() -> PackingKernels:
    """Return the fastest kernels that this machine has."""
    return Compiled.available() or Portable()
