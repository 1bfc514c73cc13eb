"""The folders of quantized variants: written side by side; their zeros are then counted in the written files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import CONV1D_TYPES, ELEMENT_BYTES, Checkpoint, TensorInfo
from sparsebench.models.files.quantized import KEY, Codes, parts_of, stored_parts
from sparsebench.models.files.writing import lay_out
from sparsebench.models.shape.topology import Part
from sparsebench.steps.contract import Step, StepReport
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import VariantWriters


@dataclass
class RoundingSums:
    """Sums over the weights of one variant: their zeros, those that the parent had too, and squared errors.

    ``lost`` counts the parent's zeros that are none any more.
    """

    zeros: int = 0
    already_zero: int = 0
    lost: int = 0
    squared_error: float = 0.0
    squares: float = 0.0

    def count(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Add the zeros of one matrix, as it was and as it is stored."""
        is_zero, was_zero = after == 0, before == 0
        self.zeros += int(is_zero.sum())
        self.already_zero += int((is_zero & was_zero).sum())
        self.lost += int((~is_zero & was_zero).sum())

    @property
    def relative_error(self) -> float:
        """‖W - Ŵ‖ / ‖W‖."""
        return math.sqrt(self.squared_error / self.squares) if self.squares else 0.0


class QuantizedWriters(VariantWriters):
    """Writes one folder per variant, with the prunable weights of ``parts`` as integers."""

    def __init__(self, checkpoint: Checkpoint, parts: dict[str, Part], folders: Mapping[Step, Path]) -> None:
        self.parts = parts
        self.transposed = checkpoint.config.get("model_type") in CONV1D_TYPES
        self.prunable = {name: checkpoint.tensors[name] for name, part in parts.items() if part.prunable}
        self.sums = {target: RoundingSums() for target in folders}
        super().__init__(checkpoint, folders)

    def _stored_parts(self, target: Step, info: TensorInfo) -> list[tuple[str, str, tuple[int, ...]]]:
        return parts_of(info, target.settings.scheme, self.transposed)

    def _stored(self, target: Step) -> list[TensorInfo]:
        layout: list[tuple[str, str, tuple[int, ...]]] = []
        for info in self.checkpoint.tensors.values():
            if info.name in self.prunable:
                layout += self._stored_parts(target, info)
            else:
                layout.append((info.name, info.dtype, info.shape))
        return lay_out(layout)

    def _config(self, target: Step) -> Mapping[str, Any]:
        return {KEY: target.settings.scheme.config(self.prunable)}

    @property
    def missing(self) -> list[str]:
        unwritten = next(iter(self.writers.values())).missing
        return [name for name in self.tensor_names if name in unwritten or f"{name}_packed" in unwritten]

    def write_codes(
        self, target: Step, name: str, weights: torch.Tensor, codes: Codes, notes: Sequence[str] = ()
    ) -> None:
        """Write one matrix of one variant as ``codes``, and add it to the variant's sums; ``weights`` (out, in) are the
        parent's."""
        for part, tensor in stored_parts(codes, name, target.settings.scheme):
            self.writers[target].write(part, tensor)
        sums, floats = self.sums[target], weights.float()
        sums.count(weights, codes.values)
        sums.squares += float(floats.square().sum(dtype=torch.float64))
        sums.squared_error += float((floats - codes.expanded(floats.dtype)).square_().sum(dtype=torch.float64))
        self.notes[target].update(notes)

    def _verified_report(self, target: Step, family: str, seconds: float, provenance: Mapping[str, Any]) -> StepReport:
        """Return what a variant achieved. Raises ModelError where other zeros are on disk than were written."""
        folder, sums = self.folders[target], self.sums[target]
        note = "; ".join(filter(None, (*sorted(self.notes[target]), self._stock_refusal(target))))
        report = step_report(
            folder, family, seconds=seconds, sweep_size=len(self.folders), note=note, provenance=provenance
        )
        if report.zeros != sums.zeros:
            problem = f"{folder}: the written files have {report.zeros} zeros, but {sums.zeros} were written"
            raise ModelError(problem, "check the disk, and make it again")
        layout = [part for info in self.prunable.values() for part in self._stored_parts(target, info)]
        stored = sum(math.prod(shape) * ELEMENT_BYTES[dtype] for _, dtype, shape in layout)
        return replace(
            report,
            tensors=(),
            bits=8 * stored / report.prunable,
            rounded_to_zero=report.zeros - sums.already_zero,
            relative_error=sums.relative_error,
            already_zero=sums.already_zero,
        )

    def _stock_refusal(self, target: Step) -> str:
        """Return why stock transformers cannot load the folder, whatever packages are installed; empty where it can."""
        group = target.settings.scheme.group
        if self.transposed:
            return "stock transformers cannot load this folder: compressed-tensors knows no Conv1D"
        uneven = next((info for info in self.prunable.values() if group and info.shape[1] % group), None)
        if uneven:
            groups = f"{uneven.name} has {uneven.shape[1]} inputs in groups of {group}"
            return f"stock transformers cannot load this folder: {groups}"
        return ""
