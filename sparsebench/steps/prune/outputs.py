"""The folders of a sweep: written side by side, tensor by tensor, and counted again from what lies on disk."""

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
from sparsebench.models import masked
from sparsebench.models.checkpoint import Checkpoint, CheckpointWriter, TensorInfo
from sparsebench.models.safety import NOTES, note_left_out, told
from sparsebench.models.topology import View
from sparsebench.steps.contract import Evidence
from sparsebench.steps.evidence import counted, zero_in_both
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.zeroing import zeros_in

if TYPE_CHECKING:
    import torch

EmitTarget = Callable[[Any, "Evidence | SparsebenchError"], None]
"""Called once for each version: with what was achieved, or why it alone failed."""


class VariantWriters:
    """One folder per target. As a context manager it drops, when something goes wrong, all that were not emitted."""

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
            target: {told(writer.left_out), masked.told(checkpoint.folder)} - {""}
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
                shutil.rmtree(folder, ignore_errors=True)  # what has its name already would pass for whole

    def fail(self, targets: Iterable[Target], error: SparsebenchError) -> None:
        """Give up some versions, whose neighbours go on. Raises the error where there are none."""
        for target in targets:
            self.failed[target] = error
            self.writers.pop(target).abort()
        if not self.writers:
            raise error

    def _stored(self, target: Target) -> list[TensorInfo]:
        """What the files of a version hold: the tensors of the checkpoint."""
        return list(self.checkpoint.tensors.values())

    def _config(self, target: Target) -> Mapping[str, Any]:
        """What a version's config.json has in place of the checkpoint's."""
        return {}

    def write(
        self, target: Target, view: View, stored: torch.Tensor, removed: int = 0, notes: Sequence[str] = ()
    ) -> None:
        """One matrix of one version as it is stored, of which ``removed`` weights were set to zero."""
        self.writers[target].write(view.tensor, stored, view.expert)
        self.removed[target] += removed
        self.notes[target].update(notes)

    def same(self, name: str, tensor: torch.Tensor) -> None:
        """A tensor that all versions share."""
        for writer in self.writers.values():
            writer.write(name, tensor)

    def copy(self, name: str) -> None:
        """A tensor that all versions share, from the checkpoint, piece by piece."""
        start = 0
        for piece in self.checkpoint.pieces(name):
            for writer in self.writers.values():
                writer.write_piece(name, start, piece)
            start += piece.numel()
        if not self.checkpoint.tensors[name].numel:
            self.same(name, self.checkpoint.load(name))

    @property
    def missing(self) -> list[str]:
        """Names that are not written yet, in the checkpoint's order; every version has the same."""
        left = next(iter(self.writers.values())).missing
        return [name for name in self.layout if name in left]

    @cached_property
    def _zeroed(self) -> frozenset[str]:
        """The tensors of the checkpoint that have a zero: few of a dense model's."""
        pieces = self.checkpoint.pieces
        return frozenset(name for name in self.layout if any(zeros_in(piece) for piece in pieces(name)))

    def _already(self, written: Checkpoint, name: str) -> int:
        """How many entries of a tensor are zero in the checkpoint and in a version."""
        if name not in self._zeroed:
            return 0
        return zero_in_both(self.checkpoint, written, name)

    def finish(self, family: str, made: dict[str, Any], emit: EmitTarget) -> None:
        """Give each folder its name, count what lies in all of them, and emit the results.

        ``made`` says how all of them were made. Raises ModelError, before any is emitted, when fewer zeros are on disk than were
        written.
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
                where = self.folders[target]
                raise ModelError(f"{where}: {result.zeros} zeros on disk where {self.removed[target]} were written")
            summary = {key: value for key, value in asdict(result).items() if key != "tensors"}
            text = json.dumps({**settings, **summary}, indent=1)
            (self.folders[target] / NOTES).write_text(text)
            note_left_out(self.folders[target], self.writers[target].left_out)
            found[target] = result
        for target, result in found.items():
            del self.unverified[target]
            emit(target, result)
