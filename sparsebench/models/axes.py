"""Coupled axes: the rows and columns of a model's tensors that can only go together.

A neuron of a feed-forward part is a row of gate and up (with its bias) and a column of down; an attention head goes with
its whole group of queries that share keys and values: rows of q, k and v (with their biases) and columns of o. T5's heads
read a table of position biases that the first block holds for its whole stack, so that a head there is the same head in
every block of the stack. Where the weights of an element are zero, removing it leaves the outputs as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.architectures import Architecture, architecture, stated, widths
from sparsebench.models.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.topology import Part, parts

if TYPE_CHECKING:
    import torch

Kind = Literal["neurons", "heads"]
POSITIONS = "relative_attention_bias.weight"
"""T5's table of position biases, (buckets, heads)."""


@dataclass(frozen=True)
class Cut:
    """Where one axis meets one tensor: along ``dim``, from ``offset`` on, element u has the ``size`` entries from
    ``offset + u * size`` on."""

    tensor: str
    dim: int
    offset: int
    size: int

    def marks(self, going: torch.Tensor, length: int) -> torch.Tensor:
        """Which of the ``length`` entries along ``dim`` belong to the elements that are ``going`` (units,) bool."""
        import torch

        marked = torch.zeros(length, dtype=torch.bool)
        marked[self.offset : self.offset + len(going) * self.size] = going.repeat_interleave(self.size)
        return marked


@dataclass(frozen=True)
class Axis:
    """``units`` elements that can go one by one, and where they lie.

    ``outputs`` are the tensors of the matrices that read them (o, down), one for each of ``layers`` and kind of attention;
    ``cross`` says that it is cross-attention's.
    """

    kind: Kind
    side: str
    layers: tuple[int, ...]
    units: int
    cuts: tuple[Cut, ...]
    outputs: tuple[Cut, ...]
    cross: bool = False

    def cost(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Parameters of one element."""
        infos = ((cut, tensors[cut.tensor]) for cut in self.cuts)
        return sum(cut.size * info.numel // info.shape[cut.dim] for cut, info in infos)


@dataclass(frozen=True)
class Shape:
    """A checkpoint's axes and its blocks: ``blocks`` gives each side's number of them."""

    checkpoint: Checkpoint
    places: Mapping[str, Part]
    how: Architecture
    axes: tuple[Axis, ...]
    blocks: Mapping[str, int]

    @property
    def block_parameters(self) -> int:
        """Parameters inside the blocks."""
        tensors = self.checkpoint.tensors
        return sum(info.numel for name, info in tensors.items() if self.places[name].layer is not None)

    def of(self, kind: Kind) -> list[Axis]:
        """The axes of a kind. Raises UnsupportedError, saying why, where the type has none that can be cut."""
        found = [axis for axis in self.axes if axis.kind == kind]
        if not found:
            raise UnsupportedError(f"{self.checkpoint.config.get('model_type')}: {_NONE[kind]}", _INSTEAD[kind])
        return found


_NONE = {
    "neurons": "its feed-forward width follows from its hidden size, so that no neuron can go",
    "heads": "its heads share norms, tables or slopes, or no key says of two stacks that they have fewer, so that no head can go",
}
_INSTEAD = {"neurons": "remove whole blocks: `shrink: sleb, blocks: 2`", "heads": "`of: neurons`"}


def shape(checkpoint: Checkpoint, family: str) -> Shape:
    """The axes of a checkpoint of ``family``.

    Raises UnsupportedError for a model type that is not declared, ModelError for tensors that do not have the sizes that
    config.json states.
    """
    how = architecture(checkpoint.config)
    places = parts(checkpoint, family)
    blocks: dict[str, int] = {}
    for place in places.values():
        if place.layer is not None:
            blocks[place.side] = max(blocks.get(place.side, 0), place.layer + 1)
    axes: list[Axis] = []
    for side, count in blocks.items():
        for layer in range(count):
            here = {name: part for name, part in places.items() if (part.side, part.layer) == (side, layer)}
            axes += _neurons(checkpoint, here) if how.neurons else ()
        axes += _heads(checkpoint, how, places, side, count) if how.heads else ()
    return Shape(checkpoint, places, how, tuple(axes), blocks)


def _neurons(checkpoint: Checkpoint, here: Mapping[str, Part]) -> Iterable[Axis]:
    tensors = checkpoint.tensors
    for name, part in here.items():
        if part.kind != "down" or part.layer is None:
            continue
        inward = _inward(part)
        units = tensors[name].shape[inward]
        cuts = []
        for other, above in here.items():
            if above.kind not in ("gate", "up", "gate_up"):
                continue
            times = 2 if above.kind == "gate_up" else 1
            if tensors[other].shape[1 - _inward(above)] != times * units:
                raise ModelError(f"{other}: {tensors[other].shape} where {name} reads {units} neurons")
            for half in range(times):
                cuts += _rows(checkpoint, other, above, half * units, 1)
        output = Cut(name, inward, 0, 1)
        yield Axis("neurons", part.side, (part.layer,), units, (*cuts, output), (output,))


def _heads(
    checkpoint: Checkpoint, how: Architecture, places: Mapping[str, Part], side: str, count: int
) -> Iterable[Axis]:
    own = [_attention(checkpoint, how, places, side, layer, False) for layer in range(count)]
    tables = {part.layer: name for name, part in places.items() if name.endswith(POSITIONS) and part.side == side}
    if len(tables) == 1 and count > 1:
        cuts = (*tuple(cut for axis in own for cut in axis.cuts), Cut(tables[0], 1, 0, 1))
        outputs = tuple(cut for axis in own for cut in axis.outputs)
        yield Axis("heads", side, tuple(range(count)), own[0].units, cuts, outputs)
    else:
        for axis in own:
            table = (Cut(tables[axis.layers[0]], 1, 0, 1),) if axis.layers[0] in tables else ()
            yield Axis("heads", side, axis.layers, axis.units, axis.cuts + table, axis.outputs)
    if any(part.kind == "cross_o" and part.side == side for part in places.values()):
        for layer in range(count):
            yield _attention(checkpoint, how, places, side, layer, True)


def _attention(
    checkpoint: Checkpoint, how: Architecture, places: Mapping[str, Part], side: str, layer: int, cross: bool
) -> Axis:
    """The groups of heads of one attention."""
    assert how.heads is not None
    heads, groups, size = sizes(checkpoint.config, how, layer)
    prefix = "cross_" if cross else ""
    here = {
        part.kind: name for name, part in places.items() if (part.side, part.layer) == (side, layer) and part.prunable
    }
    cuts: list[Cut] = []
    fused = here.get("qkv") if not cross else None
    rows = {"q": heads * size, "k": groups * size, "v": groups * size}
    if fused:
        _check_rows(checkpoint, fused, places[fused], sum(rows.values()))
    if fused and how.heads.mixed:
        cuts += _rows(checkpoint, fused, places[fused], 0, 3 * size)
    else:
        offset = 0
        for kind, length in rows.items():
            name = fused or here.get(prefix + kind)
            if name is None:
                raise ModelError(
                    f"{side or 'model'} block {layer}: no tensor of kind {prefix}{kind}", "the files are incomplete"
                )
            cuts += _rows(checkpoint, name, places[name], offset if fused else 0, length // groups)
            offset += length
            if not fused:
                _check_rows(checkpoint, name, places[name], length)
    output = Cut(here[prefix + "o"], _inward(places[here[prefix + "o"]]), 0, heads // groups * size)
    return Axis("heads", side, (layer,), groups, (*cuts, output), (output,), cross)


def _check_rows(checkpoint: Checkpoint, name: str, part: Part, rows: int) -> None:
    stored = checkpoint.tensors[name].shape
    if stored[1 - _inward(part)] != rows:
        raise ModelError(f"{name}: {stored} where config.json says {rows} rows", "correct config.json")


def sizes(config: Mapping[str, Any], how: Architecture, layer: int | None = None) -> tuple[int, int, int]:
    """Heads, groups of heads that share keys and values, and a head's size; of one block, where its own are fewer."""
    assert how.heads is not None
    own = widths(config).get(layer, {}) if layer is not None else {}
    whole = int(stated(config, how.heads.count))
    size = stated(config, how.heads.size) if how.heads.size else None
    heads = own.get(how.heads.count, whole)
    groups = own.get(how.heads.groups) or int(stated(config, how.heads.groups) or whole) if how.heads.groups else heads
    return heads, groups, int(size or int(stated(config, "hidden_size")) // whole)


def _inward(part: Part) -> int:
    """The dimension along which a matrix reads."""
    return 0 if part.rows_last else 1


def _rows(checkpoint: Checkpoint, name: str, part: Part, offset: int, size: int) -> list[Cut]:
    """Rows of a matrix and entries of its bias."""
    bias = name.removesuffix("weight") + "bias"
    found = [Cut(name, 1 - _inward(part), offset, size)]
    return [*found, Cut(bias, 0, offset, size)] if bias in checkpoint.tensors else found
