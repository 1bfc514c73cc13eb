"""Storage: what a model takes on disk, dense, packed and archived, and how it gets there and back."""

from __future__ import annotations

from sparsebench.storage import sums
from sparsebench.storage.folders import Summary
from sparsebench.storage.formats import Format, formats, unpack
from sparsebench.storage.measure import Size, StorageResult, measure
from sparsebench.storage.packed import is_packed, pack

VERSION: int = 1

__all__ = [
    "VERSION", "Format", "Size", "StorageResult", "Summary", "formats", "is_packed", "measure", "pack", "sums", "unpack",
]  # fmt: skip
