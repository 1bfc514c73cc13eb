"""What a step achieved: zeros and parameters, counted in the files of the folder that it made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.shape.topology import parts, weight_tensors
from sparsebench.steps.contract import StepReport, TensorCount
from sparsebench.steps.zeroing import zeros_in


def step_report(
    folder: Path,
    family: str,
    seconds: float = 0.0,
    sweep_size: int = 1,
    note: str = "",
    provenance: Mapping[str, Any] | None = None,
    already: Callable[[Checkpoint, str], int] | None = None,
) -> StepReport:
    """Count zeros in the written files, among prunable weights and among all parameters (``weight_tensors``).

    ``provenance`` may have the calibration's ``calibration_tokens`` and ``calibration_sha256``. ``already`` counts the
    zeros that a tensor of the written checkpoint has in common with the parent's; what it raises is raised here.
    """
    checkpoint = open_checkpoint(folder)
    model_parts = parts(checkpoint, family)
    tensors: list[TensorCount] = []
    parameters = total_zeros = before = 0
    for info in weight_tensors(checkpoint, model_parts).values():
        part = model_parts[info.name]
        parameters += info.numel
        if part.experts:
            counts = [zeros_in(checkpoint.load(info.name, expert)) for expert in range(part.experts)]
        else:
            counts = [sum(zeros_in(piece) for piece in checkpoint.pieces(info.name))]
        if already and part.prunable:
            before += already(checkpoint, info.name)
        total_zeros += sum(counts)
        for view, zeros in zip(part.views, counts, strict=False):
            size = info.numel // len(counts)
            tensors.append(TensorCount(view.name, part.layer, part.side, part.kind, size, zeros))
    provenance = provenance or {}
    prunable, zeros = sum(t.count for t in tensors), sum(t.zeros for t in tensors)
    return StepReport(
        prunable=prunable,
        zeros=zeros,
        parameters=parameters,
        total_zeros=total_zeros,
        achieved=zeros / prunable if prunable else 0.0,
        achieved_all=total_zeros / parameters if parameters else 0.0,
        seconds=seconds,
        sweep_size=sweep_size,
        peak_rss_bytes=peak_rss(),
        tensors=tuple(tensors),
        note=note,
        calibration_tokens=provenance.get("calibration_tokens", 0),
        calibration_sha256=provenance.get("calibration_sha256", ""),
        already_zero=before,
    )


def kept_zeros(parent: Checkpoint, written: Checkpoint, name: str) -> int:
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


def peak_rss() -> int:
    """Return the process's peak RSS in bytes; 0 on Windows."""
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
