"""The files that a later process resumes a training from: checked when they are read, made again where they do not fit.

A file is safetensors, so that reading it runs no code. Its metadata says what it belongs to, and its last 16 bytes are
the XXH3 (128 bits) of all others. XXH3 guards against accidents, not malice. It reads 22 GB a second of a core where
SHA-256 reads 1.8, and in 128 bits no damage goes unnoticed. A file is flushed to the disk before it gets its name, so a
killed process leaves the last one whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash

from sparsebench import __version__, environment
from sparsebench.models.files.building import reserve, temporary
from sparsebench.models.files.checkpoint import TensorInfo, safetensors_dtype, torch_dtype
from sparsebench.models.files.writing import header_bytes
from sparsebench.paths import create, remove

DIGEST = TensorInfo("xxh3_128", "U8", (16,), "", 0, 16)
"""The checksum of a file is its last tensor."""
PIECE = 1 << 20


@dataclass
class ResumeFolder:
    """The folder of one training's files. ``notes`` name each file that was removed because it did not fit.

    The notes are in every file that is written afterwards, so that they outlive a killed process. ``notify`` gets each
    one at once, with the file's whole path.
    """

    folder: Path
    notify: Callable[[str], None] | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            self._discard(self.folder, "it is no folder")

    def write(self, name: str, identity: Mapping[str, Any], value: Any) -> None:
        """Write a file; it appears only when it is complete and on the disk.

        ``value`` is made of dicts, lists, tensors and what JSON has; tuples are read as lists. ``identity`` is JSON: all
        that decides the value.
        Raises ModelError where the disk has no room for it.
        """
        path = self.folder / name
        tensors: list[torch.Tensor] = []
        facts = {"belongs": identity, "value": _without_tensors(value, tensors), "notes": self.notes}
        # The largest elements first, so that all are aligned.
        order = sorted(range(len(tensors)), key=lambda number: -tensors[number].element_size())
        layout = [
            TensorInfo(str(number), safetensors_dtype(tensors[number].dtype, name), tuple(tensors[number].shape))
            for number in order
        ]
        reserve(self.folder, sum(tensor.nbytes for tensor in tensors))
        header, _ = header_bytes([*layout, DIGEST], {"facts": json.dumps(facts)})
        digest = xxhash.xxh3_128(header)
        with temporary(path) as partial:
            with create(partial / name, "wb") as file:
                file.write(header)
                for number in order:
                    tensor_bytes = _bytes_of(tensors[number])
                    digest.update(tensor_bytes)
                    file.write(tensor_bytes)
                file.write(digest.digest())
                file.flush()
                os.fsync(file.fileno())
            (partial / name).replace(path)
        _flush_folder(self.folder)

    def read(self, name: str, identity: Mapping[str, Any]) -> Any:
        """Return the value that was written, with tensors that map the file; None where it is not there, or removed.

        A file is removed, with a note, where it is damaged or was written with another ``identity``.
        """
        path = self.folder / name
        if not os.path.lexists(path):
            return None
        try:
            if not _is_undamaged(path):
                return self._discard(path, "it is damaged")
            facts, tensors = _parse_file(path)
        except OSError as error:
            return self._discard(path, f"it cannot be read ({error.strerror})")
        current_identity = json.loads(json.dumps(identity))
        if facts["belongs"] != current_identity:
            keys = {*facts["belongs"], *current_identity}
            differing = sorted(key for key in keys if facts["belongs"].get(key) != current_identity.get(key))
            return self._discard(path, f"it is of another training, with another {' and '.join(differing)}")
        self.notes += [note for note in facts["notes"] if note not in self.notes]
        return _with_tensors(facts["value"], tensors)

    def remove(self) -> None:
        """Remove the folder once the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _discard(self, path: Path, reason: str) -> None:
        """Remove what does not fit, and note it."""
        remove(path)
        self.notes.append(f"{path.name}: {reason}, so it was removed and made again")
        if self.notify:
            self.notify(f"{path}: {reason}: it was removed and is made again")


def versions() -> dict[str, str]:
    """Return the versions of what decides a training's bits and its files' form, for ``identity``."""
    return {"sparsebench": __version__} | {name: environment.versions()[name] for name in ("torch", "transformers")}


def checksum(*parts: torch.Tensor | str | None) -> str:
    """Return a checksum of texts and of tensors' shapes, dtypes and values, in order."""
    digest = xxhash.xxh3_128()
    for part in parts:
        if isinstance(part, torch.Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)};".encode())
            digest.update(_bytes_of(part))
        else:
            digest.update(f"{part};".encode())
    return digest.hexdigest()


def _is_undamaged(path: Path) -> bool:
    """Return whether a path is a file that ends in the checksum of what is before."""
    if not path.is_file():
        return False
    digest, remaining = xxhash.xxh3_128(), path.stat().st_size - DIGEST.nbytes
    piece = memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while remaining > 0 and (count := file.readinto(piece[:remaining])):
            digest.update(piece[:count])
            remaining -= count
        return remaining == 0 and file.read() == digest.digest()


def _parse_file(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the facts of a whole file and its tensors, whose memory is a private mapping of the file."""
    file_bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    start = 8 + int(file_bytes[:8].view(torch.int64))
    header = json.loads(file_bytes[8:start].numpy().tobytes())
    facts = json.loads(header.pop("__metadata__")["facts"])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = file_bytes[start + begin : start + end].view(torch_dtype(entry["dtype"]))
        tensors[name] = flat.reshape(entry["shape"])
    return facts, tensors


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _without_tensors(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a value as JSON: its tensors go into the list, dicts become pairs, since JSON's keys are all texts."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"tensor": str(len(tensors) - 1)}
    if isinstance(value, dict):
        return {"pairs": [[key, _without_tensors(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors) for inner in value]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """Undo ``_without_tensors``."""
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {key: _with_tensors(inner, tensors) for key, inner in value["pairs"]}


def _flush_folder(folder: Path) -> None:
    """Flush a folder to the disk, so that the new name of a file outlives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
