"""Storage: what a model takes on disk, dense and packed, and how it gets there and back."""

from __future__ import annotations

from sparsebench.storage.formats import FORMATS, Format
from sparsebench.storage.measure import Size, StorageResult, measure
from sparsebench.storage.packed import PackedSummary, is_packed, pack, unpack

VERSION: int = 1

__all__ = [
    "FORMATS", "VERSION", "Format", "PackedSummary", "Size", "StorageResult", "is_packed", "measure", "pack", "unpack",
]  # fmt: skip
