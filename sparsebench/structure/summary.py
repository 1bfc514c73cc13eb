"""The same counts, added up: overall, by layer and by kind of module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsebench.structure.assess import StructureResult, TensorStructure


@dataclass(frozen=True)
class GroupSummary:
    """Shares over a group of tensors, all between 0 and 1.

    ``scope`` is ``all``, ``prunable``, ``layer`` (the prunable weights of one block) or ``kind``; ``side`` and
    ``layer`` or ``kind`` say which. ``near_absolute`` and ``near_relative`` are the shares with |w| < t and
    |w| < t · rms of their own tensor, per threshold of the result; ``far_from_zero`` is 1 - ``near_relative``.
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
    """Rows in the order in which a person reads them: all, prunable, each layer, each kind.

    Layers come by side and index, kinds in order of size. A group without weights has no row.
    """
    prunable = [tensor for tensor in result.tensors if tensor.prunable]
    rows = [_row(scope, members) for scope, members in (("all", result.tensors), ("prunable", prunable)) if members]
    layers: dict[tuple[str, int], list[TensorStructure]] = {}
    for tensor in prunable:
        layers.setdefault((tensor.side, tensor.layer or 0), []).append(tensor)
    # An encoder comes before the decoder that reads it.
    for (side, layer), members in sorted(layers.items(), key=lambda item: (item[0][0] == "decoder", item[0])):
        rows.append(_row("layer", members, side=side, layer=layer))
    kinds: dict[tuple[str, str], list[TensorStructure]] = {}
    for tensor in result.tensors:
        kinds.setdefault((tensor.side, tensor.kind), []).append(tensor)
    by_kind = [_row("kind", members, side=side, kind=kind) for (side, kind), members in kinds.items()]
    return (*rows, *sorted(by_kind, key=lambda row: -row.weights))


def _row(
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
