"""Stock models with widths that differ from block to block, or that stock transformers' configuration cannot state.

config.json states them under transformers' own key, beside the dense widths:

    "per_layer_config": {"0": {"intermediate_size": 1200}, "3": {"num_attention_heads": 6, "head_dim": 64}}

Stock transformers 5.24 refuses such a config for every type that is declared here. So the model is built with the dense
widths, without storage, and each block's matrices are then shortened to its own widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from transformers import PreTrainedModel

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.files.checkpoint import TensorInfo
from sparsebench.models.files.families import PER_LAYER
from sparsebench.models.shape.architectures import per_layer_widths
from sparsebench.models.shape.axes import Axis, HeadSizes, head_sizes, shape_of

_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "num_key_value_heads")
_HEAD_WIDTHS = ("all_head_size", "split_size", "embed_dim")
"""The names of attention modules' attributes for the number of heads (``_HEAD_COUNTS``) and for the width of all heads."""


def cut_to_block_widths(model: PreTrainedModel, config: Mapping[str, Any], family: str) -> None:
    """Cut the blocks of a ``model`` without storage from the dense widths to those of ``per_layer_config``, in place.

    Raises ModelError for a block that does not exist or would be wider than dense, UnsupportedError for an undeclared
    type, for a model of two stacks and for a mixture of experts.
    """
    if not config.get(PER_LAYER):
        return
    block_widths = per_layer_widths(config)
    dense_config = {key: value for key, value in config.items() if key != PER_LAYER}
    tensors = {name: TensorInfo(name, "F32", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    stub: Any = SimpleNamespace(config=dense_config, tensors=tensors, ties={}, folder="config.json")
    model_shape = shape_of(stub, family)
    two_stacks = len(model_shape.blocks) > 1
    if two_stacks or model_shape.architecture.mixture:
        reason = "has an encoder and a decoder" if two_stacks else "is a mixture of experts"
        raise UnsupportedError(
            f"{config.get('model_type')}: `{PER_LAYER}` works only for models with one stack, without experts, and this "
            f"one {reason}",
            "give every block the same width",
        )
    (blocks,) = model_shape.blocks.values()
    if block_widths and max(block_widths) >= blocks:
        raise ModelError(f"config.json: `{PER_LAYER}`: there is no block {max(block_widths)}", f"it has {blocks}")
    for axis in model_shape.axes:
        if axis.kind == "neurons":
            key = model_shape.architecture.key(model_shape.architecture.neurons, axis.stack)
        else:
            assert model_shape.architecture.heads is not None
            key = model_shape.architecture.heads.groups or model_shape.architecture.heads.count
        remaining = block_widths.get(axis.layers[0], {}).get(key, axis.units)
        if remaining > axis.units:
            raise ModelError(
                f"config.json: `{PER_LAYER}`: block {axis.layers[0]} would have {remaining} {axis.kind} of {axis.units}",
                "the widths beside it are those of the widest block",
            )
        if remaining < axis.units:
            _cut_axis(model, axis, remaining)
            if axis.kind == "heads":
                _set_head_counts(model, axis, remaining, head_sizes(dense_config, model_shape.architecture))


def _cut_axis(model: Any, axis: Axis, remaining: int) -> None:
    """Shorten every tensor of an axis, and update the sizes that its module states."""
    lengths: dict[tuple[str, int], int] = {}
    for cut in axis.cuts:
        position = (cut.tensor, cut.dim)
        lengths[position] = lengths.get(position, 0) + cut.size * (axis.units - remaining)
    for (name, dim), removed in lengths.items():
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        parameter: torch.Tensor = module._parameters[attribute]
        shape = list(parameter.shape)
        shape[dim] -= removed
        shorter = torch.empty(shape, dtype=parameter.dtype, device="meta")
        module._parameters[attribute] = torch.nn.Parameter(shorter, requires_grad=parameter.requires_grad)
        if attribute != "weight":
            continue
        if hasattr(module, "nf"):
            module.nx, module.nf = shape
        else:
            module.out_features, module.in_features = shape


def _set_head_counts(model: Any, axis: Axis, remaining: int, dense: HeadSizes) -> None:
    """Set the numbers of remaining heads in the module that holds the queries' projection."""
    heads, groups, size = dense
    path = axis.cuts[0].tensor.rpartition(".")[0].rpartition(".")[0]
    module = model.get_submodule(path)
    for name in _HEAD_COUNTS:
        if hasattr(module, name):
            setattr(module, name, remaining if name == "num_key_value_heads" else remaining * heads // groups)
    for name in _HEAD_WIDTHS:
        if getattr(module, name, None) == heads * size:
            setattr(module, name, remaining * heads // groups * size)
    if hasattr(module, "config"):
        module.config = BlockConfig(
            module.config, {"num_attention_heads": remaining * heads // groups, "num_key_value_heads": remaining}
        )


class BlockConfig:
    """A model's configuration as one block's attention sees it: the live one, but with its own numbers of heads."""

    def __init__(self, config: Any, head_counts: Mapping[str, int]) -> None:
        self.__dict__.update(_config=config, _numbers=dict(head_counts))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up on a copy in the making, which has no attributes yet
            raise AttributeError(name)
        head_counts = self.__dict__["_numbers"]
        return head_counts[name] if name in head_counts else getattr(self.__dict__["_config"], name)
