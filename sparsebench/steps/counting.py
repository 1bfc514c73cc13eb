"""What a step achieved, counted in the files of the folder that it made: zeros, parameters, what one token reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebench import environment
from sparsebench.errors import ModelError
from sparsebench.models.files.building import removed_on_error
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.modules.skipping import experts_of
from sparsebench.models.shape.topology import checked_parts, parts, weight_tensors
from sparsebench.steps.contract import StepReport, TensorCount
from sparsebench.steps.zeroing import zeros_in

ZerosInParent = Callable[[Checkpoint, str], int]
"""Counts, in a tensor of the written checkpoint, by name, the zeros that it has in common with the parent's."""


def step_report(
    folder: Path,
    family: str,
    *,
    seconds: float = 0.0,
    sweep_size: int = 1,
    note: str = "",
    provenance: Mapping[str, Any] | None = None,
    zeros_in_parent: ZerosInParent | None = None,
) -> StepReport:
    """Count zeros in the written files, among prunable weights and among all parameters (``weight_tensors``).

    ``provenance`` may have the calibration's ``calibration_tokens`` and ``calibration_sha256``. Raises what
    ``zeros_in_parent`` raises. Where an error of ours is raised, the folder is removed: it would pass for complete.
    """
    tensors: list[TensorCount] = []
    prunable = zeros = parameters = total_zeros = already_zero = 0
    with removed_on_error(folder):
        checkpoint = open_checkpoint(folder)
        model_parts = parts(checkpoint, family)
        for info in weight_tensors(checkpoint, model_parts).values():
            part = model_parts[info.name]
            parameters += info.numel
            if part.experts:
                counts = [zeros_in(checkpoint.load(info.name, expert)) for expert in range(part.experts)]
            else:
                counts = [sum(zeros_in(piece) for piece in checkpoint.pieces(info.name))]
            total_zeros += sum(counts)
            if part.prunable:
                prunable += info.numel
                zeros += sum(counts)
                already_zero += zeros_in_parent(checkpoint, info.name) if zeros_in_parent else 0
            for view, count in zip(part.views, counts, strict=False):
                size = info.numel // len(counts)
                tensors.append(TensorCount(view.name, part.block, part.stack, part.kind, size, count))
        share_read = read_share(checkpoint, family)
    calibration = provenance or {}
    return StepReport(
        prunable=prunable,
        zeros=zeros,
        parameters=parameters,
        total_zeros=total_zeros,
        achieved=zeros / prunable if prunable else 0.0,
        achieved_all=total_zeros / parameters if parameters else 0.0,
        seconds=seconds,
        sweep_size=sweep_size,
        peak_rss_bytes=environment.peak_rss(),
        tensors=tuple(tensors),
        note=note,
        calibration_tokens=calibration.get("calibration_tokens", 0),
        calibration_sha256=calibration.get("calibration_sha256", ""),
        already_zero=already_zero,
        read_share=share_read,
    )


def verified_zeros(parent: Checkpoint, written: Checkpoint, name: str) -> int:
    """Count the entries of a matrix that are zero in ``parent``.

    Raises ModelError where one of them is not zero in ``written``.
    """
    zeros = sum(zeros_in(piece) for piece in parent.pieces(name))
    if zeros != zero_in_both(parent, written, name):
        raise ModelError(f"{written.folder}: {name}: weights that were pruned came back")
    return zeros


def zero_in_both(first: Checkpoint, second: Checkpoint, name: str) -> int:
    """Count the entries of a tensor that are zero in both checkpoints."""
    pairs = zip(first.pieces(name), second.pieces(name), strict=True)
    return sum(int(((left == 0) & (right == 0)).sum()) for left, right in pairs)


def read_share(checkpoint: Checkpoint, family: str) -> float:
    """Return the weights that a token reads, router tables included, over the blocks' prunable weights.

    The share is 1 for a model without grouped neurons.
    """
    config = experts_of(checkpoint.config)
    if config is None:
        return 1.0
    sizes: dict[str, int] = {}
    for name, part in checked_parts(checkpoint, family).items():
        if part.prunable:
            sizes[part.kind] = sizes.get(part.kind, 0) + checkpoint.tensors[name].numel
    # An oracle needs the values of all neurons: only the last matrix is read in part.
    chosen = ("down",) if config.router == "oracle" else ("gate", "up", "gate_up", "down")
    unread = sum(sizes.get(kind, 0) for kind in chosen) * (1 - config.active / config.experts)
    tables = sum(info.numel for info in checkpoint.tensors.values() if ".moe.router." in info.name)
    total = sum(sizes.values())
    return (total - unread + tables) / total
