"""A packed folder opened without unpacking it: tensors one at a time, dense or as they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.checkpoint import TensorInfo, torch_dtype
from sparsebench.paths import check
from sparsebench.storage.container import Entry, StoredFile, read, read_bytes
from sparsebench.storage.packed import CODING, is_packed

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Kept:
    """A tensor as a packed file keeps it: its encoding, index (uint8) and nonzero values (the tensor's dtype, flat)."""

    encoding: str
    index: torch.Tensor
    values: torch.Tensor


class PackedCheckpoint:
    """The counterpart of ``Checkpoint`` for a folder that ``sparsebench pack`` wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._decoded: tuple[str, torch.Tensor] | None = None
        check(self.folder)
        if not is_packed(self.folder) or not (self.folder / "config.json").is_file():
            raise ModelError(f"{self.folder}: no packed model", "name a folder made by `sparsebench pack`")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's config.json, as it is."""
        return bounded.read_object(self.folder / "config.json")

    @cached_property
    def places(self) -> dict[str, tuple[StoredFile, Entry]]:
        """Every tensor's file and entry by name. Raises StorageError where a file is damaged."""
        files = [read(path, CODING) for path in sorted(self.folder.glob(f"*.safetensors{CODING.suffix}"))]
        return {entry.info.name: (file, entry) for file in files for entry in file.entries}

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name, with the shape and dtype of its dense form."""
        return {name: entry.info for name, (_, entry) in self.places.items()}

    def load(self, name: str, index: int | None = None) -> torch.Tensor:
        """One dense tensor, or its slice ``index``, checked against its checksum."""
        import torch

        if index is not None:
            # A tensor is decoded whole: it stays until slices of another one are asked for.
            if self._decoded is None or self._decoded[0] != name:
                self._decoded = None
                self._decoded = (name, self.load(name))
            return self._decoded[1][index]
        file, entry = self.places[name]
        return torch.from_numpy(file.load(entry)).view(torch_dtype(entry.info.dtype)).reshape(entry.info.shape)

    def kept(self, name: str) -> Kept | None:
        """One tensor as it is kept, never dense; None where it is raw or holds codes. No checksum covers this form."""
        import torch

        file, entry = self.places[name]
        if entry.encoding == "raw" or "-" in entry.encoding:
            return None
        index, values = (torch.from_numpy(read_bytes(file.path, begin, end)) for begin, end in entry.parts)
        return Kept(entry.encoding, index, values.view(torch_dtype(entry.info.dtype)))
