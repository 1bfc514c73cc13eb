"""Seeded random weights of a real architecture, to learn memory, time and disk use before anything is downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsebench.errors import ModelError
from sparsebench.manifest.names import Family
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import TensorInfo, torch_dtype
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.build import meta_model

CHUNK = 1 << 22
"""Weights drawn at a time: 16 MiB of fp32."""


def write_random(
    architecture: Mapping[str, Any],
    out: Path,
    family: Family,
    dtype: str = "auto",
    seed: int = 0,
    companions_of: Path | None = None,
) -> Path:
    """Write a folder that stock transformers loads, with the names and shapes of ``architecture`` (a config.json).

    With ``companions_of``, tokenizer and the like are copied from that model folder.

    Matrices are normal with the configuration's ``initializer_range`` (0.02 without one) as standard deviation. Each
    has its own seed (from ``seed`` and name), so that values do not depend on order. Norms, biases and buffers get
    transformers' own initial values. Tied tensors are stored once. Memory: one tensor in ``dtype`` and 16 MiB. Raises
    ModelError.
    """
    return write_model(meta_model(family, architecture), architecture, out, dtype, seed, companions_of)


def write_model(
    model: PreTrainedModel,
    architecture: Mapping[str, Any],
    out: Path,
    dtype: str = "auto",
    seed: int = 0,
    companions_of: Path | None = None,
    given_tensors: Mapping[str, Callable[[], torch.Tensor] | None] = MappingProxyType({}),
) -> Path:
    """Write an empty ``model`` like ``write_random``; tensors ``given_tensors`` by name are not drawn, and None omits one."""
    dtype_name = precision.resolve(dtype, architecture)
    initial_tensors = _initial_tensors(model)
    omitted = _tied_names(model, architecture) | {key for key, value in given_tensors.items() if value is None}
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in omitted}
    layout = lay_out([(key, precision.SAFETENSORS_NAMES[dtype_name], shape) for key, shape in shapes.items()])
    std = float(getattr(model.config, "initializer_range", None) or 0.02)
    with CheckpointWriter(out, layout, companions_of) as writer:
        for info in layout:
            load = given_tensors.get(info.name)
            tensor = load() if load else initial_tensors.get(info.name)
            writer.write(info.name, _normal(info, std, seed) if tensor is None else tensor.to(torch_dtype(info.dtype)))
        config = {**precision.with_dtype(architecture, dtype_name), "architectures": [type(model).__name__]}
        (writer.partial / "config.json").write_text(json.dumps(config, indent=2))
        return writer.close()


def _tied_names(model: PreTrainedModel, architecture: Mapping[str, Any]) -> set[str]:
    """Return the names that are not stored because they are tied to another one.

    transformers 5 ties T5's head whatever the config says, unless a checkpoint has one, as mT5's do. So a head is
    written where ``tie_word_embeddings`` is false.
    """
    untied = architecture.get("tie_word_embeddings") is False
    return {name for name in model.all_tied_weights_keys if not untied or name.endswith("embed_tokens.weight")}


def _normal(info: TensorInfo, std: float, seed: int) -> torch.Tensor:
    """Draw normal weights in fp32 and round them, chunk by chunk."""
    digest = hashlib.sha256(f"{seed}:{info.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    tensor = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
    drawn = torch.empty(min(CHUNK, tensor.numel()))
    for piece in tensor.view(-1).split(CHUNK):
        piece.copy_(drawn[: piece.numel()].normal_(0, std, generator=generator))
    return tensor


def _initial_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return all but matrices, initialised by transformers' own rules: gains of one (Gemma's are zero), zero biases.

    Only these get storage; for the matrices, which stay on the meta device, the rules are no-ops. Raises ModelError for
    a tensor that the rules do not set.
    """
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2:
                empty = torch.full(parameter.shape, torch.nan)
                setattr(module, name, nn.Parameter(empty, requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                module.register_buffer(name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    model.initialize_weights()
    initial = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    for name, tensor in initial.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise ModelError(f"{type(model).__name__}: transformers has no initial value for {name}")
    return initial
