"""Makes a model's quantized variants in one pass each for rounding to nearest (by tensor) and GPTQ (by block)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import SparsebenchError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.files.quantized import GROUP, float_checkpoint
from sparsebench.models.shape.topology import Part, prunable_parts
from sparsebench.steps.contract import Context, Emit, Step, reported
from sparsebench.steps.finite import check_weights
from sparsebench.steps.grid import nearest
from sparsebench.steps.outputs import VariantWriters, run_passes
from sparsebench.steps.prune.blockwise import BlockKey, BlockSweep
from sparsebench.steps.prune.contract import Layer, Quota, Solution
from sparsebench.steps.prune.registry import Method, methods
from sparsebench.steps.quantize.gguf import make_gguf
from sparsebench.steps.quantize.settings import Gguf
from sparsebench.steps.quantize.writers import QuantizedWriters

STOCK = "stock transformers loads this folder with the package compressed-tensors"


def make_quantized(parent: Path, targets: Mapping[Step, Path], context: Context, emit: Emit) -> None:
    """Quantize every prunable weight of the model in ``parent`` into one folder per step, and ``emit`` each result.

    For GPTQ, which alone reads it, the calibration text goes through each step's own quantized blocks. A step that
    fails is emitted as its error, and the others are made. Raises ModelError where nothing can be made: the parent is
    quantized already, or has no prunable weight. Raises UnsupportedError for experts fused in one tensor.
    """
    if all(isinstance(step.settings, Gguf) for step in targets):
        return make_gguf(parent, targets, context, emit)
    checkpoint = float_checkpoint(parent, "quantize the checkpoint that it was made from")
    parts = prunable_parts(checkpoint, context.family)
    fused = next((part.name for part in parts.values() if part.experts), None)
    if fused:
        raise UnsupportedError(
            f"{parent}: {fused} holds several experts, and no layout of integers is known for it",
            "prune it, or quantize a checkpoint that keeps every expert's weights apart",
        )
    limit, reason = _widest_group(checkpoint, parts)
    rounded: list[Step] = []
    gptq: list[Step] = []
    for step in targets:
        group = step.settings.scheme.group
        if (group or 0) > limit:
            emit(step, UnsupportedError(f"group: {group}: {reason}", f"choose at most {limit}"))
        else:
            (gptq if step.settings.rounding == "gptq" else rounded).append(step)

    def by_tensor(outputs: QuantizedWriters) -> dict[str, Any]:
        for name in reported([*checkpoint.tensors], context.progress):
            for view in parts[name].views:
                weights = view.shaped(checkpoint.load(name))
                check_weights([Layer(name, weights)])
                for step in rounded:
                    search = getattr(step.settings, "scale", "range") == "search"
                    outputs.write_codes(step, name, weights, nearest(weights, step.settings.scheme, search))
            if not parts[name].prunable:
                outputs.copy(name)
        return {"stock": STOCK}

    def by_block(outputs: QuantizedWriters) -> dict[str, Any]:
        tokens = context.text("quantize: gptq")
        settings = (tokens.batch, context.seed, "pruned", context.dtype, context.device)
        GptqSweep(checkpoint, parts, context.family, gptq, *settings).run(outputs, context.progress)
        return {"stock": STOCK, "dtype": context.dtype, "seed": context.seed, **tokens.provenance()}

    run_passes(
        targets,
        ((rounded, by_tensor), (gptq, by_block)),
        partial(QuantizedWriters, checkpoint, parts),
        context.family,
        emit,
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

    def _by_outliers(self) -> list[Step]:
        return []

    def _method(self, target: Step) -> Method:
        return methods()["sparsegpt"]

    def _quota(self, target: Step, block: BlockKey) -> Quota:
        return Quota(0.0, "layer", settings=target.settings, scheme=target.settings.scheme)

    def _unread(self, layers: list[Layer], quotas: list[Quota]) -> Iterator[list[Solution | SparsebenchError]]:
        for layer in layers:
            codes = [nearest(layer.weights, quota.scheme) for quota in quotas if quota.scheme]
            yield [Solution(matrix.expanded(layer.weights.dtype), codes=matrix) for matrix in codes]

    def _write(
        self, outputs: VariantWriters, target: Step, layer: Layer, stored: torch.Tensor, solution: Solution
    ) -> None:
        assert isinstance(outputs, QuantizedWriters) and solution.codes
        outputs.write_codes(target, layer.name, layer.weights.cpu(), solution.codes.cpu(), solution.notes)
