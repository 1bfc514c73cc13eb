"""Write a smaller model's folder: what stays of every tensor, under its new name, and the config to match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import TensorInfo, torch_dtype
from sparsebench.models.files.families import PER_LAYER, transformers_config
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.build import meta_model
from sparsebench.models.shape.architectures import per_layer_widths
from sparsebench.models.shape.axes import POSITION_TABLE, Axis, Cut, ModelShape, with_expert_number
from sparsebench.models.shape.topology import spellings, with_block_number

_NUMBERED = ("moe_layers", "mlp_only_layers")
"""Keys of config.json that list blocks by number: those that have experts, and those that have none."""


@dataclass
class SmallerModel:
    """What is left of a model.

    ``kept`` has the elements of each axis that stay, in order, and ``blocks`` the blocks of each stack that stay, in
    order. ``config`` has the changed keys of config.json. ``biases`` (name: length) are added, in the dtype of their
    matrix.
    """

    shape: ModelShape
    kept: dict[Axis, list[int]] = field(default_factory=dict)
    blocks: dict[str, list[int]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    biases: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._cuts: dict[str, list[tuple[Axis, Cut]]] = {}
        self._moved: dict[str, str | None] = {}
        for axis, units in self.kept.items():
            for cut in axis.cuts:
                self._cuts.setdefault(cut.tensor, []).append((axis, cut))
            for unit, names in enumerate(axis.expert_tensors):
                number = units.index(unit) if unit in units else None
                self._moved |= {name: None if number is None else with_expert_number(name, number) for name in names}

    @property
    def loading_note(self) -> str:
        """A note on the key of config.json that stock transformers refuses; empty where it loads the model."""
        widths = {**self.shape.checkpoint.config, **self.config}.get(PER_LAYER)
        return f"config.json has `{PER_LAYER}`: sparsebench loads it, stock transformers refuses it" if widths else ""

    def new_name(self, stored: str) -> str | None:
        """Return a tensor's name in the smaller model; None where it goes with its block or its expert."""
        if stored in self._moved:
            return self._moved[stored]
        part = self.shape.parts[stored]
        if part.block is None or part.stack not in self.blocks:
            return stored
        kept_blocks = self.blocks[part.stack]
        if part.block in kept_blocks:
            return with_block_number(stored, kept_blocks.index(part.block))
        # T5's one table of positions serves the whole stack: it moves to block 0 when its own block goes.
        parts = self.shape.parts.items()
        tables = [name for name, other in parts if other.stack == part.stack and name.endswith(POSITION_TABLE)]
        return with_block_number(stored, 0) if tables == [stored] else None

    def kept_index(self, stored: str, dim: int, expert: int | None = None) -> torch.Tensor | None:
        """Return the entries of a tensor, or of an ``expert``'s slice of it, that stay along ``dim``; None for all."""
        length = self.shape.checkpoint.tensors[stored].shape[dim]
        removed = torch.zeros(length, dtype=torch.bool)
        for axis, cut in self._cuts.get(stored, ()):
            if cut.dim == dim and cut.expert == expert:
                removed |= self.removed_entries(axis, cut, length)
        return torch.nonzero(~removed).flatten() if bool(removed.any()) else None

    def removed_entries(self, axis: Axis, cut: Cut, length: int) -> torch.Tensor:
        """Return which of the ``length`` entries along a cut go with the axis's elements, (length,) bool."""
        removed_units = torch.ones(axis.units, dtype=torch.bool)
        removed_units[self.kept[axis]] = False
        return cut.marks(removed_units, length)

    def by_expert(self, stored: str) -> bool:
        """Whether each expert's slice of a tensor loses entries of its own."""
        return any(cut.expert is not None for _, cut in self._cuts.get(stored, ()))

    def add_biases(self, names: Sequence[str]) -> None:
        """Add biases to matrices that lack them, each as long as its matrix has rows left."""
        for name in names:
            weight = name.removesuffix("bias") + "weight"
            row_dim = 1 if self.shape.parts[weight].transposed else 0
            index = self.kept_index(weight, row_dim)
            self.biases[name] = self.shape.checkpoint.tensors[weight].shape[row_dim] if index is None else len(index)

    def cut(self, stored: str, tensor: torch.Tensor) -> torch.Tensor:
        """Return what is left of a tensor."""
        if self.by_expert(stored):
            return torch.stack([self._selected(stored, matrix, expert) for expert, matrix in enumerate(tensor)])
        return self._selected(stored, tensor)

    def _selected(self, stored: str, tensor: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        for dim in range(tensor.ndim):
            index = self.kept_index(stored, dim + (expert is not None), expert)
            tensor = tensor if index is None else tensor.index_select(dim, index)
        return tensor

    def layout(self) -> list[TensorInfo]:
        """Return the tensors of the smaller model."""
        tensors = self.shape.checkpoint.tensors
        remaining: list[tuple[str, str, tuple[int, ...]]] = []
        for info in tensors.values():
            name = self.new_name(info.name)
            if name is None:
                continue
            # All experts keep the same number of entries: the first one stands for them.
            expert = 0 if self.by_expert(info.name) else None
            indices = [self.kept_index(info.name, dim, expert) for dim in range(len(info.shape))]
            new_shape = tuple(
                length if index is None else len(index) for length, index in zip(info.shape, indices, strict=True)
            )
            remaining.append((name, info.dtype, new_shape))
        for name, length in self.biases.items():
            remaining.append((name, tensors[name.removesuffix("bias") + "weight"].dtype, (length,)))
        return lay_out(remaining)


def without_blocks(shape: ModelShape, removed: Mapping[str, Sequence[int]]) -> SmallerModel:
    """Return the model without the blocks in ``removed``, by stack. Raises UnsupportedError as ``per_block_keys``."""
    kept_blocks: dict[str, list[int]] = {}
    config: dict[str, Any] = {}
    for stack, blocks in removed.items():
        kept_blocks[stack] = sorted({*range(shape.blocks[stack])} - {*blocks})
        config |= per_block_keys(shape.checkpoint.config, shape.blocks[stack], kept_blocks[stack])
    # The numbers of blocks last: an encoder-decoder may state its encoder's as `num_hidden_layers`, a decoder's key.
    for stack, blocks in kept_blocks.items():
        config[shape.architecture.key(shape.architecture.layers, stack)] = len(blocks)
    if "num_hidden_layers" in shape.checkpoint.config and "encoder" in kept_blocks and len(shape.blocks) == 2:
        config["num_hidden_layers"] = len(kept_blocks["encoder"])
    return SmallerModel(shape, blocks=kept_blocks, config=config)


def per_block_keys(config: Mapping[str, Any], block_count: int, kept_blocks: Sequence[int]) -> dict[str, Any]:
    """Return the per-block keys of config.json where only the blocks in ``kept_blocks`` are left: attention, experts, widths.

    A list that transformers would make from the number of blocks is written where its entries differ. Raises
    UnsupportedError where what a block does depends on its number.
    """
    if config.get("scale_attn_by_inverse_layer_idx"):
        raise UnsupportedError(
            "config.json: `scale_attn_by_inverse_layer_idx`: what a block does depends on its number, which would change",
            "remove neurons instead",
        )
    changed: dict[str, Any] = {}
    full_config = transformers_config(config).to_dict()
    for key in _NUMBERED:
        if key in full_config and (config.get(key) is not None or full_config[key]):
            changed[key] = [number for number, layer in enumerate(kept_blocks) if layer in (full_config[key] or ())]
    if isinstance(sparse_step := full_config.get("decoder_sparse_step"), int) and sparse_step > 1:
        # Blocks that have no experts because of their number are now listed.
        without_experts = {*(full_config["mlp_only_layers"] or ())}
        without_experts |= {layer for layer in range(block_count) if (layer + 1) % sparse_step}
        changed["decoder_sparse_step"] = 1
        changed["mlp_only_layers"] = [number for number, layer in enumerate(kept_blocks) if layer in without_experts]
    if isinstance(first_dense := full_config.get("first_k_dense_replace"), int):
        changed["first_k_dense_replace"] = sum(layer < first_dense for layer in kept_blocks)
    for key, value in full_config.items():
        if "layer" in key and key not in _NUMBERED and isinstance(value, list) and len(value) == block_count:
            differs = any(entry != value[0] for entry in value)
            if differs or config.get(key) is not None:
                changed[key] = [value[layer] for layer in kept_blocks]
    if "attention_layers" in changed and "attention_types" in full_config:
        # GPT-Neo reads the kinds of attention only in this form.
        changed["attention_types"] = [[[kind], 1] for kind in changed["attention_layers"]]
    if block_widths := per_layer_widths(config):
        widths = {str(number): block_widths.get(layer) for number, layer in enumerate(kept_blocks)}
        changed[PER_LAYER] = {number: width for number, width in widths.items() if width} or None
    if isinstance(config.get("max_window_layers"), int):
        changed["max_window_layers"] = sum(layer < config["max_window_layers"] for layer in kept_blocks)
    return changed


def stock_model(family: Family, config: Mapping[str, Any], kind: Any = None) -> PreTrainedModel:
    """Build the model of a smaller shape without storage. Raises UnsupportedError where transformers cannot."""
    try:
        return meta_model(family, config, kind=kind)
    except (ModelError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        problem = f"stock transformers has no {config.get('model_type')} of this shape: {reason}"
        raise UnsupportedError(problem, "choose other numbers") from error


def write_smaller(
    smaller: SmallerModel,
    family: Family,
    folder: Path,
    provenance: Mapping[str, Any],
    ready: Mapping[str, torch.Tensor] = {},
) -> CheckpointWriter:
    """Write the smaller model; tensors of ``ready`` (by their names there) replace what would be cut from the checkpoint.

    Return the closed writer, whose ``left_out`` lists what was left out of the folder.
    """
    with open_writer(smaller, family, folder) as writer:
        for name, tensor in ready.items():
            writer.write(name, tensor)
        write_rest(smaller, writer, provenance)
    return writer


def open_writer(smaller: SmallerModel, family: Family, folder: Path) -> CheckpointWriter:
    """Complete and check the smaller model's config, and return a writer for the model."""
    layout = complete_and_lay_out(smaller, family)
    return CheckpointWriter(folder, layout, smaller.shape.checkpoint.folder, smaller.config)


def complete_and_lay_out(smaller: SmallerModel, family: Family) -> list[TensorInfo]:
    """Add the aliases of changed keys to the smaller model's config, and return its tensors.

    Raises UnsupportedError, naming the tensor or the reason, where stock transformers does not build it in this shape.
    """
    smaller.config |= aliased_keys(smaller.shape.checkpoint.config, smaller.config)
    config = {**smaller.shape.checkpoint.config, **smaller.config}
    layout = smaller.layout()
    model = stock_model(family, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for info in layout:
        for name in spellings(model, info.name):
            if name in shapes and shapes[name] != info.shape:
                model_type = config.get("model_type")
                raise UnsupportedError(
                    f"{model_type}: {info.name} would be {info.shape} where stock transformers builds {shapes[name]}",
                    "remove whole blocks, or other rows",
                )
    return layout


def aliased_keys(config: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the changed keys under other names that config.json has as well: transformers may read either."""
    aliased: dict[str, Any] = {}
    for alias, real in type(transformers_config(config)).attribute_map.items():
        for name, twin in ((alias, real), (real, alias)):
            if twin in changed and name in config and name not in changed:
                aliased[name] = changed[twin]
    return aliased


def write_rest(smaller: SmallerModel, writer: CheckpointWriter, provenance: Mapping[str, Any]) -> None:
    """Write what is not written yet, new biases as zeros, and give the folder its name."""
    for stored in smaller.shape.checkpoint.tensors:
        name = smaller.new_name(stored)
        if name in writer.missing:
            writer.write(name, smaller.cut(stored, smaller.shape.checkpoint.load(stored)))
    for name in smaller.biases:
        if name in writer.missing:
            info = writer.missing[name]
            writer.write(name, torch.zeros(info.shape, dtype=torch_dtype(info.dtype)))
    loads = {"loads": smaller.loading_note} if smaller.loading_note else {}
    writer.close({**provenance, **loads})
