"""How a stored file format encodes one tensor. The container around it is the same for all formats (container.py).

A quantized weight is stored as one code per element, 0 where the weight is zero, so that its zeros can be left out. The
layout is that of models/quantized.py; docs/format.md says how a stored file refers to it. The original bytes always
come back: where zero points, or the columns that share one, are guessed wrongly, only fewer codes are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsebench.errors import StorageError
from sparsebench.models.checkpoint import TensorInfo
from sparsebench.storage.words import Bytes, Scratch, halves, pairs

Near = Callable[[str], Bytes | None]
"""The original bytes of another tensor of the same file by name; None where it has none."""
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Section:
    """A contiguous part of a stored file: its bytes in pieces, and the dtype and shape that the header gives them."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[npt.NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """The size of all pieces in bytes."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Coding:
    """A file format; its files have ``name`` as a suffix.

    ``encodings`` returns the names of the encodings that a tensor may have. ``parts`` returns the names of an
    encoding's parts for elements of a given size in bytes, the index first (an empty name where there is none).
    ``encode`` returns the name of an encoding and a Section for each part with a name. ``decode`` takes the encoding,
    the bytes of every part (none for an empty name) and the tensor, and returns its original bytes; it raises
    StorageError, without the tensor's name, when they do not belong together. Both may return scratch memory, and both
    can read other tensors of the file, such as a weight's zero points. ``spare`` is how many more characters the header
    may need for a part than for one as long as the tensor: a frame around incompressible bytes is longer than the
    tensor.
    """

    name: str
    version: int
    encodings: Callable[[TensorInfo], tuple[str, ...]]
    parts: Callable[[str, int], tuple[str, ...]]
    encode: Callable[[Bytes, TensorInfo, Near, Scratch], tuple[str, tuple[Section, ...]]]
    decode: Callable[[str, Sequence[Bytes], TensorInfo, Near, Scratch], Bytes]
    spare: int = 0

    @property
    def suffix(self) -> str:
        """The suffix that is appended to a weight file's name."""
        return f".{self.name}"

    @property
    def identifier(self) -> str:
        """The format's name in the header of a file."""
        return f"sparsebench.{self.name}"


def item_size(info: TensorInfo) -> int:
    """Return the bytes per element of a tensor of any dtype; 0 when that is no whole number."""
    size, rest = divmod(info.nbytes, info.numel or 1)
    return 0 if rest else size


@dataclass(frozen=True)
class CodeLayout:
    """The layout of a quantized weight (rows, columns); the columns include those that fill up the last word.

    ``zeros`` (rows, groups) are the zero points as codes, uint8; None: all are the middle of the range.
    """

    bits: int
    rows: int
    columns: int
    zeros: Bytes | None

    def split(self, data: Bytes, scratch: Scratch) -> Bytes:
        """Return the codes less their zero points of a tensor given as its bytes; they are in scratch memory."""
        out = scratch.take("codes", self.rows * self.columns)
        if self.bits == 4:
            halves(data, out)
        else:
            out[:] = data
        return self._moved(out, -1)

    def join(self, codes: Bytes) -> Bytes:
        """Return the tensor's bytes from what ``split`` gave; overwrites ``codes``."""
        return self.packed(self._moved(codes, 1))

    def packed(self, codes: Bytes) -> Bytes:
        """Return codes as they are stored: one to a byte, or two for 4 bits."""
        return pairs(codes) if self.bits == 4 else codes

    def unpacked(self, stored: Bytes) -> Bytes:
        """Return nonzero codes from their stored form, without a last half byte of 0, which is only a filler."""
        if self.bits == 8:
            return stored
        found = halves(stored)
        return found[:-1] if found.size and not found[-1] else found

    def _moved(self, codes: Bytes, sign: int) -> Bytes:
        """Add (``sign`` 1) or subtract (-1) the zero points in place, modulo the range; return the codes."""
        matrix = codes.reshape(self.rows, self.columns)
        if self.zeros is None:
            matrix ^= 1 << (self.bits - 1)  # adds half of the range modulo the range, which also subtracts it
            return codes
        width = _width(self.columns, self.zeros.shape[1])
        for number, start in enumerate(range(0, self.columns, width)):
            zero = self.zeros[:, number : number + 1]
            matrix[:, start : start + width] += zero if sign > 0 else -zero
        matrix &= (1 << self.bits) - 1
        return codes


def encodings(info: TensorInfo, indices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the encodings that a tensor may have as a quantized weight: each index for each size of code."""
    packed, plain = _kind(info)
    return tuple(f"{code}-{index}" for code in BITS for index in indices if packed or (plain and code == "int8"))


def quantized(info: TensorInfo, near: Near) -> CodeLayout | None:
    """Return the layout of a quantized weight; None for any other tensor.

    An int8 weight without zero points is None too: its bytes are its codes already.
    """
    packed, plain = _kind(info)
    if plain and near(_sibling(info, "zero_point")) is not None:
        bits = 8
    elif packed and (shape := near(_sibling(info, "shape"))) is not None and shape.size == 16:
        columns = int(shape.view(np.int64)[1])
        bits = next((bits for bits in BITS.values() if math.ceil(columns * bits / 32) == info.shape[1]), 0)
    else:
        return None
    try:
        return grid(info, bits, near) if bits else None
    except StorageError:  # it is then stored like any other tensor
        return None


def grid(info: TensorInfo, bits: int, near: Near) -> CodeLayout:
    """Return the layout of a weight in ``bits``-bit codes. Raises StorageError for zero points that do not fit."""
    packed, _ = _kind(info)
    rows, each = info.shape[0], 32 // bits if packed else 1
    columns = info.shape[1] * each
    data = near(_sibling(info, "zero_point"))
    if data is None:
        return CodeLayout(bits, rows, columns, None)
    high = math.ceil(rows / each) * each  # zero points are packed along the rows
    groups, rest = divmod(data.size * 8, high * bits)
    if rest or not 0 < groups <= columns:
        raise StorageError(f"{data.size} bytes of zero points for {rows} rows and {columns} columns")
    if packed:
        words = np.ascontiguousarray(data.view(np.uint32).reshape(-1, groups).T).view(np.uint8).reshape(-1)
        zeros = (halves(words) if bits == 4 else words).reshape(groups, high).T[:rows]
    else:
        zeros = data.reshape(rows, groups)
    return CodeLayout(bits, rows, columns, zeros)


def _kind(info: TensorInfo) -> tuple[bool, bool]:
    """Return whether a tensor can hold codes packed into 32-bit words, and whether it can hold plain int8 codes."""
    matrix = len(info.shape) == 2 and info.numel > 0
    packed = matrix and info.dtype == "I32" and info.name.endswith("weight_packed")
    return packed, matrix and info.dtype == "I8" and info.name.endswith("weight")


def _sibling(info: TensorInfo, end: str) -> str:
    return f"{info.name.removesuffix('_packed')}_{end}"


def _width(columns: int, groups: int) -> int:
    """Guess the columns of a group, which the file does not give: a power of two if one fits, else equal shares."""
    powers = (1 << power for power in range(columns.bit_length() + 1))
    return next((width for width in powers if math.ceil(columns / width) == groups), math.ceil(columns / groups))
