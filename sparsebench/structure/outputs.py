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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.hooks import hooked

if TYPE_CHECKING:
    import torch

    from sparsebench.manifest.schema import Family
    from sparsebench.models.batch import Batch

VERSION = 2
"""Bumped by hand when a change here can change a result."""
GROUP = 1024
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
    """The errors of all blocks in order, and the number of ``tokens`` that were read, padding left out, of all sides."""

    tokens: int
    blocks: tuple[BlockError, ...]


@dataclass(frozen=True)
class _Place:
    side: str
    index: int
    path: str


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

    from sparsebench.models.load import load_model

    places = _places(dense, variant, family)
    models: list[Any] = [load_model(folder, family, dtype, device) for folder in (dense, variant)]
    sizes = {tuple(model.get_input_embeddings().weight.shape) for model in models}
    if len(sizes) > 1:
        raise UnsupportedError(f"{variant}: its embeddings are not of the dense model's shape", WAY_OUT)
    sums = [[0.0, 0.0] for _ in places]
    samples, tokens = len(batch.input_ids), Counter[str]()
    step = max(1, GROUP // batch.input_ids.shape[1])
    for first in range(0, samples, step):
        rows = slice(first, first + step)
        inputs = batch.inputs(rows, device)
        with torch.no_grad():
            reads, wanted = _run(models[0], places, inputs)
            found = [_run(models[1], places, inputs, given)[1] for given in (reads, {})]
        masks = {place.side: batch.mask(place.side)[rows].to(device) for place in places}
        tokens.update({side: int(mask.sum()) for side, mask in masks.items()})
        for errors, place in zip(sums, places, strict=True):
            for column, outputs in enumerate(found):
                errors[column] += _difference(outputs[place.path], wanted[place.path], masks[place.side])
            if not all(map(math.isfinite, errors)):
                raise ModelError(f"{variant}: what {place.side} block {place.index} gives is not finite", "try float32")
        if progress:
            progress(min(samples, first + step), samples)
    return OutputsResult(
        tokens.total(),
        tuple(
            BlockError(place.side, place.index, *(one / tokens[place.side] for one in row))
            for row, place in zip(sums, places, strict=True)
        ),
    )


def _places(dense: Path, variant: Path, family: Family) -> list[_Place]:
    """Return the blocks of both models. Raises UnsupportedError where they differ."""
    from sparsebench.models import blocks
    from sparsebench.models.checkpoint import Checkpoint

    found = [
        [
            _Place(stack.side, place.index, place.path)
            for stack in blocks.survey(Checkpoint(folder).config, family).stacks
            for place in stack.places
        ]
        for folder in (dense, variant)
    ]
    if found[0] != found[1]:
        raise UnsupportedError(
            f"{variant}: it has {len(found[1])} blocks where the dense model has {len(found[0])}", WAY_OUT
        )
    return found[0]


def _difference(found: torch.Tensor, wanted: torch.Tensor, mask: torch.Tensor) -> float:
    """Return the sum over the tokens in ``mask`` of ‖found - wanted‖ / ‖wanted‖, in double precision."""
    left, right = (states[mask].double() for states in (found, wanted))
    return float(((left - right).norm(dim=-1) / right.norm(dim=-1).clamp_min(sys.float_info.min)).sum())


def _run(
    model: Any, places: list[_Place], inputs: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor] = {}
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Run a model, and return the input and the output of every block by its path.

    A block's input is replaced by the one ``given`` for it, if any. Raises UnsupportedError where a block does not run.
    """
    reads: dict[str, torch.Tensor] = {}
    gives: dict[str, torch.Tensor] = {}
    with hooked(_hooks(model, places, reads, gives, given)):
        model.base_model(**inputs, use_cache=False) if _caches(model) else model.base_model(**inputs)
    missing = [place for place in places if place.path not in gives]
    if missing:
        raise UnsupportedError(
            f"{model.config.model_type}: its {missing[0].side} blocks are not run one by one", WAY_OUT
        )
    return reads, gives


def _caches(model: Any) -> bool:
    """Return whether a model would keep a KV cache, which is not needed here; plain encoders have no such switch."""
    return bool(getattr(model.config, "use_cache", False))


def _hooks(
    model: Any,
    places: list[_Place],
    reads: dict[str, torch.Tensor],
    gives: dict[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
) -> list[Any]:
    """Register the hooks that fill ``reads`` and ``gives`` and replace inputs; return their handles."""

    def before(path: str) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
            held = args[0] if args else named.get("hidden_states")
            if held is None:
                raise UnsupportedError(f"{path}: what it reads is not called `hidden_states`", WAY_OUT)
            reads[path] = held
            if path not in given:
                return None
            return ((given[path], *args[1:]), named) if args else (args, {**named, "hidden_states": given[path]})

        return hook

    def behind(path: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            gives[path] = output[0] if isinstance(output, tuple) else output

        return hook

    def encoded(module: Any, args: Any, output: Any) -> Any:
        reads[ENCODED] = output.last_hidden_state
        if ENCODED in given:
            output.last_hidden_state = given[ENCODED]
        return output

    hooks = [model.get_encoder().register_forward_hook(encoded)] if model.config.is_encoder_decoder else []
    for place in places:
        block = model.get_submodule(place.path)
        hooks += [block.register_forward_pre_hook(before(place.path), with_kwargs=True)]
        hooks += [block.register_forward_hook(behind(place.path))]
    return hooks
