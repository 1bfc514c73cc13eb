"""A model's tensors from a checkpoint: each block's found by name, the others read before any block runs.

What stands outside the blocks (embeddings, norms, position tables) is filled here, large tables as mappings of their
file; buffers that no checkpoint has are what transformers itself makes of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models import anatomy
from sparsebench.models.checkpoint import Checkpoint, TensorInfo, torch_dtype
from sparsebench.models.gather import Reader

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family
    from sparsebench.models.blocks import Skeleton

MAPPED = 16 << 20
"""Bytes from which a tensor outside the blocks is mapped instead of read: a vocabulary's table is looked up, not used."""

_LEGACY = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


def fill(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """Find every block's tensors in the checkpoint by name, and read what stands outside the blocks.

    Raises ModelError for a tensor that is missing, has another shape or (a prunable one) has no place in the model;
    UnsupportedError for a prunable tensor that is no linear layer's, or state that transformers does not make.
    """
    model = skeleton.model
    names = checkpoint_names(model, checkpoint.tensors)
    places = {place.path: place for stack in skeleton.stacks for place in stack.places}
    make_buffers(model)
    outside: dict[str, str] = {}
    for name, tensor in named_tensors(model):
        place = next((places[path] for path in _prefixes(name) if path in places), None)
        runs = place is not None or any(name.startswith(stack.prefix) for stack in skeleton.stacks)
        if runs and name in names:
            _same_shape(name, tuple(tensor.shape), checkpoint.tensors[names[name]])
        elif runs and _is_parameter(model, name):
            raise ModelError(f"{checkpoint.folder}: {name} is missing", "the files are incomplete")
        if name not in names or not runs:
            continue
        if place is None:
            outside[name] = names[name]
        else:
            inner = name.removeprefix(place.path + ".")
            place.parameters[inner] = names[name]
            place.dtypes[inner] = run_dtype(model, name, tensor)
    _inventory(skeleton, checkpoint, family)
    _read_outside(model, outside, checkpoint)
    _check_ready(skeleton)


def _prefixes(name: str) -> Iterator[str]:
    steps = name.split(".")
    return (".".join(steps[:length]) for length in range(1, len(steps)))


def named_tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers under every name that they have."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    saved = model.state_dict()
    return parameters + [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _is_parameter(model: PreTrainedModel, name: str) -> bool:
    owner, _, attribute = name.rpartition(".")
    return attribute in model.get_submodule(owner)._parameters


def checkpoint_names(model: PreTrainedModel, stored: Collection[str]) -> dict[str, str]:
    """For every tensor of the model the checkpoint's name of it, as far as the checkpoint has it (``stored``).

    A checkpoint of the bare model lacks the prefix that one with a head has; BERT's first ones call gains gamma.
    Tied tensors are one: any of their names will do.
    """
    prefix = model.base_model_prefix + "."
    aliases: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        aliases.setdefault(id(tensor), []).append(name)
    found: dict[str, str] = {}
    for tied in aliases.values():
        candidates = [form for name in tied for form in (name, name.removeprefix(prefix), prefix + name)]
        for new, old in _LEGACY.items():
            candidates += [form.replace(new, old) for form in candidates if form.endswith(new)]
        match = next((form for form in candidates if form in stored), None)
        if match is not None:
            found |= dict.fromkeys(tied, match)
    return found


def _same_shape(name: str, shape: tuple[int, ...], info: TensorInfo) -> None:
    if shape != info.shape:
        raise ModelError(f"{info.name}: the file has {info.shape} where the model's {name} is {shape}", "check config")


def run_dtype(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> torch.dtype:
    """The precision that transformers runs a tensor in: the model's, but float32 where float16 is known to overflow."""
    import torch

    kept: set[str] = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if tensor.dtype == torch.float16:
        kept |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    halves = (torch.float16, torch.bfloat16)
    return torch.float32 if tensor.dtype in halves and kept & set(name.split(".")) else tensor.dtype


def _inventory(skeleton: Skeleton, checkpoint: Checkpoint, family: Family) -> None:
    """All that the checkpoint has in each block, and which modules hold what is prunable."""
    import torch
    from transformers.pytorch_utils import Conv1D

    parts = anatomy.parts(checkpoint, family)
    claimed = {
        stored: (place, place.module.get_submodule(inner.rpartition(".")[0]))
        for stack in skeleton.stacks
        for place in stack.places
        for inner, stored in place.parameters.items()
    }
    for name, part in parts.items():
        if not part.prunable:
            continue
        if name not in claimed:
            raise ModelError(f"{name}: the model has no such layer", "the config is not the checkpoint's")
        place, module = claimed[name]
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            raise UnsupportedError(f"{name}: it belongs to {type(module).__name__}, which is no linear layer")
        width = module.weight.shape[0 if part.rows_last else 1]
        place.prunable[name] = Reader(name, module, width, cross=part.kind in ("cross_k", "cross_v"))
    for stack in skeleton.stacks:
        for place in stack.places:
            where = (place.side, place.index)
            place.tensors = tuple(name for name, part in parts.items() if (part.side, part.layer) == where)


def make_buffers(model: PreTrainedModel) -> None:
    """Storage for all buffers, with what transformers itself puts there (rotary frequencies, position ids)."""
    import torch

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            empty = torch.full(buffer.shape, _sentinel(buffer.dtype), dtype=buffer.dtype)
            module.register_buffer(name, empty, persistent=persistent)
    model.initialize_weights()  # parameters, which have no storage, are left alone by this


def _sentinel(dtype: torch.dtype) -> Any:
    """A value that says that nobody has written here."""
    import torch

    if dtype.is_floating_point:
        return torch.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def _read_outside(model: PreTrainedModel, names: Mapping[str, str], checkpoint: Checkpoint) -> None:
    """Fill what stands outside the blocks; a tied tensor is read once."""
    import torch

    read: dict[str, torch.nn.Parameter] = {}
    for name, stored in names.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if stored not in read:
            tensor = _mapped(checkpoint, checkpoint.tensors[stored])
            dtype = run_dtype(model, name, getattr(module, attribute))
            read[stored] = torch.nn.Parameter(tensor.to(dtype), requires_grad=False)
        if attribute in module._parameters:
            module._parameters[attribute] = read[stored]
        else:
            module._buffers[attribute] = read[stored].data


def _mapped(checkpoint: Checkpoint, info: TensorInfo) -> torch.Tensor:
    """One tensor; a large one is its file's pages, which are read when they are looked up and can be dropped again."""
    import torch

    dtype = torch_dtype(info.dtype)
    if info.nbytes < MAPPED or info.begin % dtype.itemsize:
        return checkpoint.load(info.name)
    with (checkpoint.folder / info.file).open("rb") as file:
        # Private and writable, because torch knows no tensors that are read only; nobody writes.
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(pages, dtype=dtype, count=info.numel, offset=info.begin).view(info.shape)


def _check_ready(skeleton: Skeleton) -> None:
    """Nothing that runs may be without a value: buffers as transformers makes them, plain tensors in attributes."""
    import torch

    for stack in skeleton.stacks:
        for path, module in stack.module.named_modules():
            for name, buffer in module.named_buffers(recurse=False):
                unmade = buffer.isnan() if buffer.is_floating_point() else buffer == _sentinel(buffer.dtype)
                if bool(unmade.all()) and buffer.numel():
                    raise UnsupportedError(f"{stack.side} {path}.{name}: transformers does not say what it holds")
            for name, value in vars(module).items():
                if isinstance(value, torch.Tensor) and value.is_meta:
                    raise UnsupportedError(f"{stack.side} {path}.{name}: it has no value before the model is loaded")
