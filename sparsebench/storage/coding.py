"""What a stored file format does with one tensor. The container around it is the same for all (container.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from sparsebench.models.checkpoint import TensorInfo
from sparsebench.storage.codes import Near
from sparsebench.storage.words import Bytes, Scratch


@dataclass(frozen=True)
class Section:
    """A stretch of a stored file: its bytes in pieces, and the dtype and shape that its header gives them."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[npt.NDArray[Any], ...]

    @property
    def nbytes(self) -> int:
        """The size of the pieces together."""
        return sum(piece.nbytes for piece in self.pieces)


@dataclass(frozen=True)
class Coding:
    """A file format. ``name`` is that of the format and the suffix of its files.

    ``encodings`` gives the names of those that a tensor may have, ``parts`` those of an encoding's parts for elements of so
    many bytes, the index first (empty where there is none). ``encode`` gives an encoding and a Section for each name that is not
    empty. ``decode`` takes the encoding, the bytes of every part (none for an empty name) and the tensor, and gives its
    original bytes; it raises StorageError, without the tensor's name, when they do not belong together. What both give
    may lie in the scratch memory; both can look at other tensors of the file, such as a weight's zero points. ``spare`` are
    characters that the header may need for a part beyond those of a part as long as the tensor itself: frames around bytes
    that do not compress make them longer.
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
        """What is appended to a weight file's name."""
        return f".{self.name}"

    @property
    def identifier(self) -> str:
        """The format's name in the header of a file."""
        return f"sparsebench.{self.name}"


def item_size(info: TensorInfo) -> int:
    """Bytes per element of a tensor of any dtype; 0 when that is no whole number."""
    size, rest = divmod(info.nbytes, info.numel or 1)
    return 0 if rest else size
