"""The folders of a sweep: written side by side, tensor by tensor; their zeros are then counted in the written files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.models.files import masked
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.safety import NOTES, left_out_sentence, record_left_out
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.shape.topology import View
from sparsebench.sources.cache import write_json
from sparsebench.steps.contract import Emit, Step, StepReport
from sparsebench.steps.counting import step_report, zero_in_both
from sparsebench.steps.zeroing import zeros_in


@contextmanager
def failing_alone(step: Step, emit: Emit) -> Iterator[None]:
    """Emit an error of the body as that of the step, so that the others go on."""
    try:
        yield
    except SparsebenchError as error:
        emit(step, error)


class VariantWriters:
    """Writes one folder per target. As a context manager, on an error it removes every folder that was not emitted."""

    def __init__(self, checkpoint: Checkpoint, folders: Mapping[Step, Path]) -> None:
        self.started = time.perf_counter()
        self.checkpoint = checkpoint
        self.folders: dict[Step, Path] = dict(folders)
        self.tensor_names = list(checkpoint.tensors)
        self.writers: dict[Step, CheckpointWriter] = {}
        try:
            for target, folder in folders.items():
                stored, config = self._stored(target), self._config(target)
                self.writers[target] = CheckpointWriter(folder, stored, checkpoint.folder, config)
        except BaseException:
            self._abort_writers()  # the `with` that would do this has not begun
            raise
        self.removed_weights: dict[Step, int] = dict.fromkeys(folders, 0)
        self.notes = {
            target: {left_out_sentence(writer.left_out), masked.masks_note(checkpoint.folder)} - {""}
            for target, writer in self.writers.items()
        }
        self.unverified_folders: dict[Step, Path] = {}
        self.errors: dict[Step, SparsebenchError] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self._abort_writers()
            for target in [*self.unverified_folders]:
                self._remove_unverified(target)

    def _abort_writers(self) -> None:
        for writer in self.writers.values():
            writer.abort()

    def _remove_unverified(self, target: Step) -> None:
        """Remove a variant's folder if it has its final name and would pass for complete."""
        if folder := self.unverified_folders.pop(target, None):
            shutil.rmtree(folder, ignore_errors=True)

    def give_up(self, targets: Iterable[Step], error: SparsebenchError) -> None:
        """Give up some variants; the others go on. Raises the error where no other is left."""
        for target in targets:
            self.errors[target] = error
            self.writers.pop(target).abort()
        if not self.writers:
            raise error

    def live(self, targets: Iterable[Step]) -> list[Step]:
        """Return those of some variants that were not given up."""
        return [target for target in targets if target not in self.errors]

    def _stored(self, target: Step) -> list[TensorInfo]:
        """Return the tensors in a variant's files: those of the checkpoint."""
        return list(self.checkpoint.tensors.values())

    def _config(self, target: Step) -> Mapping[str, Any]:
        """Return the entries of a variant's config.json that replace the checkpoint's."""
        return {}

    def write(
        self, target: Step, view: View, stored: torch.Tensor, removed_weights: int = 0, notes: Sequence[str] = ()
    ) -> None:
        """Write one matrix of one variant, as ``stored``; ``removed_weights`` of its weights were set to zero."""
        self.writers[target].write(view.tensor, stored, view.expert)
        self.removed_weights[target] += removed_weights
        self.notes[target].update(notes)

    def write_shared(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor that all variants share."""
        for writer in self.writers.values():
            writer.write(name, tensor)

    def copy_shared(self, name: str) -> None:
        """Copy a tensor that all variants share from the checkpoint, piece by piece."""
        for writer in self.writers.values():
            writer.copy(name, self.checkpoint)

    @property
    def missing(self) -> list[str]:
        """The names that are not written yet, in the checkpoint's order; they are the same for every variant."""
        unwritten = next(iter(self.writers.values())).missing
        return [name for name in self.tensor_names if name in unwritten]

    @cached_property
    def _names_with_zeros(self) -> frozenset[str]:
        """The checkpoint's tensors that contain a zero; a dense model has few."""
        pieces = self.checkpoint.pieces
        return frozenset(name for name in self.tensor_names if any(zeros_in(piece) for piece in pieces(name)))

    def _zeros_in_parent(self, written: Checkpoint, name: str) -> int:
        """Count the entries of a tensor that are zero both in the checkpoint and in a variant."""
        if name not in self._names_with_zeros:
            return 0
        return zero_in_both(self.checkpoint, written, name)

    def finish(self, family: str, provenance: Mapping[str, Any], emit: Emit) -> None:
        """Give each folder its final name, count its zeros in its files, and emit its result.

        ``provenance`` has the settings that all variants share. The folder of a variant that fails now is removed.
        """
        descriptions = {target: {"family": family, **target.record(), **provenance} for target in self.writers}
        for target, description in descriptions.items():
            with self._removing_on_error(target):
                self.unverified_folders[target] = self.writers[target].close(description)
        seconds = time.perf_counter() - self.started
        for target, folder in [*self.unverified_folders.items()]:
            with self._removing_on_error(target):
                report = self._verified_report(target, family, seconds, provenance)
                summary = {key: value for key, value in asdict(report).items() if key != "tensors"}
                write_json(folder / NOTES, {**summary, **descriptions[target]}, indent=1)
                record_left_out(folder, self.writers[target].left_out)
                del self.unverified_folders[target]
                emit(target, report)

    @contextmanager
    def _removing_on_error(self, target: Step) -> Iterator[None]:
        """Where the body fails, give this variant up, and remove its folder."""
        try:
            yield
        except SparsebenchError as error:
            self.errors[target] = error
            self.writers[target].abort()
            self._remove_unverified(target)

    def _verified_report(self, target: Step, family: str, seconds: float, provenance: Mapping[str, Any]) -> StepReport:
        """Return what a variant achieved. Raises ModelError where fewer zeros are on disk than were written."""
        folder = self.folders[target]
        note = "; ".join(sorted(self.notes[target]))
        report = step_report(
            folder,
            family,
            seconds=seconds,
            sweep_size=len(self.folders),
            note=note,
            provenance=provenance,
            zeros_in_parent=self._zeros_in_parent,
        )
        if report.zeros < self.removed_weights[target]:
            raise ModelError(
                f"{folder}: the written files have {report.zeros} zeros, fewer than the "
                f"{self.removed_weights[target]} weights set to zero",
                "check the disk, and make it again",
            )
        return report


def run_pass(
    folders: Mapping[Step, Path],
    work: Callable[[Any], Mapping[str, Any]],
    open_writers: Callable[[Mapping[Step, Path]], VariantWriters],
    family: str,
    emit: Emit,
) -> None:
    """Make the variants of a pass side by side, and emit their results.

    ``work`` writes every tensor of every variant into what ``open_writers`` returns, and returns what describes them
    all. An error of the whole pass fails all variants that have no earlier error of their own.
    """
    errors: dict[Step, SparsebenchError] = {}
    try:
        with open_writers(folders) as outputs:
            errors = outputs.errors
            outputs.finish(family, work(outputs), emit)
    except SparsebenchError as error:
        errors = dict.fromkeys(folders, error) | errors
    for target, reason in errors.items():
        emit(target, reason)
