"""Pruning by masks from a file, chosen elsewhere.

A file has a tensor for each weight that it prunes: 1 keeps, 0 removes. The tensor has the weight's name, or that name
plus ``_mask``, as ``torch.nn.utils.prune`` names its masks. Any weight can have one, embeddings and biases too. Weights
and masks are read and written in pieces, so that memory stays small whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import ModelError, SparsebenchError
from sparsebench.manifest.problems import did_you_mean
from sparsebench.models.files.checkpoint import (
    ELEMENT_BYTES,
    Checkpoint,
    TensorInfo,
    pieces_of,
    read_header,
    tensor_infos,
)
from sparsebench.models.files.masked import MASK, boolean_mask
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import Part, checked_parts
from sparsebench.sources.reference import Reference
from sparsebench.steps.contract import Context, Emit, Step, reported
from sparsebench.steps.outputs import VariantWriters, failing_alone, run_pass
from sparsebench.steps.zeroing import zeroed


@dataclass(frozen=True)
class Masks:
    """The masks of a file, by the name of the checkpoint's tensor (of a tied tensor stored twice, the original's)."""

    path: Path
    infos: Mapping[str, TensorInfo]

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Yield one mask's entries in order, flat, True where the weight stays.

        Raises ModelError for values other than 0 and 1.
        """
        info = self.infos[name]
        return (boolean_mask(piece, f"{self.path}: mask {info.name}") for piece in pieces_of(self.path.parent, info))

    def note(self, parts: Mapping[str, Part]) -> str:
        """Return a note on the prunable weights without a mask; empty if there are none."""
        names = [name for name, part in parts.items() if part.prunable]
        unmasked = [name for name in names if name not in self.infos]
        if not unmasked:
            return ""
        count = f"{len(unmasked)} of {len(names)} prunable weights"
        return f"{self.path.name} has no mask for {count}, which stay as they are (the first is {unmasked[0]})"


def make_masked(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Apply each step's masks to the model in ``parent``, each in its folder; a file that does not fit fails alone."""
    checkpoint = float_checkpoint(parent, "prune first, then quantize")
    parts = checked_parts(checkpoint, context.family)
    masks: dict[Step, Masks] = {}
    for step in targets:
        with failing_alone(step, emit):
            masks[step] = _read(step.settings.file, checkpoint)

    def write(outputs: VariantWriters) -> dict[str, Any]:
        for name in reported([*checkpoint.tensors], context.progress):
            _write(name, masks, outputs)
        for step in outputs.writers:
            outputs.notes[step] |= {masks[step].note(parts)} - {""}
        return {}

    if masks:
        folders = {step: targets[step] for step in masks}
        run_pass(folders, write, partial(VariantWriters, checkpoint), context.family, emit)


def _read(reference: str, checkpoint: Checkpoint) -> Masks:
    """Read a file's masks. Raises ModelError, naming file and tensor, where names, shapes or dtypes do not fit."""
    path = Reference.parse(reference).unchanged_file("a safetensors file of masks", ModelError)
    header, start = read_header(path)
    masks: dict[str, TensorInfo] = {}
    for info in tensor_infos(header, start, path):
        name = info.name if info.name in checkpoint.tensors else info.name.removesuffix(MASK)
        label = f"{path}: mask {info.name[:200]}"
        if name not in checkpoint.tensors:
            hint = did_you_mean(name, checkpoint.tensors) or "a mask has the name of a weight, or that and `_mask`"
            raise ModelError(f"{label}: the model has no tensor {name[:200]}", hint)
        shape = checkpoint.tensors[name].shape
        if info.shape != shape:
            problem = f"{label} has shape {info.shape}, its weight {shape}"
            raise ModelError(problem, "give the mask the shape in which the checkpoint stores the weight")
        if info.dtype not in ELEMENT_BYTES:
            problem = f"{label} has dtype {info.dtype[:20]}, which cannot be read as a mask"
            raise ModelError(problem, "write masks as booleans or bytes")
        # Read as a boolean, a byte above 1 would pass for True.
        mask = replace(info, dtype="U8") if info.dtype == "BOOL" else info
        name = checkpoint.ties.get(name, name)
        if name in masks and not _same(path.parent, mask, masks[name]):
            problem = f"{path}: masks {masks[name].name[:200]} and {info.name[:200]} are of one tensor, and differ"
            raise ModelError(problem, "give each weight one mask")
        masks[name] = mask
    if not masks:
        raise ModelError(f"{path}: no masks in it", "it has a tensor of 0 and 1 for each weight to prune")
    return Masks(path, masks)


def _same(folder: Path, first: TensorInfo, second: TensorInfo) -> bool:
    pairs = zip(pieces_of(folder, first), pieces_of(folder, second), strict=True)
    return all(bool((left == right).all()) for left, right in pairs)


def _write(name: str, masks: Mapping[Step, Masks], outputs: VariantWriters) -> None:
    """Write one tensor of every variant. A stored copy of a tied tensor gets the mask of the original."""
    checkpoint = outputs.checkpoint
    original = checkpoint.ties.get(name, name)
    mask_pieces = {step: masks[step].pieces(original) for step in outputs.writers if original in masks[step].infos}
    if not mask_pieces or not checkpoint.tensors[name].numel:
        outputs.copy_shared(name)
        return
    start = 0
    for piece in checkpoint.pieces(name):
        for step in list(outputs.writers):
            try:
                written = zeroed(piece, ~next(mask_pieces[step])) if step in mask_pieces else piece
            except SparsebenchError as error:
                outputs.give_up([step], error)
            else:
                outputs.writers[step].write_piece(name, start, written)
        start += piece.numel()
