"""Taking a model apart for replay: it is built from its own code, without storage, and its blocks are located."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsebench.errors import UnsupportedError
from sparsebench.models import precision, topology
from sparsebench.models.checkpoint import TensorInfo
from sparsebench.models.families import meta_model
from sparsebench.models.topology import LOOKS_AT_WEIGHTS, View

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family
    from sparsebench.models.gather import PrunableLayer

_QUIET = {"use_cache": False, "output_attentions": False, "output_hidden_states": False, "return_dict": True}


@dataclass
class SkeletonBlock:
    """One block: its module (without storage) and, for each of its parameters, the view of it in the checkpoint.

    ``dtypes`` are those that parameters run in. ``prunable`` are the linear layers of prunable matrices by the names of
    their views. ``tensors`` are the names of all of the checkpoint's tensors in this block.
    """

    side: str
    index: int
    path: str
    module: torch.nn.Module
    parameters: dict[str, View] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    prunable: dict[str, PrunableLayer] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()


@dataclass
class Stack:
    """One side of the model: the module that runs it (whose tensors' names begin with ``prefix``) and its blocks."""

    side: str
    prefix: str
    module: Any
    places: list[SkeletonBlock]


@dataclass
class Skeleton:
    """The whole model, and its stacks in the order in which they run."""

    model: PreTrainedModel
    stacks: list[Stack]


def survey(config: Mapping[str, Any], family: Family) -> Skeleton:
    """Build the model of a config.json without weights, and find its blocks.

    Raises UnsupportedError when it cannot be replayed block by block, ModelError when transformers cannot build it.
    """
    topology.refuse_replay(config)
    stated = precision.stated({**config, **_QUIET}, precision.resolve("auto", config))
    model = meta_model(family, stated).eval()
    model.requires_grad_(False)
    if family == "encoder-decoder":
        sides = {"encoder": model.get_encoder(), "decoder": model.get_decoder()}
    else:
        sides = {family: model.base_model}
        if getattr(model.base_model, "pooler", None) is not None:
            model.base_model.pooler = None  # it reads the last block, and nothing reads its output
    paths = {id(module): f"{path}." if path else "" for path, module in model.named_modules()}
    return Skeleton(
        model,
        [Stack(side, paths[id(m)], m, _places(model, config, family, side)) for side, m in sides.items()],
    )


def _places(model: PreTrainedModel, config: Mapping[str, Any], family: Family, side: str) -> list[SkeletonBlock]:
    """Return the blocks of one side, in order, found by the numbers in their parameters' names."""
    import torch

    found: dict[str, SkeletonBlock] = {}
    for name, parameter in model.named_parameters():
        part = topology.part(TensorInfo(name, "F32", tuple(parameter.shape), "", 0, 0), config, family)
        if part.layer is None or part.side != side:
            continue
        path = _block_path(model, name, part.layer)
        found.setdefault(path, SkeletonBlock(side, part.layer, path, model.get_submodule(path)))
    places = sorted(found.values(), key=lambda place: place.index)
    parents = {place.path.rpartition(".")[0] for place in places}
    holder = model.get_submodule(parents.pop()) if len(parents) == 1 else None
    if not isinstance(holder, torch.nn.ModuleList) or [place.index for place in places] != list(range(len(holder))):
        raise UnsupportedError(
            f"{config.get('model_type')}: the blocks of its {side} are not in one ModuleList, numbered from 0, "
            "so it cannot be run block by block",
            LOOKS_AT_WEIGHTS,
        )
    return places


def _block_path(model: PreTrainedModel, name: str, layer: int) -> str:
    """Return a parameter's name up to its block: up to the first index into a ModuleList that equals ``layer``."""
    import torch

    module: torch.nn.Module = model
    steps = name.split(".")
    for depth, step in enumerate(steps[:-1]):
        if isinstance(module, torch.nn.ModuleList) and step == str(layer):
            return ".".join(steps[: depth + 1])
        module = getattr(module, step)
    raise UnsupportedError(f"{name}: it is numbered like a block's tensor but stands outside a list of blocks")
