"""``quantize: gguf``: a variant as llama.cpp runs it, in a GGUF file, and the floats that the file stands for.

The folder's weights are those floats, in the checkpoint's precision: every benchmark runs them. Its size is that of the
file, and the engine ``llamacpp`` times the file.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from sparsebench.models.files.building import temporary
from sparsebench.models.files.checkpoint import Checkpoint, torch_dtype
from sparsebench.models.files.gguf_variant import FILE, KEY
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.gguf_writer import write_gguf
from sparsebench.models.shape.topology import prunable_parts
from sparsebench.steps.contract import Context, Emit, Step, StepReport
from sparsebench.steps.counting import step_report
from sparsebench.steps.outputs import failing_alone
from sparsebench.steps.quantize.settings import Gguf
from sparsebench.steps.quantize.writers import RoundingSums


def make_gguf(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make each variant's folder; calibration text is read once, and only where an importance matrix is asked for."""
    checkpoint = float_checkpoint(parent, "quantize the checkpoint that it was made from")
    weighted = any(step.settings.importance for step in targets)
    text = context.text("importance: true") if weighted else None
    squares = mean_squares(checkpoint, context, next(iter(targets.values()))) if weighted else {}
    for step, folder in targets.items():
        settings: Gguf = step.settings
        provenance = text.provenance() if text and settings.importance else {}
        read = {key: provenance[key] for key in ("calibration_tokens", "calibration_sha256") if provenance}
        with failing_alone(step, emit):
            report = make(
                checkpoint, folder, context.family, str(settings.type), squares if settings.importance else {}
            )
            emit(step, replace(report, sweep_size=len(targets), **read))


def mean_squares(checkpoint: Checkpoint, context: Context, folder: Path) -> dict[str, torch.Tensor]:
    """Return the mean square of each input of each prunable matrix over the calibration text, by the matrix's name."""
    from sparsebench.models.replay.blockwise import Block, Replay

    squares: dict[str, torch.Tensor] = {}

    def visit(block: Block) -> None:
        inputs = block.observe(0, gram=False)
        squares.update({name: (seen.squares / max(1, seen.tokens)).cpu() for name, seen in inputs.items()})

    with temporary(folder.parent / ".activations") as spill:
        batch = context.text("importance: true").batch
        Replay(checkpoint, context.family, batch, 1, spill, context.dtype, device=context.device).run(visit)
    return squares


def make(
    checkpoint: Checkpoint, folder: Path, family: str, type: str, squares: Mapping[str, torch.Tensor]
) -> StepReport:
    """Make one variant's folder of the model in ``checkpoint``, and count its zeros in the written floats."""
    started, sums, size_in_file = time.perf_counter(), RoundingSums(), 0
    prunable = {name for name, part in prunable_parts(checkpoint, family).items() if part.prunable}
    copies = {twin: name for name, twin in checkpoint.ties.items()}
    with CheckpointWriter(folder, [*checkpoint.tensors.values()], checkpoint.folder, {KEY: {"type": type}}) as writer:

        def written(name: str, values: torch.Tensor, size: int) -> None:
            nonlocal size_in_file
            stored = values.to(torch_dtype(checkpoint.tensors[name].dtype))
            for each in filter(None, (name, copies.get(name))):
                writer.write(each, stored)
            if name in prunable:
                before = checkpoint.load(name).float()
                size_in_file += size
                sums.count(before, stored)
                sums.size += float(before.double().square().sum())
                sums.error += float((before - values).double().square().sum())

        kinds = write_gguf(checkpoint.folder, writer.partial / FILE, type, squares, written)
        for name in [*writer.missing]:
            writer.copy(name, checkpoint)
        writer.close({"family": family, "step": "quantize", "gguf": type, "tensors": dict(kinds)})
    tensors = ", ".join(f"{kind} ×{count}" for kind, count in kinds.most_common())
    lost = f"; {sums.lost:,} zeros of the parent are no zeros any more" if sums.lost else ""
    report = step_report(
        folder, family, seconds=time.perf_counter() - started, note=f"tensors in the file: {tensors}{lost}"
    )
    return replace(
        report,
        bits=8 * size_in_file / report.prunable,
        relative_error=sums.relative_error,
        rounded_to_zero=sums.zeros - sums.already_zero,
        already_zero=report.zeros - (sums.zeros - sums.already_zero),
    )
