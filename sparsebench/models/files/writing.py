"""Writing weight files tensor by tensor.

The header can be written before the data, so a whole sweep of outputs streams through memory one tensor at a time, for
shards of any size.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sparsebench import bounded
from sparsebench.errors import ModelError
from sparsebench.models.files.building import new_partial, rename_whole
from sparsebench.models.files.checkpoint import (
    Checkpoint,
    TensorInfo,
    element_bytes,
    pieces_of,
    safetensors_dtype,
    torch_dtype,
)
from sparsebench.models.files.safety import NOTES, copy_companions, left_out_files, record_left_out
from sparsebench.paths import INDEX, WEIGHTS

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 << 30
"""Bytes of weights per file in the layouts that ``lay_out`` makes."""


def lay_out(tensors: list[tuple[str, str, tuple[int, ...]]]) -> list[TensorInfo]:
    """Lay out new files for tensors (name, safetensors dtype, shape): one file, or several of about ``SHARD_BYTES``."""
    shards: list[list[TensorInfo]] = [[]]
    room = SHARD_BYTES
    for name, dtype, shape in tensors:
        size = math.prod(shape) * element_bytes(dtype)
        if size > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        room -= size
        shards[-1].append(TensorInfo(name, dtype, shape, "", 0, size))
    if len(shards) == 1:
        return [replace(info, file=WEIGHTS) for info in shards[0]]
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    return [replace(info, file=name) for name, shard in zip(names, shards, strict=True) for info in shard]


class CheckpointWriter:
    """A writer of weight files whose tensors' shapes are known: header first, then one tensor at a time, in any order.

    The folder is built under a temporary name and appears whole at ``close``. As a context manager, the writer deletes
    what it wrote when an error occurs. The other files of the model ``source`` are copied, except code; keys of
    ``config`` replace those of its config.json. ``missing`` has the tensors that are not whole yet.
    """

    def __init__(
        self,
        folder: Path,
        layout: list[TensorInfo],
        source: Path | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.partial = new_partial(folder)
        self.layout = {info.name: info for info in layout}
        self.missing = dict(self.layout)
        self._entries_left = {info.name: info.numel for info in layout}
        self._starts: set[tuple[str, int]] = set()
        self.left_out: list[str] = []
        self._offsets: dict[str, int] = {}
        self._files: dict[str, BinaryIO] = {}
        try:
            if source:
                self.left_out = [*left_out_files(source), *copy_companions(source, self.partial)]
            if config:
                path = self.partial / "config.json"
                path.write_text(json.dumps({**bounded.read_object(path), **config}, indent=2))
            for file in dict.fromkeys(info.file for info in layout):
                header, offsets = header_bytes([info for info in layout if info.file == file], {"format": "pt"})
                self._offsets |= offsets
                self._files[file] = (self.partial / file).open("wb")
                self._files[file].write(header)
        except BaseException:
            self.abort()  # the `with` that would do this has not begun
            raise

    def write(self, name: str, tensor: torch.Tensor, index: int | None = None) -> None:
        """Write one tensor, or its slice ``index``, at its position in the file.

        Raises ModelError for another shape or dtype than the layout's, and for what was written before.
        """
        shape = self.layout[name].shape if index is None else self.layout[name].shape[1:]
        if shape != tuple(tensor.shape):
            raise ModelError(f"{self.folder}: {name} is {tuple(tensor.shape)} where the layout says {shape}")
        self.write_piece(name, (index or 0) * tensor.numel(), tensor.detach().contiguous().reshape(-1))

    def write_piece(self, name: str, start: int, piece: torch.Tensor) -> None:
        """Write some of a tensor's entries, flat, from entry ``start`` on."""
        import torch

        info, size = self.layout[name], piece.numel()
        if (name, start) in self._starts:
            raise ModelError(f"{self.folder}: {name}: {size} entries from entry {start} on were written before")
        missing_entries = self._entries_left[name] if name in self.missing else -1
        if torch_dtype(info.dtype) != piece.dtype or size > missing_entries or start + size > info.numel:
            problem = f"{size} entries of {piece.dtype} where {max(0, missing_entries)} of {info.dtype} are missing"
            raise ModelError(f"{self.folder}: {name}: {problem}")
        file = self._files[info.file]
        file.seek(self._offsets[name] + start * element_bytes(info.dtype))
        file.write(piece.view(torch.uint8).numpy().data if size else b"")
        self._starts.add((name, start))
        self._entries_left[name] -= size
        if not self._entries_left[name]:
            del self.missing[name]

    def copy(self, name: str, source: Checkpoint) -> None:
        """Copy the tensor that another checkpoint's files hold under this name, in pieces."""
        start = 0
        for piece in pieces_of(source.folder, source.stored[name]):
            self.write_piece(name, start, piece)
            start += piece.numel()
        if not start:
            self.write(name, source.load(name))

    def close(self, notes: dict[str, Any] | None = None) -> Path:
        """Finish the folder and give it its name; ``notes`` become its ``sparsebench.json``.

        Raises ModelError where a tensor of the layout was never written.
        """
        if self.missing:
            first = next(iter(self.missing))
            raise ModelError(f"{self.folder}: {len(self.missing)} tensors were never written, the first is {first}")
        self._close_files()
        weight_map = {info.name: info.file for info in self.layout.values()}
        if {*weight_map.values()} - {WEIGHTS}:
            total = sum(info.numel * element_bytes(info.dtype) for info in self.layout.values())
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self.partial / INDEX).write_text(json.dumps(index))
        if notes is not None:
            (self.partial / NOTES).write_text(json.dumps(notes, indent=1))
        record_left_out(self.partial, self.left_out)
        return rename_whole(self.partial, self.folder)

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.abort()

    def abort(self) -> None:
        """Delete what was written."""
        self._close_files()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


def copy_checkpoint(
    parent: Path,
    folder: Path,
    config: Mapping[str, Any],
    provenance: dict[str, Any],
    added: Mapping[str, torch.Tensor] = {},
) -> None:
    """Copy a model's files, with other keys in config.json and with the tensors ``added``."""
    stored = Checkpoint(parent)
    layout = [(info.name, info.dtype, info.shape) for info in stored.tensors.values()]
    layout += [(name, safetensors_dtype(tensor.dtype, name), tuple(tensor.shape)) for name, tensor in added.items()]
    with CheckpointWriter(folder, lay_out(layout), parent, config) as writer:
        for name in stored.tensors:
            writer.copy(name, stored)
        for name, tensor in added.items():
            writer.write(name, tensor)
        writer.close(provenance)


def header_bytes(infos: list[TensorInfo], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return what a safetensors file of these tensors, in this order, begins with, and each tensor's offset in it."""
    header: dict[str, Any] = {"__metadata__": metadata}
    offsets: dict[str, int] = {}
    end = 0
    for info in infos:
        offsets[info.name], end = end, end + info.numel * element_bytes(info.dtype)
        header[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": [offsets[info.name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return struct.pack("<Q", len(text)) + text, {name: start + offset for name, offset in offsets.items()}
