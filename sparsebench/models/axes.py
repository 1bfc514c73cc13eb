"""Coupled axes: the rows and columns of a model's tensors that can only be removed together.

A neuron of a feed-forward part is a row of gate and up (with their biases) and a column of down. Attention heads are
removed by whole groups that share keys and values: rows of q, k and v (with their biases) and columns of o. Each expert
of a mixture has its own neurons, and is removed with its row of the router. T5's heads read a table of position biases.
The first block holds it for its whole stack, so a head there is the same head in every block of the stack. Removing
an element whose weights are zero does not change the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.architectures import Architecture, Mixture, architecture, stated, widths
from sparsebench.models.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.topology import Part, View, parts, weight_tensors

if TYPE_CHECKING:
    import torch

AxisKind = Literal["neurons", "heads", "experts"]
POSITIONS = "relative_attention_bias.weight"
"""T5's table of position biases, (buckets, heads)."""


@dataclass(frozen=True)
class Cut:
    """The entries of an axis in a tensor: element u has ``size`` along ``dim``, from ``offset + u * size`` on.

    In a fused tensor (experts, …) ``expert`` limits the cut to one expert's slice.
    """

    tensor: str
    dim: int
    offset: int
    size: int
    expert: int | None = None

    @property
    def name(self) -> str:
        """The matrix's name, as ``topology.View`` gives it."""
        return View(self.tensor, self.expert).name

    def of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return a view of the part of ``tensor`` that the cut is in, and the elements' dimension in that part."""
        return (tensor, self.dim) if self.expert is None else (tensor[self.expert], self.dim - 1)

    def marks(self, going: torch.Tensor, length: int) -> torch.Tensor:
        """Return (length,) bool: True for entries along ``dim`` of elements to remove, ``going`` (units,) bool."""
        import torch

        marked = torch.zeros(length, dtype=torch.bool)
        marked[self.offset : self.offset + len(going) * self.size] = going.repeat_interleave(self.size)
        return marked


@dataclass(frozen=True)
class Axis:
    """``units`` elements that can be removed one by one, and their ``cuts`` in the tensors.

    ``outputs`` are the cuts in the matrices that read the elements (o, down), one for each of ``layers``. ``cross`` is
    True for cross-attention's heads. ``within`` names the expert that neurons belong to (``experts.3``, ``shared``); it
    has ``times`` as many neurons as config.json says. ``apart`` has the whole tensors of each expert, where experts are
    stored one by one.
    """

    kind: AxisKind
    side: str
    layers: tuple[int, ...]
    units: int
    cuts: tuple[Cut, ...]
    outputs: tuple[Cut, ...]
    cross: bool = False
    within: str = ""
    times: int = 1
    apart: tuple[tuple[str, ...], ...] = ()

    def cost(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Return the number of parameters of one element."""
        infos = ((cut, tensors[cut.tensor]) for cut in self.cuts)
        whole = sum(tensors[name].numel for name in self.apart[0]) if self.apart else 0
        return whole + sum(
            cut.size * info.numel // (info.shape[cut.dim] * (1 if cut.expert is None else info.shape[0]))
            for cut, info in infos
        )


@dataclass(frozen=True)
class ModelShape:
    """A checkpoint's axes; ``places`` are its tensors' parts by name, ``blocks`` the number of blocks of each side."""

    checkpoint: Checkpoint
    places: Mapping[str, Part]
    how: Architecture
    axes: tuple[Axis, ...]
    blocks: Mapping[str, int]

    @property
    def block_parameters(self) -> int:
        """The number of parameters inside the blocks."""
        weights = weight_tensors(self.checkpoint, self.places)
        return sum(info.numel for name, info in weights.items() if self.places[name].layer is not None)

    def key(self, axis: Axis) -> str:
        """Return the key of config.json that states the axis's number of elements; the axis has ``times`` that many."""
        how = self.how
        if axis.kind == "heads":
            return how.heads.count if how.heads else ""
        if axis.kind == "neurons" and not (how.mixture and axis.within):
            return how.key(how.neurons, axis.side)
        assert how.mixture is not None
        if axis.kind == "experts":
            return how.mixture.count
        return (axis.within == "shared" and how.mixture.shared) or how.mixture.neurons

    def of(self, kind: AxisKind) -> list[Axis]:
        """Return the axes of a kind. Raises UnsupportedError, saying why, where the type has none that can be cut."""
        found = [axis for axis in self.axes if axis.kind == kind]
        if not found:
            why = self.how.cannot(kind) or f"no block of it has {kind}"
            raise UnsupportedError(f"{self.checkpoint.config.get('model_type')}: {why}", self.how.instead(kind))
        return found


_EXPERT = re.compile(r"(?:^|\.)experts\.(?:expert_)?(\d+)\.")
_SHARED = re.compile(r"(?:^|\.)shared_experts?\.")
_ROUTING = re.compile(r"(?:^|\.)(?:gate|router)\.(?:layer\.)?(?:weight|bias|e_score_correction_bias)$")


def shape(checkpoint: Checkpoint, family: str) -> ModelShape:
    """Return the axes of a checkpoint of ``family``.

    Raises UnsupportedError for a model type that is not declared, ModelError for tensors whose sizes are not those that
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
            axes += _neurons(checkpoint, how, here) if how.neurons else ()
            axes += _experts(checkpoint, how.mixture, here) if how.mixture else ()
        axes += _heads(checkpoint, how, places, side, count) if how.heads else ()
    return ModelShape(checkpoint, places, how, tuple(axes), blocks)


def _neurons(checkpoint: Checkpoint, how: Architecture, here: Mapping[str, Part]) -> Iterable[Axis]:
    """Yield the axes of the neurons of a block's feed-forward parts, one for each expert."""
    tensors = checkpoint.tensors
    shared = how.mixture.times if how.mixture else ""
    making: dict[str, list[tuple[str, Part]]] = {}
    for name, part in here.items():
        if part.kind in ("gate", "up", "gate_up"):
            making.setdefault(_within(name), []).append((name, part))
    for name, part in here.items():
        if part.kind != "down" or part.layer is None:
            continue
        inward = _inward(part)
        units = tensors[name].shape[inward]
        within = _within(name)
        times = int(stated(checkpoint.config, shared)) if shared and within == "shared" else 1
        for expert in range(part.experts) if part.experts else (None,):
            cuts: list[Cut] = []
            for other, above in making.get(within, ()):
                both = 2 if above.kind == "gate_up" else 1
                if tensors[other].shape[_outward(above)] != both * units:
                    raise ModelError(f"{other}: {tensors[other].shape} where {name} reads {units} neurons")
                if both == 2 and how.mixture and how.mixture.mixed:
                    cuts += _rows(checkpoint, other, above, 0, 2, expert)
                    continue
                for half in range(both):
                    cuts += _rows(checkpoint, other, above, half * units, 1, expert)
            output = Cut(name, inward, 0, 1, expert)
            own = within if expert is None else f"experts.{expert}"
            yield Axis("neurons", part.side, (part.layer,), units, (*cuts, output), (output,), False, own, times)


def _within(name: str) -> str:
    """Return which of a block's feed-forward parts a tensor belongs to.

    That is an expert's (``experts.3``), the ``shared`` expert's, or "" for the dense part and for fused experts.
    """
    if found := _EXPERT.search(name):
        return f"experts.{found[1]}"
    return "shared" if _SHARED.search(name) else ""


def renumbered(name: str, number: int) -> str:
    """Return the name of an expert's own tensor with the expert's number replaced by ``number``."""
    found = _EXPERT.search(name)
    assert found is not None, name
    return f"{name[: found.start(1)]}{number}{name[found.end(1) :]}"


def _experts(checkpoint: Checkpoint, mixture: Mixture, here: Mapping[str, Part]) -> Iterable[Axis]:
    """Yield the axis of a block's experts: slices of fused tensors or tensors of their own, and rows of the router."""
    units = int(stated(checkpoint.config, mixture.count))
    cuts: list[Cut] = []
    apart: dict[int, list[str]] = {}
    for name, part in here.items():
        info = checkpoint.tensors[name]
        if found := _EXPERT.search(name):
            apart.setdefault(int(found[1]), []).append(name)
        elif part.experts or name.endswith("proj_bias") or _ROUTING.search(name):
            if info.shape[0] != units:
                raise ModelError(f"{name}: {info.shape} where config.json says {units} experts", "correct config.json")
            cuts.append(Cut(name, 0, 0, 1))
    if apart and (sorted(apart) != list(range(len(apart))) or len(apart) != units):
        raise ModelError(
            f"{min(apart.values())[0]}: one of {len(apart)} experts where config.json says {units}", "fetch it again"
        )
    if cuts:
        (side, layer) = next((part.side, part.layer) for part in here.values())
        assert layer is not None
        whole = tuple(tuple(apart[unit]) for unit in range(len(apart)))
        yield Axis("experts", side, (layer,), units, tuple(cuts), (), apart=whole)


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
    """Return the axis of one attention's groups of heads."""
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
    if prefix + "o" not in here:
        raise ModelError(f"{side or 'model'} block {layer}: no tensor of kind {prefix}o", "the files are incomplete")
    for name, part in places.items():
        if (part.side, part.layer) == (side, layer) and {*name.split(".")} & {*how.heads.beside}:
            cuts.append(Cut(name, 0, 0, checkpoint.tensors[name].shape[0] // groups))
    output = Cut(here[prefix + "o"], _inward(places[here[prefix + "o"]]), 0, heads // groups * size)
    return Axis("heads", side, (layer,), groups, (*cuts, output), (output,), cross)


def _check_rows(checkpoint: Checkpoint, name: str, part: Part, rows: int) -> None:
    stored = checkpoint.tensors[name].shape
    if stored[_outward(part)] != rows:
        raise ModelError(f"{name}: {stored} where config.json says {rows} rows", "correct config.json")


def sizes(config: Mapping[str, Any], how: Architecture, layer: int | None = None) -> tuple[int, int, int]:
    """Return the numbers of heads and of groups that share keys and values, and a head's size.

    With a ``layer``, they are that block's, which may have fewer than config.json says of all.
    """
    assert how.heads is not None
    own = widths(config).get(layer, {}) if layer is not None else {}
    whole = int(stated(config, how.heads.count))
    size = stated(config, how.heads.size) if how.heads.size else None
    heads = own.get(how.heads.count, whole)
    groups = own.get(how.heads.groups) or int(stated(config, how.heads.groups) or whole) if how.heads.groups else heads
    return heads, groups, int(size or int(stated(config, "hidden_size")) // whole)


def _inward(part: Part) -> int:
    """Return the dimension of a matrix's inputs; in a fused tensor the experts' dimension comes first."""
    return (0 if part.rows_last else 1) + (part.experts > 0)


def _outward(part: Part) -> int:
    """Return the dimension of a matrix's outputs."""
    return (1 if part.rows_last else 0) + (part.experts > 0)


def _rows(
    checkpoint: Checkpoint, name: str, part: Part, offset: int, size: int, expert: int | None = None
) -> list[Cut]:
    """Return the cuts of a matrix's rows and its bias's entries; in a fused tensor, of one ``expert``'s."""
    bias = f"{name}_bias" if part.experts else name.removesuffix("weight") + "bias"
    found = [Cut(name, _outward(part), offset, size, expert)]
    return [*found, Cut(bias, int(expert is not None), offset, size, expert)] if bias in checkpoint.tensors else found
