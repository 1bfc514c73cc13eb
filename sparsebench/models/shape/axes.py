"""Coupled axes: the rows and columns of a model's tensors that can only be removed together.

A neuron of a feed-forward part is a row of gate and up (with their biases) and a column of down. Attention heads are
removed by whole groups that share keys and values: rows of q, k and v (with their biases) and columns of o. Each expert
of a mixture has its own neurons, and is removed with its row of the router. T5's heads read a table of position biases.
The first block holds it for its whole stack, so a head there is the same head in every block of the stack. Removing
an element whose weights are zero does not change the outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.shape.architectures import Architecture, Heads, Mixture, architecture, stated, widths
from sparsebench.models.shape.topology import Part, View, parts, weight_tensors

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
    """A checkpoint's axes; ``parts`` are its tensors' parts by name, ``blocks`` the number of blocks of each side."""

    checkpoint: Checkpoint
    parts: Mapping[str, Part]
    how: Architecture
    axes: tuple[Axis, ...]
    blocks: Mapping[str, int]

    @property
    def block_parameters(self) -> int:
        """The number of parameters inside the blocks."""
        weights = weight_tensors(self.checkpoint, self.parts)
        return sum(info.numel for name, info in weights.items() if self.parts[name].layer is not None)

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
        axes = [axis for axis in self.axes if axis.kind == kind]
        if not axes:
            why = self.how.cannot(kind) or f"no block of it has {kind}"
            raise UnsupportedError(f"{self.checkpoint.config.get('model_type')}: {why}", self.how.instead(kind))
        return axes


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
    counts: dict[str, int] = {}
    members: dict[tuple[str, int], dict[str, Part]] = {}
    for name, part in places.items():
        if part.layer is not None:
            counts[part.side] = max(counts.get(part.side, 0), part.layer + 1)
            members.setdefault((part.side, part.layer), {})[name] = part
    axes: list[Axis] = []
    for side, count in counts.items():
        blocks = [_Block(checkpoint, how, side, layer, members.get((side, layer), {})) for layer in range(count)]
        for block in blocks:
            axes += block.neurons() if how.neurons else ()
            axes += block.experts(how.mixture) if how.mixture else ()
        axes += _heads(blocks, how.heads) if how.heads else ()
    return ModelShape(checkpoint, places, how, tuple(axes), counts)


@dataclass(frozen=True)
class _Block:
    """One block of a stack with its tensors' parts by name; its methods yield its axes."""

    checkpoint: Checkpoint
    how: Architecture
    side: str
    layer: int
    parts: Mapping[str, Part]

    def neurons(self) -> Iterable[Axis]:
        """Yield the axes of the neurons of the feed-forward parts, one for each expert."""
        mixture = self.how.mixture
        sources: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            if part.kind in ("gate", "up", "gate_up"):
                sources.setdefault(_within(name), []).append(name)
        for name, part in self.parts.items():
            if part.kind != "down":
                continue
            inward, within = _inward(part), _within(name)
            units = self.checkpoint.tensors[name].shape[inward]
            times = 1
            if mixture and mixture.times and within == "shared":
                times = int(stated(self.checkpoint.config, mixture.times))
            for expert in range(part.experts) if part.experts else (None,):
                cuts = [cut for source in sources.get(within, ()) for cut in self._source(source, name, units, expert)]
                output = Cut(name, inward, 0, 1, expert)
                inside = within if expert is None else f"experts.{expert}"
                yield Axis("neurons", self.side, (self.layer,), units, (*cuts, output), (output,), False, inside, times)

    def _source(self, source: str, down: str, units: int, expert: int | None) -> list[Cut]:
        """Return the cuts of neurons in a gate, up or fused matrix ``source``, which ``down`` reads."""
        part = self.parts[source]
        halves = 2 if part.kind == "gate_up" else 1
        if self.checkpoint.tensors[source].shape[_outward(part)] != halves * units:
            stored = self.checkpoint.tensors[source].shape
            raise ModelError(f"{source}: {stored} where {down} reads {units} neurons")
        if halves == 2 and self.how.mixture and self.how.mixture.mixed:
            return self._rows(source, 0, 2, expert)
        return [cut for half in range(halves) for cut in self._rows(source, half * units, 1, expert)]

    def experts(self, mixture: Mixture) -> Iterable[Axis]:
        """Yield the axis of the experts: slices of fused tensors or tensors of their own, and rows of the router."""
        units = int(stated(self.checkpoint.config, mixture.count))
        cuts: list[Cut] = []
        apart: dict[int, list[str]] = {}
        for name, part in self.parts.items():
            stored = self.checkpoint.tensors[name].shape
            if number := _EXPERT.search(name):
                apart.setdefault(int(number[1]), []).append(name)
            elif part.experts or name.endswith("proj_bias") or _ROUTING.search(name):
                if stored[0] != units:
                    raise ModelError(f"{name}: {stored} where config.json says {units} experts", "correct config.json")
                cuts.append(Cut(name, 0, 0, 1))
        if apart and sorted(apart) != list(range(units)):
            raise ModelError(
                f"{min(apart.values())[0]}: one of {len(apart)} experts where config.json says {units}",
                "fetch it again",
            )
        if cuts:
            whole = tuple(tuple(apart[unit]) for unit in range(len(apart)))
            yield Axis("experts", self.side, (self.layer,), units, tuple(cuts), (), apart=whole)

    def attention(self, declared: Heads, cross: bool = False) -> Axis:
        """Return the axis of one attention's groups of heads."""
        heads, groups, size = sizes(self.checkpoint.config, self.how, self.layer)
        prefix = "cross_" if cross else ""
        named = {part.kind: name for name, part in self.parts.items() if part.prunable}
        lengths = {"q": heads * size, "k": groups * size, "v": groups * size}
        fused = None if cross else named.get("qkv")
        if missing := [prefix + kind for kind in (*(() if fused else lengths), "o") if prefix + kind not in named]:
            block = f"{self.side or 'model'} block {self.layer}"
            raise ModelError(f"{block}: no tensor of kind {missing[0]}", "the files are incomplete")
        sources = {fused: sum(lengths.values())} if fused else {named[prefix + kind]: lengths[kind] for kind in lengths}
        for name, rows in sources.items():
            stored = self.checkpoint.tensors[name].shape
            if stored[_outward(self.parts[name])] != rows:
                raise ModelError(f"{name}: {stored} where config.json says {rows} rows", "correct config.json")
        cuts: list[Cut] = []
        if fused and declared.mixed:
            cuts += self._rows(fused, 0, 3 * size)
        else:
            offset = 0
            for kind, length in lengths.items():
                cuts += self._rows(fused or named[prefix + kind], offset if fused else 0, length // groups)
                offset += length
        for name in self.parts:
            if {*name.split(".")} & {*declared.beside}:
                cuts.append(Cut(name, 0, 0, self.checkpoint.tensors[name].shape[0] // groups))
        output_name = named[prefix + "o"]
        output = Cut(output_name, _inward(self.parts[output_name]), 0, heads // groups * size)
        return Axis("heads", self.side, (self.layer,), groups, (*cuts, output), (output,), cross)

    def _rows(self, name: str, offset: int, size: int, expert: int | None = None) -> list[Cut]:
        """Return the cuts of a matrix's rows and its bias's entries; in a fused tensor, of one ``expert``'s."""
        part = self.parts[name]
        bias = f"{name}_bias" if part.experts else name.removesuffix("weight") + "bias"
        cuts = [Cut(name, _outward(part), offset, size, expert)]
        if bias in self.checkpoint.tensors:
            cuts.append(Cut(bias, int(expert is not None), offset, size, expert))
        return cuts


def _heads(blocks: Sequence[_Block], declared: Heads) -> Iterable[Axis]:
    """Yield the axes of the heads of a stack; a table of positions that the blocks share makes one axis of all."""
    axes = [block.attention(declared) for block in blocks]
    tables = {block.layer: name for block in blocks for name in block.parts if name.endswith(POSITIONS)}
    cuts = {layer: Cut(name, 1, 0, 1) for layer, name in tables.items()}
    if len(tables) == 1 and len(blocks) > 1:
        yield replace(
            axes[0],
            layers=tuple(range(len(blocks))),
            cuts=(*(cut for axis in axes for cut in axis.cuts), *cuts.values()),
            outputs=tuple(cut for axis in axes for cut in axis.outputs),
        )
    else:
        for block, axis in zip(blocks, axes, strict=True):
            yield replace(axis, cuts=(*axis.cuts, cuts[block.layer])) if block.layer in cuts else axis
    if any(part.kind == "cross_o" for block in blocks for part in block.parts.values()):
        yield from (block.attention(declared, cross=True) for block in blocks)


def _within(name: str) -> str:
    """Return which of a block's feed-forward parts a tensor belongs to.

    That is an expert's (``experts.3``), the ``shared`` expert's, or "" for the dense part and for fused experts.
    """
    if number := _EXPERT.search(name):
        return f"experts.{number[1]}"
    return "shared" if _SHARED.search(name) else ""


def renumbered(name: str, number: int) -> str:
    """Return the name of an expert's own tensor with the expert's number replaced by ``number``."""
    old = _EXPERT.search(name)
    assert old is not None, name
    return f"{name[: old.start(1)]}{number}{name[old.end(1) :]}"


def sizes(config: Mapping[str, Any], how: Architecture, layer: int | None = None) -> tuple[int, int, int]:
    """Return the numbers of heads and of groups that share keys and values, and a head's size.

    With a ``layer``, they are that block's, which may have fewer than config.json says of all.
    """
    assert how.heads is not None
    block = widths(config).get(layer, {}) if layer is not None else {}
    whole = int(stated(config, how.heads.count))
    size = stated(config, how.heads.size) if how.heads.size else None
    heads = block.get(how.heads.count, whole)
    groups = (
        block.get(how.heads.groups) or int(stated(config, how.heads.groups) or whole) if how.heads.groups else heads
    )
    return heads, groups, int(size or int(stated(config, "hidden_size")) // whole)


def _inward(part: Part) -> int:
    """Return the dimension of a matrix's inputs; in a fused tensor the experts' dimension comes first."""
    return (0 if part.rows_last else 1) + (part.experts > 0)


def _outward(part: Part) -> int:
    """Return the dimension of a matrix's outputs."""
    return (1 if part.rows_last else 0) + (part.experts > 0)
