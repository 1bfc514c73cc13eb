"""Storage: the size of a model on disk (dense, packed and archived), and how it is packed and restored."""

from __future__ import annotations

from sparsebench.storage import sums
from sparsebench.storage.formats import Format, formats, unpack
from sparsebench.storage.measure import Size, StorageResult, measure
from sparsebench.storage.packed import is_packed, pack

VERSION: int = 1

__all__ = [
    "VERSION", "Format", "Size", "StorageResult", "formats", "is_packed", "measure", "pack", "sums", "unpack",
]  # fmt: skip
