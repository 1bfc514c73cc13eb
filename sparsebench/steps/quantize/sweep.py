"""Makes a model's quantized variants in one pass each for rounding to nearest (by tensor) and GPTQ (by block)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import float_checkpoint
from sparsebench.models.shape.topology import Part, prunable_parts
from sparsebench.steps.contract import Context, Emit, Step, StepReport, reported
from sparsebench.steps.finite import check_weights
from sparsebench.steps.grid import GROUP, Quantize, nearest
from sparsebench.steps.outputs import VariantWriters, run_passes
from sparsebench.steps.prune.blockwise import BlockSweep
from sparsebench.steps.prune.contract import Layer, Quota, Solution, Target
from sparsebench.steps.quantize.gguf import make_gguf
from sparsebench.steps.quantize.settings import Gguf
from sparsebench.steps.quantize.writers import QuantizedWriters, QuantizeTarget

EmitQuantize = Callable[[Quantize, "StepReport | SparsebenchError"], None]


def make_quantized(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Make every quantized variant of one pass over the model in ``parent``, each in its folder."""
    if all(isinstance(step.settings, Gguf) for step in targets):
        return make_gguf(parent, targets, context, emit)
    step_of = {Quantize(step.name, **step.settings.record()): step for step in targets}

    def report(quantize: Quantize, result: StepReport | SparsebenchError) -> None:
        if isinstance(result, StepReport):
            result = replace(result, sweep_size=len(targets))
        emit(step_of[quantize], result)

    quantize_model(parent, {quantize: targets[step] for quantize, step in step_of.items()}, context, report)


def quantize_model(parent: Path, targets: Mapping[Quantize, Path], context: Context, emit: EmitQuantize) -> None:
    """Quantize every prunable weight of the model in ``parent`` into one folder per target, and ``emit`` each result.

    For GPTQ, which alone reads it, the calibration text goes through each target's own quantized blocks. A target that
    fails is emitted as its error, and the others are made. Raises ModelError where nothing can be made: the parent is
    quantized already, or has no prunable weight. Raises UnsupportedError for experts fused in one tensor.
    """
    checkpoint = float_checkpoint(parent, "quantize the checkpoint that it was made from")
    parts = prunable_parts(checkpoint, context.family)
    fused = next((part.name for part in parts.values() if part.experts), None)
    if fused:
        raise UnsupportedError(
            f"{parent}: {fused} holds several experts, and no layout of integers is known for it",
            "prune it, or quantize a checkpoint that keeps every expert's weights apart",
        )
    limit, reason = _widest_group(checkpoint, parts)
    chosen: dict[QuantizeTarget, Path] = {}
    for quantize, folder in targets.items():
        if (quantize.group or 0) <= limit:
            chosen[QuantizeTarget("sparsegpt", 0.0, "layer", quantize=quantize)] = folder
        else:
            emit(quantize, UnsupportedError(f"group: {quantize.group}: {reason}", f"choose at most {limit}"))
    rounded = [target for target in chosen if target.quantize.rounding == "nearest"]
    gptq = [target for target in chosen if target.quantize.rounding == "gptq"]

    def by_tensor(outputs: QuantizedWriters) -> dict[str, Any]:
        for name in reported([*checkpoint.tensors], context.progress):
            for view in parts[name].views:
                weights = view.shaped(checkpoint.load(name))
                check_weights([Layer(name, weights)])
                for target in rounded:
                    search = target.quantize.scale == "search"
                    outputs.write_codes(target, name, weights, nearest(weights, target.quantize.scheme, search))
            if not parts[name].prunable:
                outputs.copy(name)
        return {}

    def by_block(outputs: QuantizedWriters) -> dict[str, Any]:
        tokens = context.text("quantize: gptq")
        settings = (tokens.batch, context.seed, "pruned", context.dtype, context.device)
        GptqSweep(checkpoint, parts, context.family, [*gptq], *settings).run(outputs, context.progress)
        return {"dtype": context.dtype, "seed": context.seed, **tokens.provenance()}

    run_passes(
        chosen,
        ((rounded, by_tensor), (gptq, by_block)),
        partial(QuantizedWriters, checkpoint, parts),
        context.family,
        lambda target, report: emit(target.quantize, report),
    )


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

    unread_way = "rounded to the nearest"

    def _quota(self, target: Target, place: tuple[str, int]) -> Quota:
        assert isinstance(target, QuantizeTarget)
        return replace(super()._quota(target, place), quantize=target.quantize)

    def _unread(self, layers: list[Layer], quotas: list[Quota]) -> Iterator[list[Solution | SparsebenchError]]:
        for layer in layers:
            schemes = [quota.quantize.scheme for quota in quotas if quota.quantize]
            codes = [nearest(layer.weights, scheme) for scheme in schemes]
            yield [Solution(matrix.expanded(layer.weights.dtype), codes=matrix) for matrix in codes]

    def _write(
        self, outputs: VariantWriters, target: Target, layer: Layer, stored: torch.Tensor, solution: Solution
    ) -> None:
        assert isinstance(outputs, QuantizedWriters) and isinstance(target, QuantizeTarget) and solution.codes
        outputs.write_codes(target, layer.name, layer.weights.cpu(), solution.codes.cpu(), solution.notes)
