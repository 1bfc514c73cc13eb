"""Find the tensors of a model that have a row for each token, and write the model with fewer rows.

Nothing here depends on the architecture: transformers builds the empty model with two vocabulary sizes, and the tensors
that differ in shape are those with a row for each token, output heads, their biases and tied tensors included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.schema import Family
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import auto_class, has_masked_lm
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.build import meta_model, named_tensors, stored_views
from sparsebench.models.shape.topology import spellings

SIZE = "vocab_size"
NESTED = "text_config"
"""The key under which a multimodal model keeps its language model's configuration."""


def rows_of(config: Mapping[str, Any]) -> int:
    """Return the number of rows of the embeddings by config.json. Raises UnsupportedError where it has none."""
    holder = config.get(NESTED) if SIZE not in config else config
    size = (holder or {}).get(SIZE)
    if not isinstance(size, int):
        raise UnsupportedError(f"config.json of {config.get('model_type')} has no `{SIZE}`", "leave the model out")
    return size


def resized(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the configuration with another vocabulary size."""
    changed = {**config, SIZE: size} if SIZE in config else dict(config)
    if isinstance(changed.get(NESTED), dict) and SIZE in changed[NESTED]:
        changed[NESTED] = {**changed[NESTED], SIZE: size}
    return changed


def axes(checkpoint: Checkpoint, family: Family) -> dict[str, int]:
    """Return the tensors with a slice for each token: their names in the files, each with the dimension of the tokens.

    Raises UnsupportedError where there is none, or one is not stored with a plain slice for each token.
    """
    from transformers import AutoModelForMaskedLM

    config, dims = checkpoint.config, dict[str, int]()
    size = rows_of(config)
    kinds = [auto_class(family, config)]
    if family == "encoder" and has_masked_lm(config):
        kinds.append(AutoModelForMaskedLM)
    for kind in kinds:
        model = meta_model(family, config, kind=kind)
        other = {
            name: tensor.shape
            for name, tensor in named_tensors(meta_model(family, resized(config, size + 8), kind=kind))
        }
        views = stored_views(model, checkpoint.tensors)
        for name, tensor in named_tensors(model):
            differing = [axis for axis, (a, b) in enumerate(zip(tensor.shape, other[name], strict=True)) if a != b]
            # Tied tensors are one parameter of the model, but a file may hold each of them.
            forms = {*spellings(model, name), *([views[name].tensor] if name in views else [])}
            dims |= {stored: axis for axis in differing for stored in forms if stored in checkpoint.tensors}
    for name, axis in dims.items():
        if name not in checkpoint.stored or checkpoint.tensors[name].shape[axis] != size:
            raise UnsupportedError(
                f"{checkpoint.folder}: {name} is not stored with a plain row for each of {size} tokens",
                "trim the checkpoint that it was made from",
            )
    if not dims:
        raise UnsupportedError(f"{checkpoint.folder}: no tensor depends on `{SIZE}`", "leave the model out")
    return dims


def cut(parent: Path, family: Family, rows: list[int], folder: Path) -> CheckpointWriter:
    """Write the model in ``parent`` with these ``rows`` of its vocabulary, in this order; return the open writer.

    All other tensors are copied in pieces; quantized weights stay as they are. Raises ModelError for a row that does
    not exist.
    """
    shown, stored = open_checkpoint(parent), Checkpoint(parent)
    along = axes(shown, family)
    size = rows_of(stored.config)
    if max(rows) >= size:
        raise ModelError(f"{parent}: a token has the id {max(rows)}, and the model {size} rows", "check the tokenizer")
    layout = lay_out([(info.name, info.dtype, _shape(info, along, len(rows))) for info in stored.stored.values()])
    chosen = torch.tensor(rows)
    writer = CheckpointWriter(folder, layout, parent)
    try:
        for info in layout:
            if info.name in along:
                writer.write(info.name, stored.load(info.name).index_select(along[info.name], chosen))
            else:
                writer.copy(info.name, stored)
    except BaseException:
        writer.abort()
        raise
    return writer


def _shape(info: TensorInfo, along: Mapping[str, int], rows: int) -> tuple[int, ...]:
    axis = along.get(info.name)
    return tuple(rows if dim == axis else length for dim, length in enumerate(info.shape))
