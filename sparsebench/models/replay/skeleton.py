"""Taking a model apart for replay: it is built from its own code, without storage, and its blocks are located.

Blocks' tensors are found in the checkpoint by name. Those outside the blocks (embeddings, norms, position tables) are
read before any block runs, large tables as mappings of their file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.modules.build import (
    check_buffers,
    check_shape,
    fill,
    initialize_buffers,
    meta_model,
    named_tensors,
    run_dtype,
    stored_views,
)
from sparsebench.models.modules.experts import DOWN, Experts, split_experts
from sparsebench.models.replay.gather import PrunableLayer
from sparsebench.models.shape import topology
from sparsebench.models.shape.topology import CHOOSE_MAGNITUDE, View

_QUIET = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}


@dataclass
class SkeletonBlock:
    """One block: its module (without storage) and, for each of its parameters, the view of it in the checkpoint.

    ``dtypes`` are those that parameters run in. ``prunable`` are the linear layers of prunable matrices by the names of
    their views. ``tensors`` are the names of all of the checkpoint's tensors in this block.
    """

    stack: str
    index: int
    path: str
    module: nn.Module
    parameters: dict[str, View] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    prunable: dict[str, PrunableLayer] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()


@dataclass
class Stack:
    """One stack of the model: the module that runs it (whose tensors' names begin with ``prefix``) and its blocks."""

    name: str
    prefix: str
    module: Any
    blocks: list[SkeletonBlock]


@dataclass
class Skeleton:
    """The whole model, and its stacks in the order in which they run."""

    model: PreTrainedModel
    stacks: list[Stack]

    @property
    def blocks(self) -> list[SkeletonBlock]:
        """All blocks in the order in which they run."""
        return [block for stack in self.stacks for block in stack.blocks]


def build_skeleton(config: Mapping[str, Any], family: Family) -> Skeleton:
    """Build the model of a config.json without weights, and find its blocks.

    Raises UnsupportedError when it cannot be replayed block by block, ModelError when transformers cannot build it.
    """
    topology.refuse_replay(config)
    settings = precision.with_dtype({**config, **_QUIET}, precision.resolve("auto", config))
    model = meta_model(family, settings).eval()
    model.requires_grad_(False)
    if family == "encoder-decoder":
        modules = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    else:
        modules = {family: model.base_model}
        if getattr(model.base_model, "pooler", None) is not None:
            model.base_model.pooler = None  # it reads the last block, and nothing reads its output
    paths = {id(module): f"{path}." if path else "" for path, module in model.named_modules()}
    stacks = [
        Stack(name, paths[id(module)], module, _blocks_of(model, config, family, name))
        for name, module in modules.items()
    ]
    return Skeleton(model, stacks)


def _blocks_of(model: PreTrainedModel, config: Mapping[str, Any], family: Family, stack: str) -> list[SkeletonBlock]:
    """Return the blocks of one stack, in order, found by the numbers in their parameters' names."""
    by_path: dict[str, SkeletonBlock] = {}
    for name, parameter in model.named_parameters():
        part = topology.part(TensorInfo(name, "F32", tuple(parameter.shape)), config, family)
        if part.block is not None and part.stack == stack:
            path = _block_path(model, name, part.block)
            by_path.setdefault(path, SkeletonBlock(stack, part.block, path, model.get_submodule(path)))
    blocks = sorted(by_path.values(), key=lambda block: block.index)
    parents = {path.rpartition(".")[0] for path in by_path}
    block_list = model.get_submodule(parents.pop()) if len(parents) == 1 else None
    if not isinstance(block_list, nn.ModuleList) or [block.index for block in blocks] != list(range(len(block_list))):
        raise UnsupportedError(
            f"{config.get('model_type')}: the blocks of its {stack} are not in one ModuleList, numbered from 0, "
            "so it cannot be run block by block",
            CHOOSE_MAGNITUDE,
        )
    return blocks


def _block_path(model: PreTrainedModel, name: str, layer: int) -> str:
    """Return a parameter's name up to its block: up to the first index into a ModuleList that equals ``layer``."""
    module: nn.Module = model
    components = name.split(".")
    for depth, component in enumerate(components[:-1]):
        if isinstance(module, nn.ModuleList) and component == str(layer):
            return ".".join(components[: depth + 1])
        module = getattr(module, component)
    raise UnsupportedError(f"{name}: it is numbered like a block's tensor but stands outside a list of blocks")


def fill_skeleton(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """Find every block's tensors in the checkpoint by name, and read the tensors outside the blocks.

    Raises ModelError for a tensor that is missing or has another shape, and for a prunable one that the model does not
    have. Raises UnsupportedError for a prunable tensor that belongs to no linear layer, and for state that transformers
    does not set.
    """
    model = skeleton.model
    split_experts(model, checkpoint.tensors)
    views = stored_views(model, checkpoint.tensors)
    blocks = {block.path: block for block in skeleton.blocks}
    initialize_buffers(model, views)
    outer_names: list[str] = []
    for name, tensor in named_tensors(model):
        block = next((blocks[path] for path in _prefixes(name) if path in blocks), None)
        if block is None and not any(name.startswith(stack.prefix) for stack in skeleton.stacks):
            continue  # a head does not run
        if name not in views:
            if tensor.is_meta:
                raise ModelError(f"{checkpoint.folder}: {name} is missing", "the files are incomplete")
        elif block is None:
            outer_names.append(name)
        else:
            check_shape(name, tensor, views[name], checkpoint.tensors)
            inner = name.removeprefix(block.path + ".")
            block.parameters[inner] = views[name]
            block.dtypes[inner] = run_dtype(model, name, tensor)
    _find_layers(skeleton, checkpoint, family)
    fill(model, checkpoint, views, outer_names)
    model.requires_grad_(False)
    for stack in skeleton.stacks:
        check_buffers(stack.module, stack.name)


def _prefixes(name: str) -> Iterator[str]:
    components = name.split(".")
    return (".".join(components[:length]) for length in range(1, len(components)))


def _find_layers(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """Note for each block all of its tensors in the checkpoint, and the linear layers that hold the prunable ones."""
    parts = topology.parts(checkpoint, family)
    layer_of_view: dict[str, tuple[SkeletonBlock, str]] = {}
    for block in skeleton.blocks:
        key = (block.stack, block.index)
        block.tensors = tuple(name for name, part in parts.items() if (part.stack, part.block) == key)
        for inner, view in block.parameters.items():
            # Several layers may be rows of one stored tensor. They read the same input, so the first one counts.
            layer_of_view.setdefault(view.name, (block, inner.rpartition(".")[0]))
    for part in parts.values():
        for view in part.views:
            if view.name not in layer_of_view:
                raise ModelError(f"{view.name}: the model has no such layer", "the config is not the checkpoint's")
            block, path = layer_of_view[view.name]
            module = block.module.get_submodule(path)
            if not isinstance(module, (nn.Linear, Conv1D)):
                kind = type(module).__name__
                raise UnsupportedError(f"{view.name}: it belongs to {kind}, which is no linear layer", CHOOSE_MAGNITUDE)
            width = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
            cross = part.kind in ("cross_k", "cross_v")
            block.prunable[view.name] = PrunableLayer(view.name, module, width, cross, view, *_experts_of(block, path))


def _experts_of(block: SkeletonBlock, path: str) -> tuple[Experts | None, str]:
    """Return the experts that a layer belongs to, and a key shared by an expert's layers with the same input."""
    outer, _, name = path.rpartition(".")
    owner = block.module.get_submodule(outer.rpartition(".")[0]) if outer else None
    if not isinstance(owner, Experts):
        return None, ""
    return owner, f"{outer}.{'out' if name == DOWN else 'in'}"


def move(model: PreTrainedModel, device: str) -> None:
    """Move all tensors with storage to ``device``: parameters, buffers, plain attributes. Tied ones stay tied."""
    moved: dict[int, torch.Tensor] = {}
    for module in model.modules():
        namespaces: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, vars(module))
        for namespace in namespaces:
            for name, value in namespace.items():
                if not isinstance(value, torch.Tensor) or value.is_meta or value.device == torch.device(device):
                    continue
                if id(value) not in moved:
                    is_parameter = isinstance(value, nn.Parameter)
                    copied = value.to(device)
                    moved[id(value)] = nn.Parameter(copied, requires_grad=False) if is_parameter else copied
                namespace[name] = moved[id(value)]
