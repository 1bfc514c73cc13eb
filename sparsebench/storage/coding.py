"""How a stored file format encodes one tensor. The container around it is the same for all formats (container.py).

A quantized weight is stored as one code per element, 0 where the weight is zero, so that its zeros can be left out. The
layout is that of models/files/quantized.py; docs/format.md says how a stored file refers to it. The original bytes always
come back: where a foreign file has zero points, only fewer codes are 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparsebench.models.files.checkpoint import TensorInfo
from sparsebench.storage.words import Bytes, Scratch, halves, pairs

ReadOther = Callable[[str], Bytes | None]
"""The original bytes of another tensor of the same file by name; None where it has none."""
CODE_BITS = {"int8": 8, "int4": 4}


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
    StorageError, without the tensor's name, when they do not belong together. Both may return scratch memory.
    ``encode`` can read other tensors of the file, such as a weight's shape. ``spare`` is how many more characters the
    header may need for a part than for one as long as the tensor: a frame around incompressible bytes is longer than
    the tensor.
    """

    name: str
    version: int
    encodings: Callable[[TensorInfo], tuple[str, ...]]
    parts: Callable[[str, int], tuple[str, ...]]
    encode: Callable[[Bytes, TensorInfo, ReadOther, Scratch], tuple[str, tuple[Section, ...]]]
    decode: Callable[[str, Sequence[Bytes], TensorInfo, Scratch], Bytes]
    spare: int = 0

    @property
    def suffix(self) -> str:
        """The suffix that is appended to a weight file's name."""
        return f".{self.name}"

    @property
    def again(self) -> str:
        """The way out for a damaged file."""
        return f"make it again: sparsebench pack --format {self.name}"

    @property
    def identifier(self) -> str:
        """The format's name in the header of a file."""
        return f"sparsebench.{self.name}"


def item_size(info: TensorInfo) -> int:
    """Return the bytes per element of a tensor of any dtype; 0 when that is no whole number."""
    size, remainder = divmod(info.nbytes, info.numel or 1)
    return 0 if remainder else size


@dataclass(frozen=True)
class CodeLayout:
    """The layout of a quantized weight (rows, columns); the columns include those that fill up the last word."""

    bits: int
    rows: int
    columns: int

    def split(self, data: Bytes, scratch: Scratch) -> Bytes:
        """Return the codes less that of zero of a tensor given as its bytes; they are in scratch memory."""
        out = scratch.take("codes", self.rows * self.columns)
        if self.bits == 4:
            halves(data, out)
        else:
            out[:] = data
        return self._moved(out)

    def join(self, codes: Bytes) -> Bytes:
        """Return the tensor's bytes from what ``split`` gave; overwrites ``codes``."""
        return self.packed(self._moved(codes))

    def packed(self, codes: Bytes) -> Bytes:
        """Return codes as they are stored: one to a byte, or two for 4 bits."""
        return pairs(codes) if self.bits == 4 else codes

    def unpacked(self, stored: Bytes) -> Bytes:
        """Return nonzero codes from their stored form, without a last half byte of 0, which is only a filler."""
        if self.bits == 8:
            return stored
        codes = halves(stored)
        return codes[:-1] if codes.size and not codes[-1] else codes

    def _moved(self, codes: Bytes) -> Bytes:
        """Add half of the range in place, modulo the range, which also subtracts it; return the codes."""
        codes ^= 1 << (self.bits - 1)
        return codes


def encodings(info: TensorInfo, indices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the encodings that a tensor may have as a quantized weight: each index for each size of code."""
    return tuple(f"{code}-{index}" for code in CODE_BITS for index in indices) if _holds_codes(info) else ()


def quantized(info: TensorInfo, read_other: ReadOther) -> CodeLayout | None:
    """Return the layout of a quantized weight; None for any other tensor."""
    shape = read_other(f"{info.name.removesuffix('_packed')}_shape") if _holds_codes(info) else None
    if shape is None or shape.size != 16:
        return None
    columns = int(shape.view(np.int64)[1])
    fitting = (bits for bits in CODE_BITS.values() if math.ceil(columns * bits / 32) == info.shape[1])
    return next((layout_of(info, bits) for bits in fitting), None)


def layout_of(info: TensorInfo, bits: int) -> CodeLayout:
    """Return the layout of a weight in ``bits``-bit codes."""
    return CodeLayout(bits, info.shape[0], info.shape[1] * 32 // bits)


def _holds_codes(info: TensorInfo) -> bool:
    return len(info.shape) == 2 and info.numel > 0 and info.dtype == "I32" and info.name.endswith("weight_packed")
