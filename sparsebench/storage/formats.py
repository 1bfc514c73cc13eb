"""What a storage format is, and the table of those that exist. A new one is one file and one row here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsebench.models.checkpoint import TensorInfo
from sparsebench.storage import dense, packed
from sparsebench.storage.encodings import Bytes


@dataclass(frozen=True)
class Format:
    """How a model folder is written in a format, sized, and read back.

    ``write`` makes a folder out of a Hugging Face folder (None: the folder is sized where it is). ``sizes`` gives
    the bytes of all weight files and those of each tensor, by name. ``read`` yields every tensor's original bytes.
    """

    name: str
    about: str
    write: Callable[[Path, Path], object] | None
    sizes: Callable[[Path], tuple[int, dict[str, int]]]
    read: Callable[[Path], Iterator[tuple[TensorInfo, Bytes]]] | None


FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format("dense", "safetensors, zeros stored like any value", None, dense.sizes, None),
        Format("packed", "bitmask or gaps beside the nonzero values", packed.pack, packed.sizes, packed.tensors),
    )
}
"""Every storage format by name."""
