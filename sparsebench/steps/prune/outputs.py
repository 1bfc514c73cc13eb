"""The folders of a sweep: written side by side, tensor by tensor; their zeros are then counted in the written files."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files import masked
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.safety import NOTES, left_out_note, note_left_out
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.shape.topology import View
from sparsebench.steps.contract import Evidence
from sparsebench.steps.evidence import counted, zero_in_both
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.zeroing import zeros_in

if TYPE_CHECKING:
    import torch

EmitTarget = Callable[[Any, "Evidence | SparsebenchError"], None]
"""Called once for each variant, with its evidence or with the error that made this variant fail."""


class VariantWriters:
    """Writes one folder per target. As a context manager, on an error it removes every folder that was not emitted."""

    def __init__(self, checkpoint: Checkpoint, folders: Mapping[Any, Path]) -> None:
        self.started = time.perf_counter()
        self.checkpoint = checkpoint
        self.folders: dict[Any, Path] = dict(folders)
        self.layout = list(checkpoint.tensors)
        self.writers: dict[Any, CheckpointWriter] = {
            target: CheckpointWriter(folder, self._stored(target), checkpoint.folder, self._config(target))
            for target, folder in folders.items()
        }
        self.removed: dict[Any, int] = dict.fromkeys(folders, 0)
        self.notes = {
            target: {left_out_note(writer.left_out), masked.masks_note(checkpoint.folder)} - {""}
            for target, writer in self.writers.items()
        }
        self.unverified: dict[Any, Path] = {}
        self.failed: dict[Any, SparsebenchError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind:
            for writer in self.writers.values():
                writer.abort()
            for folder in self.unverified.values():
                shutil.rmtree(folder, ignore_errors=True)  # a folder with its final name would pass for complete

    def fail(self, targets: Iterable[Target], error: SparsebenchError) -> None:
        """Give up some variants; the others go on. Raises the error where no other is left."""
        for target in targets:
            self.failed[target] = error
            self.writers.pop(target).abort()
        if not self.writers:
            raise error

    def _stored(self, target: Target) -> list[TensorInfo]:
        """Return the tensors in a variant's files: those of the checkpoint."""
        return list(self.checkpoint.tensors.values())

    def _config(self, target: Target) -> Mapping[str, Any]:
        """Return the entries of a variant's config.json that replace the checkpoint's."""
        return {}

    def write(
        self, target: Target, view: View, stored: torch.Tensor, removed: int = 0, notes: Sequence[str] = ()
    ) -> None:
        """Write one matrix of one variant, as ``stored``; ``removed`` of its weights were set to zero."""
        self.writers[target].write(view.tensor, stored, view.expert)
        self.removed[target] += removed
        self.notes[target].update(notes)

    def same(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor that all variants share."""
        for writer in self.writers.values():
            writer.write(name, tensor)

    def copy(self, name: str) -> None:
        """Copy a tensor that all variants share from the checkpoint, piece by piece."""
        start = 0
        for piece in self.checkpoint.pieces(name):
            for writer in self.writers.values():
                writer.write_piece(name, start, piece)
            start += piece.numel()
        if not self.checkpoint.tensors[name].numel:
            self.same(name, self.checkpoint.load(name))

    @property
    def missing(self) -> list[str]:
        """The names that are not written yet, in the checkpoint's order; they are the same for every variant."""
        left = next(iter(self.writers.values())).missing
        return [name for name in self.layout if name in left]

    @cached_property
    def _zeroed(self) -> frozenset[str]:
        """The checkpoint's tensors that contain a zero; a dense model has few."""
        pieces = self.checkpoint.pieces
        return frozenset(name for name in self.layout if any(zeros_in(piece) for piece in pieces(name)))

    def _already(self, written: Checkpoint, name: str) -> int:
        """Count the entries of a tensor that are zero both in the checkpoint and in a variant."""
        if name not in self._zeroed:
            return 0
        return zero_in_both(self.checkpoint, written, name)

    def finish(self, family: str, made: dict[str, Any], emit: EmitTarget) -> None:
        """Give each folder its final name, count the zeros in its files, and emit all results.

        ``made`` has the settings that all variants share. Raises ModelError, before any result is emitted, when a
        folder has fewer zeros on disk than were written.
        """
        every = {target: {"family": family, **asdict(target), **made} for target in self.writers}
        for target, settings in every.items():
            self.unverified[target] = self.writers[target].close(settings)
        seconds = time.perf_counter() - self.started
        found: dict[Any, Evidence] = {}
        for target, settings in every.items():
            note = "; ".join(sorted(self.notes[target]))
            result = counted(self.folders[target], family, seconds, len(self.folders), note, made, self._already)
            if result.zeros < self.removed[target]:
                raise ModelError(
                    f"{self.folders[target]}: the written files have {result.zeros} zeros, fewer than the "
                    f"{self.removed[target]} weights set to zero",
                    "check the disk, and make it again",
                )
            summary = {key: value for key, value in asdict(result).items() if key != "tensors"}
            text = json.dumps({**settings, **summary}, indent=1)
            (self.folders[target] / NOTES).write_text(text)
            note_left_out(self.folders[target], self.writers[target].left_out)
            found[target] = result
        for target, result in found.items():
            del self.unverified[target]
            emit(target, result)
