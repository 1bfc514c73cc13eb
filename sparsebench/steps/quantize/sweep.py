"""Makes a model's quantized variants in one pass each for rounding to nearest (by tensor) and GPTQ (by block).

``quantize: gguf`` is a variant as llama.cpp runs it, in a GGUF file. The folder's weights are the floats that the file
stands for, in the checkpoint's precision: every benchmark runs them. Its size is that of the file, and the engine
``llamacpp`` times the file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.models.files.building import activations_beside
from sparsebench.models.files.checkpoint import Checkpoint, torch_dtype
from sparsebench.models.files.gguf_variant import GGUF_FILE, KEY
from sparsebench.models.files.quantized import GROUP, float_checkpoint
from sparsebench.models.files.writing import CheckpointWriter
from sparsebench.models.gguf_writer import write_gguf
from sparsebench.models.replay.batch import Batch
from sparsebench.models.shape.topology import BlockId, Part, checked_parts
from sparsebench.steps.contract import Context, Emit, Step, StepReport, reported
from sparsebench.steps.counting import step_report
from sparsebench.steps.finite import check_weights
from sparsebench.steps.grid import nearest
from sparsebench.steps.outputs import VariantWriters, failing_alone, run_pass
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.registry import Method, methods
from sparsebench.steps.quantize.settings import Gguf
from sparsebench.steps.quantize.writers import QuantizedWriters, RoundingSums

STOCK_NOTE = "stock transformers loads this folder with the package compressed-tensors"


def make_quantized(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Quantize every prunable weight of the model in ``parent`` into one folder per step, and ``emit`` each result.

    For GPTQ, which alone reads it, the calibration text goes through each step's own quantized blocks. A step that
    fails is emitted as its error, and the others are made. Raises ModelError where nothing can be made: the parent is
    quantized already, or has no prunable weight. Raises UnsupportedError for experts fused in one tensor.
    """
    if isinstance(next(iter(targets)).settings, Gguf):
        return make_gguf(parent, targets, context, emit)
    checkpoint = float_checkpoint(parent, "quantize the checkpoint that it was made from")
    parts = checked_parts(checkpoint, context.family)
    fused = next((part.name for part in parts.values() if part.experts), None)
    if fused:
        problem = f"{parent}: {fused} holds several experts, and no layout of integers is known for it"
        raise UnsupportedError(problem, "prune it, or quantize a checkpoint that keeps every expert's weights apart")
    limit, reason = _widest_group(checkpoint, parts)
    folders: dict[Step, Path] = {}
    for step, folder in targets.items():
        group = step.settings.scheme.group or 0
        if group > limit:
            emit(step, UnsupportedError(f"group: {group}: {reason}", f"choose at most {limit}"))
        else:
            folders[step] = folder
    if not folders:
        return None

    def by_tensor(outputs: QuantizedWriters) -> dict[str, Any]:
        for name in reported([*checkpoint.tensors], context.progress):
            for view in parts[name].views:
                weights = view.to_matrix(checkpoint.load(name))
                check_weights([Layer(name, weights)])
                for step in folders:
                    search = getattr(step.settings, "scale", "range") == "search"
                    outputs.write_codes(step, name, weights, nearest(weights, step.settings.scheme, search))
            if not parts[name].prunable:
                outputs.copy_shared(name)
        return {"stock": STOCK_NOTE}

    def by_block(outputs: QuantizedWriters) -> dict[str, Any]:
        text = context.text("quantize: gptq")
        options: dict[str, Any] = {"dtype": context.dtype, "device": context.device}
        sweep = GptqSweep(checkpoint, parts, context.family, [*folders], text.batch, context.seed, **options)
        sweep.run(outputs, context.progress)
        return {"stock": STOCK_NOTE, "dtype": context.dtype, "seed": context.seed, **text.provenance()}

    work = by_block if next(iter(folders)).settings.reads_text() else by_tensor
    run_pass(folders, work, partial(QuantizedWriters, checkpoint, parts), context.family, emit)


def _widest_group(checkpoint: Checkpoint, parts: Mapping[str, Part]) -> tuple[int, str]:
    """Return the largest number of columns that may share a scale, and why: the widest matrix has no more.

    The default is allowed for narrower models too.
    """
    shapes = {name: checkpoint.tensors[name].shape for name, part in parts.items() if part.prunable}
    columns = {name: shape[0 if parts[name].transposed else -1] for name, shape in shapes.items()}
    widest = max(columns, key=lambda name: columns[name])
    return max(columns[widest], GROUP), f"no matrix has as many columns; the widest, {widest}, has {columns[widest]}"


class GptqSweep(BlockSweep):
    """SparseGPT's sweep over the blocks, which rounds weights instead of removing them."""

    unreached_method = "rounded to the nearest"

    def _method(self, target: Step) -> Method:
        return methods()["sparsegpt"]

    def _quota(self, target: Step, block: BlockId) -> Quota:
        return Quota(0.0, "layer", settings=target.settings, scheme=target.settings.scheme)

    def _solve_unreached(self, layers: list[Layer], quotas: list[Quota]) -> Iterator[list[Solution | SparsebenchError]]:
        check_weights(layers)
        for layer in layers:
            codes = [nearest(layer.weights, quota.scheme) for quota in quotas if quota.scheme]
            yield [Solution(matrix.expanded(layer.weights.dtype), codes=matrix) for matrix in codes]

    def _write(
        self, outputs: VariantWriters, target: Step, layer: Layer, stored: torch.Tensor, solution: Solution
    ) -> None:
        assert isinstance(outputs, QuantizedWriters) and solution.codes
        outputs.write_codes(target, layer.name, layer.weights.cpu(), solution.codes.cpu(), solution.notes)


def make_gguf(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make each variant's folder; calibration text is read where an importance matrix is asked for."""
    checkpoint = float_checkpoint(parent, "quantize the checkpoint that it was made from")
    squares: Mapping[str, torch.Tensor] = {}
    provenance: Mapping[str, Any] = {}
    if next(iter(targets)).settings.importance:  # all of a sweep read the text, or none does
        text = context.text("importance: true")
        squares = mean_squares(checkpoint, text.batch, context, next(iter(targets.values())))
        provenance = text.provenance()
    for step, folder in targets.items():
        with failing_alone(step, emit):
            gguf_type = str(step.settings.type)
            report = make_gguf_variant(checkpoint, folder, context.family, gguf_type, squares, provenance)
            emit(step, replace(report, sweep_size=len(targets)))


def mean_squares(checkpoint: Checkpoint, batch: Batch, context: Context, folder: Path) -> dict[str, torch.Tensor]:
    """Return the mean square of each input of each prunable matrix over the text in ``batch``, by the matrix's name.

    Hidden states that are too large for memory are files beside ``folder``.
    """
    from sparsebench.models.replay.blockwise import Block, Replay

    squares: dict[str, torch.Tensor] = {}

    def visit(block: Block) -> None:
        inputs = block.observe(0, gram=False)
        for name, statistics in inputs.items():
            squares[name] = (statistics.squares / max(1, statistics.tokens)).cpu()

    with activations_beside(folder) as spill:
        Replay(checkpoint, context.family, batch, 1, spill, context.dtype, device=context.device).run(visit)
    return squares


def make_gguf_variant(
    checkpoint: Checkpoint,
    folder: Path,
    family: str,
    gguf_type: str,
    squares: Mapping[str, torch.Tensor],
    provenance: Mapping[str, Any],
) -> StepReport:
    """Make one variant's folder of the model in ``checkpoint``, and count its zeros in the written floats.

    ``provenance`` has the entries about the text that ``squares`` are of, for the folder's ``sparsebench.json``.
    """
    started = time.perf_counter()
    sums = RoundingSums()
    bytes_in_file = 0
    prunable = {name for name, part in checked_parts(checkpoint, family).items() if part.prunable}
    with CheckpointWriter(
        folder, [*checkpoint.tensors.values()], checkpoint.folder, {KEY: {"type": gguf_type}}
    ) as writer:

        def write_values(name: str, values: torch.Tensor, byte_count: int) -> None:
            nonlocal bytes_in_file
            stored = values.to(torch_dtype(checkpoint.tensors[name].dtype))
            writer.write(name, stored)
            if name in prunable:
                original = checkpoint.load(name).float()
                bytes_in_file += byte_count
                sums.count(original, stored)
                sums.squares += float(original.double().square().sum())
                sums.squared_error += float((original - values).double().square().sum())

        kinds = write_gguf(checkpoint.folder, writer.partial / GGUF_FILE, gguf_type, squares, write_values)
        for name in [*writer.missing]:
            writer.copy(name, checkpoint)
        writer.close({"family": family, "step": "quantize", "gguf": gguf_type, "tensors": dict(kinds), **provenance})
    tensors = ", ".join(f"{kind} ×{count}" for kind, count in kinds.most_common())
    lost = f"; {sums.lost:,} zeros of the parent are no zeros any more" if sums.lost else ""
    note = f"tensors in the file: {tensors}{lost}"
    report = step_report(folder, family, seconds=time.perf_counter() - started, note=note, provenance=provenance)
    return replace(
        report,
        bits=8 * bytes_in_file / report.prunable,
        relative_error=sums.relative_error,
        rounded_to_zero=sums.zeros - sums.already_zero,
        already_zero=report.zeros - (sums.zeros - sums.already_zero),
    )
