"""The error of a variant's blocks: how far their outputs are from the dense model's on the same text.

    error = mean over tokens of ‖h' - h‖ / ‖h‖        h is the output of a block of the dense model, h' the variant's
    own   = the same where the variant's block reads the dense model's block's input, and in an encoder-decoder also
            the dense encoder's output

``error`` is the error accumulated up to and including the block, ``own`` is that block's part.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.replay.batch import Batch

if TYPE_CHECKING:
    import torch

    from sparsebench.models.replay.skeleton import SkeletonBlock

VERSION = 2
"""Bumped by hand when a change here can change a result."""
TOKENS_AT_ONCE = 1024
"""Tokens that run at once, in whole samples; the outputs of all blocks for them are held in memory."""
ENCODED = "the encoder's output"
"""A key beside the blocks' paths: the input of the decoder's cross-attentions."""
WAY_OUT = "remove `outputs` from the manifest, or accept that this variant has no outputs result"


@dataclass(frozen=True)
class BlockError:
    """One block: its ``side`` (encoder or decoder), its index there, and both errors, 0 where nothing differs."""

    side: str
    block: int
    own: float
    error: float


@dataclass(frozen=True)
class OutputsResult:
    """The errors of all blocks in order, and the number of ``tokens`` that were read, padding left out, of all stacks."""

    tokens: int
    blocks: tuple[BlockError, ...]


def compare_outputs(
    dense: Path,
    variant: Path,
    family: Family,
    batch: Batch,
    dtype: str = "auto",
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> OutputsResult:
    """Run both models over ``batch`` in ``dtype`` (``auto``: the checkpoint's), and compare their blocks' outputs.

    Both are on ``device`` at once. Raises UnsupportedError where their blocks, widths or vocabularies differ, or their
    blocks are not found; ModelError where an output is not finite.
    """
    import torch

    from sparsebench.models.modules.load import load_model

    blocks, variant_blocks = (_blocks(folder, family) for folder in (dense, variant))
    if [block.path for block in blocks] != [block.path for block in variant_blocks]:
        problem = f"{variant}: it has {len(variant_blocks)} blocks where the dense model has {len(blocks)}"
        raise UnsupportedError(problem, WAY_OUT)
    models: list[Any] = [load_model(folder, family, dtype, device) for folder in (dense, variant)]
    if len({tuple(model.get_input_embeddings().weight.shape) for model in models}) > 1:
        raise UnsupportedError(f"{variant}: its embeddings are not of the dense model's shape", WAY_OUT)
    dense_model, variant_model = models
    error_sums: list[dict[str, float]] = [{"own": 0.0, "error": 0.0} for _ in blocks]
    sample_count = len(batch.input_ids)
    token_counts = Counter[str]()
    samples_at_once = max(1, TOKENS_AT_ONCE // batch.input_ids.shape[1])
    for first in range(0, sample_count, samples_at_once):
        rows = slice(first, first + samples_at_once)
        inputs = batch.inputs(rows, device)
        with torch.no_grad():
            block_inputs, expected = _run(dense_model, blocks, inputs)
            _, own_outputs = _run(variant_model, blocks, inputs, block_inputs)
            _, outputs = _run(variant_model, blocks, inputs)
        masks = {block.stack: batch.mask(block.stack)[rows].to(device) for block in blocks}
        token_counts.update({stack: int(mask.sum()) for stack, mask in masks.items()})
        for errors, block in zip(error_sums, blocks, strict=True):
            mask = masks[block.stack]
            errors["own"] += _summed_relative_error(own_outputs[block.path], expected[block.path], mask)
            errors["error"] += _summed_relative_error(outputs[block.path], expected[block.path], mask)
            if not all(map(math.isfinite, errors.values())):
                problem = f"{variant}: what {block.stack} block {block.index} gives is not finite"
                raise ModelError(problem, "try float32")
        if progress:
            progress(min(sample_count, first + samples_at_once), sample_count)
    block_errors = tuple(
        BlockError(
            block.stack,
            block.index,
            own=errors["own"] / token_counts[block.stack],
            error=errors["error"] / token_counts[block.stack],
        )
        for errors, block in zip(error_sums, blocks, strict=True)
    )
    return OutputsResult(token_counts.total(), block_errors)


def _blocks(folder: Path, family: Family) -> list[SkeletonBlock]:
    from sparsebench.models.replay.skeleton import build_skeleton

    return build_skeleton(Checkpoint(folder).config, family).blocks


def _summed_relative_error(states: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the sum over the tokens in ``mask`` of ‖states - expected‖ / ‖expected‖, in double precision."""
    left, right = states[mask].double(), expected[mask].double()
    return float(((left - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(sys.float_info.min)).sum())


def _run(
    model: Any,
    blocks: list[SkeletonBlock],
    inputs: Mapping[str, torch.Tensor],
    replaced: Mapping[str, torch.Tensor] = {},
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Run a model, and return the input and the output of every block by its path.

    A block's input is replaced by the one in ``replaced``, if any. Raises UnsupportedError where a block does not run.
    """
    block_inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    # A KV cache is not needed here; plain encoders have no such switch.
    switch = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}
    with removing_hooks(_hooks(model, blocks, block_inputs, outputs, replaced)):
        model.base_model(**inputs, **switch)
    if missing := [block for block in blocks if block.path not in outputs]:
        problem = f"{model.config.model_type}: its {missing[0].stack} blocks are not run one by one"
        raise UnsupportedError(problem, WAY_OUT)
    return block_inputs, outputs


def _hooks(
    model: Any,
    blocks: list[SkeletonBlock],
    block_inputs: dict[str, torch.Tensor],
    outputs: dict[str, torch.Tensor],
    replaced: Mapping[str, torch.Tensor],
) -> list[Any]:
    """Register the hooks that fill ``block_inputs`` and ``outputs`` and replace inputs; return their handles."""
    from sparsebench.models.replay.forward_until import Call, split_output

    def before(path: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(args, kwargs)
        block_inputs[path] = call.hidden
        if path in replaced:
            call = call.reading(replaced[path])
        return call.args, call.kwargs

    def after(path: str, module: Any, args: Any, output: Any) -> None:
        outputs[path] = split_output(output)[0]

    def encoded(module: Any, args: Any, output: Any) -> Any:
        block_inputs[ENCODED] = output.last_hidden_state
        if ENCODED in replaced:
            output.last_hidden_state = replaced[ENCODED]
        return output

    handles = [model.get_encoder().register_forward_hook(encoded)] if model.config.is_encoder_decoder else []
    for block in blocks:
        module = model.get_submodule(block.path)
        handles.append(module.register_forward_pre_hook(partial(before, block.path), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(after, block.path)))
    return handles
