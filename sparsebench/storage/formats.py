"""The interface of a storage format, and the table of all formats. A new one is one file and one row here.

Third parties add a row by an entry point in the group ``sparsebench.formats`` that names a ``Format``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from sparsebench.errors import StorageError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.plugins import table
from sparsebench.storage import archive, folders, packed
from sparsebench.storage.coding import Coding
from sparsebench.storage.words import Bytes


@dataclass(frozen=True)
class Format:
    """A storage format: how a model folder is written, measured and read back.

    ``write`` makes a folder from a Hugging Face folder (None: the folder is measured where it is). ``sizes`` returns
    the bytes of all weight files and those of each tensor by name. ``read`` yields every tensor's original bytes.
    ``restore`` makes the Hugging Face folder again; ``holds`` returns whether a folder is in this format.
    """

    name: str
    write: Callable[[Path, Path], object] | None
    sizes: Callable[[Path], tuple[int, dict[str, int]]]
    read: Callable[[Path], Iterator[tuple[TensorInfo, Bytes]]] | None
    restore: Callable[[Path, Path], Path] | None = None
    holds: Callable[[Path], bool] | None = None
    libraries: tuple[str, ...] = ()
    """Libraries whose version can change a size; they are part of the ids of the cells that list the format."""


def _dense_sizes(folder: Path) -> tuple[int, dict[str, int]]:
    checkpoint = Checkpoint(folder)
    total = sum((folder / file).stat().st_size for file in checkpoint.files)
    return total, {name: info.nbytes for name, info in checkpoint.tensors.items()}


def _format_of(coding: Coding, *libraries: str) -> Format:
    calls = (folders.store, folders.sizes, folders.tensors, folders.restore, folders.holds)
    write, sizes, read, restore, holds = (cast("Any", partial(call, coding=coding)) for call in calls)
    return Format(coding.name, write, sizes, read, restore, holds, libraries)


BUILT_IN = (
    Format("dense", None, _dense_sizes, None),
    _format_of(packed.CODING),
    _format_of(archive.CODING, "zstandard"),
)


@cache
def formats() -> dict[str, Format]:
    """Return every storage format by name: the built-in ones, then those of installed plugins."""
    return table(BUILT_IN, Format, "sparsebench.formats")


def unpack(stored: Path, out: Path) -> Path:
    """Restore the model folder that a stored folder was made from; its files tell the format. Return ``out``.

    Raises StorageError when the folder is in no format that can be restored, or is damaged.
    """
    for row in formats().values():
        if row.restore and row.holds and row.holds(stored):
            return row.restore(stored, out)
    patterns = " or ".join(f"*.safetensors.{row.name}" for row in formats().values() if row.restore)
    raise StorageError(f"{stored}: no {patterns} file", "name a folder made by `sparsebench pack`")
