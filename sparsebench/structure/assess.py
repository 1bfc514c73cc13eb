"""Count which weights of a model are zero or near zero: by tensor, and summed by layer and kind of module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import FLOAT_DTYPES, Checkpoint, TensorInfo
from sparsebench.models.files.quantized import QuantizedCheckpoint, open_checkpoint
from sparsebench.models.shape.topology import Part, parts, weight_tensors
from sparsebench.structure.numbers import EDGES, TensorStatistics, tensor_statistics


@dataclass(frozen=True)
class TensorStructure(TensorStatistics):
    """One tensor: its position in the model (see models.shape.topology.Part) and its numbers."""

    name: str
    layer: int | None
    side: str
    kind: str
    prunable: bool
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StructureResult:
    """All tensors of a model with floating-point weights, in file order; a tied tensor once.

    ``absolute`` and ``relative`` are the thresholds of ``below_absolute`` and ``below_relative``; ``edges`` are the
    histograms' bin edges as log2(|w| / rms): the first and last count are of the weights outside of them.
    ``operations_token`` is the operations for one token by ``models.modules.operations``; None where they were not counted.
    """

    family: str
    absolute: tuple[float, ...]
    relative: tuple[float, ...]
    edges: tuple[float, ...]
    tensors: tuple[TensorStructure, ...]
    operations_token: float | None = None


def assess(folder: Path, family: str, absolute: Sequence[float], relative: Sequence[float]) -> StructureResult:
    """Count zeros and near-zeros in the checkpoint at ``folder``, with one tensor in memory at a time.

    ``absolute`` are thresholds on |w|, ``relative`` on |w| / rms of the tensor. All counts are exact.
    Raises ModelError naming the tensor that holds NaN or infinity, or whose weights are not floating point.
    """
    checkpoint = open_checkpoint(folder)
    model_parts = parts(checkpoint, family)
    for name, info in checkpoint.tensors.items():
        is_matrix = model_parts[name].block is not None and len(info.shape) == 2 and name.endswith("weight")
        if is_matrix and info.dtype not in FLOAT_DTYPES:
            problem = f"{name} is stored as {info.dtype}: a quantized checkpoint"
            raise ModelError(problem, "convert it to bfloat16, float16 or float32")
    tensors = [
        _tensor(checkpoint, info, model_parts[name], absolute, relative)
        for name, info in weight_tensors(checkpoint, model_parts).items()
        if info.numel
    ]
    return StructureResult(family, tuple(absolute), tuple(relative), EDGES, tuple(tensors))


def _tensor(
    checkpoint: Checkpoint, info: TensorInfo, part: Part, absolute: Sequence[float], relative: Sequence[float]
) -> TensorStructure:
    try:
        statistics = tensor_statistics(_tensor_bytes(checkpoint, info), info.dtype, absolute, relative)
    except ModelError as error:
        raise ModelError(f"{checkpoint.folder / info.file}: {info.name}: {error.message}", error.hint) from error
    return TensorStructure(
        **vars(statistics),
        name=part.name,
        layer=part.block,
        side=part.stack,
        kind=part.kind,
        prunable=part.prunable,
        dtype=info.dtype,
        shape=info.shape,
    )


def _tensor_bytes(checkpoint: Checkpoint, info: TensorInfo) -> npt.NDArray[np.uint8]:
    if isinstance(checkpoint, QuantizedCheckpoint) and info.name in checkpoint.quantized:
        import torch

        return checkpoint.load(info.name).reshape(-1).view(torch.uint8).numpy()
    bits = np.fromfile(checkpoint.folder / info.file, np.uint8, count=info.nbytes, offset=info.begin)
    if bits.size != info.nbytes:
        raise ModelError("the file ends inside it", "fetch the file again")
    return bits


@dataclass(frozen=True)
class GroupSummary:
    """Shares of the weights in a group of tensors, all between 0 and 1.

    ``scope`` is ``all``, ``prunable``, ``layer`` (the prunable weights of one block) or ``kind``; ``side`` and
    ``layer`` or ``kind`` identify the group. ``near_absolute`` and ``near_relative`` are the shares with |w| < t and
    with |w| < t · rms of their own tensor, one for each threshold of the result; ``far_from_zero`` is 1 -
    ``near_relative``.
    """

    scope: str
    side: str
    layer: int | None
    kind: str
    tensors: int
    weights: int
    zeros: float
    near_absolute: tuple[float, ...]
    near_relative: tuple[float, ...]
    far_from_zero: tuple[float, ...]


def summary(result: StructureResult) -> tuple[GroupSummary, ...]:
    """Return rows in reading order: all, prunable, each layer, each kind.

    Layers are sorted by side and index, kinds by decreasing number of weights. A group without weights has no row.
    """
    prunable = [tensor for tensor in result.tensors if tensor.prunable]
    rows = [
        _group_summary(scope, members)
        for scope, members in (("all", result.tensors), ("prunable", prunable))
        if members
    ]
    layers: dict[tuple[str, int], list[TensorStructure]] = {}
    for tensor in prunable:
        layers.setdefault((tensor.side, tensor.layer or 0), []).append(tensor)
    # The encoder's layers come before the decoder's.
    for side, layer in sorted(layers, key=lambda block: (block[0] == "decoder", block)):
        rows.append(_group_summary("layer", layers[side, layer], side=side, layer=layer))
    kinds: dict[tuple[str, str], list[TensorStructure]] = {}
    for tensor in result.tensors:
        kinds.setdefault((tensor.side, tensor.kind), []).append(tensor)
    by_kind = [_group_summary("kind", members, side=side, kind=kind) for (side, kind), members in kinds.items()]
    return (*rows, *sorted(by_kind, key=lambda row: -row.weights))


def _group_summary(
    scope: str, tensors: Sequence[TensorStructure], side: str = "", layer: int | None = None, kind: str = ""
) -> GroupSummary:
    weights = sum(tensor.count for tensor in tensors)

    def shares(counts: Iterable[tuple[int, ...]]) -> tuple[float, ...]:
        return tuple(sum(column) / weights for column in zip(*counts, strict=True))

    near_relative = shares(tensor.below_relative for tensor in tensors)
    return GroupSummary(
        scope, side, layer, kind,
        tensors=len(tensors),
        weights=weights,
        zeros=sum(tensor.zeros for tensor in tensors) / weights,
        near_absolute=shares(tensor.below_absolute for tensor in tensors),
        near_relative=near_relative,
        far_from_zero=tuple(1 - share for share in near_relative),
    )  # fmt: skip
