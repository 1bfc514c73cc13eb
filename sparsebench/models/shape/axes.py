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
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.shape.architectures import (
    Architecture,
    Heads,
    Mixture,
    architecture_of,
    config_value,
    per_layer_widths,
)
from sparsebench.models.shape.topology import Part, View, parts, weight_tensors

if TYPE_CHECKING:
    import torch

AxisKind = Literal["neurons", "heads", "experts"]
POSITION_TABLE = "relative_attention_bias.weight"
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

    def part_of(self, tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return a view of the part of ``tensor`` that the cut is in, and the elements' dimension in that part."""
        return (tensor, self.dim) if self.expert is None else (tensor[self.expert], self.dim - 1)

    def marks(self, removed: torch.Tensor, length: int) -> torch.Tensor:
        """Return (length,) bool: True for entries along ``dim`` of elements to remove, ``removed`` (units,) bool."""
        import torch

        marked = torch.zeros(length, dtype=torch.bool)
        marked[self.offset : self.offset + len(removed) * self.size] = removed.repeat_interleave(self.size)
        return marked


@dataclass(frozen=True)
class Axis:
    """``units`` elements that can be removed one by one, and their ``cuts`` in the tensors.

    ``outputs`` are the cuts in the matrices that read the elements (o, down), one for each of ``layers``. ``cross`` is
    True for cross-attention's heads. ``expert`` names the expert that neurons belong to (``experts.3``, ``shared``); it
    has ``width_factor`` times as many neurons as config.json says. ``expert_tensors`` has the whole tensors of each
    expert, where experts are stored one by one.
    """

    kind: AxisKind
    stack: str
    layers: tuple[int, ...]
    units: int
    cuts: tuple[Cut, ...]
    outputs: tuple[Cut, ...]
    cross: bool = False
    expert: str = ""
    width_factor: int = 1
    expert_tensors: tuple[tuple[str, ...], ...] = ()

    def cost(self, tensors: Mapping[str, TensorInfo]) -> int:
        """Return the number of parameters of one element."""
        total = sum(tensors[name].numel for name in self.expert_tensors[0]) if self.expert_tensors else 0
        for cut in self.cuts:
            info = tensors[cut.tensor]
            matrices = 1 if cut.expert is None else info.shape[0]
            total += cut.size * info.numel // (info.shape[cut.dim] * matrices)
        return total


@dataclass(frozen=True)
class ModelShape:
    """A checkpoint's axes; ``parts`` are its tensors' parts by name, ``blocks`` the number of blocks of each stack."""

    checkpoint: Checkpoint
    parts: Mapping[str, Part]
    architecture: Architecture
    axes: tuple[Axis, ...]
    blocks: Mapping[str, int]

    @property
    def block_parameters(self) -> int:
        """The number of parameters inside the blocks."""
        weights = weight_tensors(self.checkpoint, self.parts)
        return sum(info.numel for name, info in weights.items() if self.parts[name].block is not None)

    def key(self, axis: Axis) -> str:
        """Return the key of config.json that states the axis's number of elements, before ``width_factor``."""
        architecture = self.architecture
        if axis.kind == "heads":
            return architecture.heads.count if architecture.heads else ""
        mixture = architecture.mixture
        if axis.kind == "neurons" and not (mixture and axis.expert):
            return architecture.key(architecture.neurons, axis.stack)
        assert mixture is not None
        if axis.kind == "experts":
            return mixture.count
        return mixture.shared if axis.expert == "shared" and mixture.shared else mixture.neurons

    def view(self, cut: Cut) -> View:
        """Return the view of a cut's matrix as (out, in)."""
        return View(cut.tensor, cut.expert, self.parts[cut.tensor].transposed)

    def axes_of(self, kind: AxisKind) -> list[Axis]:
        """Return the axes of a kind. Raises UnsupportedError where the type has none that can be cut."""
        axes = [axis for axis in self.axes if axis.kind == kind]
        if not axes:
            model_type = self.checkpoint.config.get("model_type")
            raise UnsupportedError(f"{model_type}: it has no {kind} that can go", self.architecture.alternative(kind))
        return axes


_EXPERT = re.compile(r"(?:^|\.)experts\.(?:expert_)?(\d+)\.")
_SHARED = re.compile(r"(?:^|\.)shared_experts?\.")
_ROUTING = re.compile(r"(?:^|\.)(?:gate|router)\.(?:layer\.)?(?:weight|bias|e_score_correction_bias)$")


def shape_of(checkpoint: Checkpoint, family: str) -> ModelShape:
    """Return the axes of a checkpoint of ``family``.

    Raises UnsupportedError for a model type that is not declared, ModelError for tensors whose sizes are not those that
    config.json states.
    """
    architecture = architecture_of(checkpoint.config)
    model_parts = parts(checkpoint, family)
    block_counts: dict[str, int] = {}
    parts_of_block: dict[tuple[str, int], dict[str, Part]] = {}
    for name, part in model_parts.items():
        if part.block is not None:
            block_counts[part.stack] = max(block_counts.get(part.stack, 0), part.block + 1)
            parts_of_block.setdefault((part.stack, part.block), {})[name] = part
    axes: list[Axis] = []
    for stack, count in block_counts.items():
        blocks = [
            _Block(checkpoint, architecture, stack, layer, parts_of_block.get((stack, layer), {}))
            for layer in range(count)
        ]
        for block in blocks:
            axes += block.neurons() if architecture.neurons else ()
            axes += block.experts(architecture.mixture) if architecture.mixture else ()
        axes += _heads(blocks, architecture.heads) if architecture.heads else ()
    return ModelShape(checkpoint, model_parts, architecture, tuple(axes), block_counts)


@dataclass(frozen=True)
class _Block:
    """One block of a stack with its tensors' parts by name; its methods yield its axes."""

    checkpoint: Checkpoint
    architecture: Architecture
    stack: str
    layer: int
    parts: Mapping[str, Part]

    def neurons(self) -> Iterable[Axis]:
        """Yield the axes of the neurons of the feed-forward parts, one for each expert."""
        mixture = self.architecture.mixture
        names_of_expert: dict[str, list[str]] = {}
        for name, part in self.parts.items():
            if part.kind in ("gate", "up", "gate_up"):
                names_of_expert.setdefault(_expert_name(name), []).append(name)
        for name, part in self.parts.items():
            if part.kind != "down":
                continue
            input_dim, expert = _input_dim(part), _expert_name(name)
            units = self.checkpoint.tensors[name].shape[input_dim]
            width_factor = 1
            if mixture and mixture.shared_factor and expert == "shared":
                width_factor = int(config_value(self.checkpoint.config, mixture.shared_factor))
            source_names = names_of_expert.get(expert, ())
            for number in range(part.experts) if part.experts else (None,):
                cuts = [cut for source in source_names for cut in self._source_cuts(source, name, units, number)]
                output = Cut(name, input_dim, 0, 1, number)
                owner = expert if number is None else f"experts.{number}"
                yield self._axis("neurons", units, [*cuts, output], (output,), expert=owner, width_factor=width_factor)

    def _source_cuts(self, source: str, down: str, units: int, expert: int | None) -> list[Cut]:
        """Return the cuts of neurons in a gate, up or fused matrix ``source``, which ``down`` reads."""
        part = self.parts[source]
        halves = 2 if part.kind == "gate_up" else 1
        stored = self.checkpoint.tensors[source].shape
        if stored[_output_dim(part)] != halves * units:
            raise ModelError(f"{source}: {stored} where {down} reads {units} neurons")
        mixture = self.architecture.mixture
        if halves == 2 and mixture and mixture.interleaved:
            return self._row_cuts(source, 0, 2, expert)
        return [cut for half in range(halves) for cut in self._row_cuts(source, half * units, 1, expert)]

    def experts(self, mixture: Mixture) -> Iterable[Axis]:
        """Yield the axis of the experts: slices of fused tensors or tensors of their own, and rows of the router."""
        units = int(config_value(self.checkpoint.config, mixture.count))
        cuts: list[Cut] = []
        expert_tensors: dict[int, list[str]] = {}
        for name, part in self.parts.items():
            stored = self.checkpoint.tensors[name].shape
            if number := _EXPERT.search(name):
                expert_tensors.setdefault(int(number[1]), []).append(name)
            elif part.experts or name.endswith("proj_bias") or _ROUTING.search(name):
                if stored[0] != units:
                    raise ModelError(f"{name}: {stored} where config.json says {units} experts", "correct config.json")
                cuts.append(Cut(name, 0, 0, 1))
        if expert_tensors and sorted(expert_tensors) != list(range(units)):
            raise ModelError(
                f"{min(expert_tensors.values())[0]}: one of {len(expert_tensors)} experts where config.json says {units}",
                "fetch it again",
            )
        if cuts:
            tensors_of_experts = tuple(tuple(expert_tensors[unit]) for unit in range(len(expert_tensors)))
            yield self._axis("experts", units, cuts, (), expert_tensors=tensors_of_experts)

    def attention(self, declared: Heads, cross: bool = False) -> Axis:
        """Return the axis of one attention's groups of heads."""
        heads, groups, size = head_sizes(self.checkpoint.config, self.architecture, self.layer)
        prefix = "cross_" if cross else ""
        matrices = {part.kind: name for name, part in self.parts.items() if part.prunable}
        fused = None if cross else matrices.get("qkv")
        required = ("o",) if fused else ("q", "k", "v", "o")
        for kind in required:
            if prefix + kind not in matrices:
                block = f"{self.stack or 'model'} block {self.layer}"
                raise ModelError(f"{block}: no tensor of kind {prefix}{kind}", "the files are incomplete")
        row_counts = {"q": heads * size, "k": groups * size, "v": groups * size}
        cuts: list[Cut] = []
        if fused:
            self._check_rows(fused, sum(row_counts.values()))
            if declared.interleaved:
                cuts += self._row_cuts(fused, 0, 3 * size)
            else:
                offset = 0
                for length in row_counts.values():
                    cuts += self._row_cuts(fused, offset, length // groups)
                    offset += length
        else:
            for kind, length in row_counts.items():
                self._check_rows(matrices[prefix + kind], length)
                cuts += self._row_cuts(matrices[prefix + kind], 0, length // groups)
        for name in self.parts:
            if {*name.split(".")} & {*declared.other_tensors}:
                cuts.append(Cut(name, 0, 0, self.checkpoint.tensors[name].shape[0] // groups))
        output_name = matrices[prefix + "o"]
        output = Cut(output_name, _input_dim(self.parts[output_name]), 0, heads // groups * size)
        return self._axis("heads", groups, [*cuts, output], (output,), cross=cross)

    def _axis(self, kind: AxisKind, units: int, cuts: list[Cut], outputs: tuple[Cut, ...], **fields: Any) -> Axis:
        return Axis(kind, self.stack, (self.layer,), units, tuple(cuts), outputs, **fields)

    def _check_rows(self, name: str, rows: int) -> None:
        stored = self.checkpoint.tensors[name].shape
        if stored[_output_dim(self.parts[name])] != rows:
            raise ModelError(f"{name}: {stored} where config.json says {rows} rows", "correct config.json")

    def _row_cuts(self, name: str, offset: int, size: int, expert: int | None = None) -> list[Cut]:
        """Return the cuts of a matrix's rows and its bias's entries; in a fused tensor, of one ``expert``'s."""
        part = self.parts[name]
        bias = f"{name}_bias" if part.experts else name.removesuffix("weight") + "bias"
        cuts = [Cut(name, _output_dim(part), offset, size, expert)]
        if bias in self.checkpoint.tensors:
            cuts.append(Cut(bias, int(expert is not None), offset, size, expert))
        return cuts


def _heads(blocks: Sequence[_Block], declared: Heads) -> Iterable[Axis]:
    """Yield the axes of the heads of a stack; a table of positions that the blocks share makes one axis of all."""
    axes = [block.attention(declared) for block in blocks]
    tables = {block.layer: name for block in blocks for name in block.parts if name.endswith(POSITION_TABLE)}
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


def _expert_name(name: str) -> str:
    """Return which of a block's feed-forward parts a tensor belongs to.

    That is an expert's (``experts.3``), the ``shared`` expert's, or "" for the dense part and for fused experts.
    """
    if number := _EXPERT.search(name):
        return f"experts.{number[1]}"
    return "shared" if _SHARED.search(name) else ""


def with_expert_number(name: str, number: int) -> str:
    """Return the name of an expert's own tensor with the expert's number replaced by ``number``."""
    old = _EXPERT.search(name)
    assert old is not None, name
    return f"{name[: old.start(1)]}{number}{name[old.end(1) :]}"


class HeadSizes(NamedTuple):
    """The numbers of heads and of groups that share keys and values, and a head's size."""

    heads: int
    groups: int
    size: int


def head_sizes(config: Mapping[str, Any], architecture: Architecture, layer: int | None = None) -> HeadSizes:
    """Return the sizes that config.json states for all blocks or, with a ``layer``, for that block."""
    keys = architecture.heads
    assert keys is not None
    block_widths = per_layer_widths(config).get(layer, {}) if layer is not None else {}
    all_heads = int(config_value(config, keys.count))
    heads = groups = block_widths.get(keys.count, all_heads)
    if keys.groups:
        groups = block_widths.get(keys.groups) or int(config_value(config, keys.groups) or all_heads)
    size = config_value(config, keys.size) if keys.size else None
    return HeadSizes(heads, groups, int(size or int(config_value(config, "hidden_size")) // all_heads))


def _input_dim(part: Part) -> int:
    """Return the dimension of a matrix's inputs; in a fused tensor the experts' dimension comes first."""
    return (0 if part.transposed else 1) + (part.experts > 0)


def _output_dim(part: Part) -> int:
    return (1 if part.transposed else 0) + (part.experts > 0)
