"""Find the tensors of a model that have a row for each token, and write the model with fewer rows.

Nothing here depends on the architecture: transformers builds the empty model with two vocabulary sizes, and the tensors
that differ in shape are those with a row for each token, output heads, their biases and tied tensors included.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import NESTED, VOCABULARY, auto_class, has_masked_lm, vocabulary_size
from sparsebench.models.files.quantized import open_checkpoint
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.models.modules.build import meta_model, named_tensors, stored_views
from sparsebench.models.shape.topology import spellings


def rows_of_vocabulary(config: Mapping[str, Any]) -> int:
    """Return the number of rows of the embeddings by config.json. Raises UnsupportedError where it has none."""
    size = vocabulary_size(config)
    if size is None:
        problem = f"config.json of {config.get('model_type')} has no `{VOCABULARY}`"
        raise UnsupportedError(problem, "leave the model out")
    return size


def resized(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return the configuration with another vocabulary size."""
    changed = {**config, VOCABULARY: size} if VOCABULARY in config else dict(config)
    if isinstance(changed.get(NESTED), dict) and VOCABULARY in changed[NESTED]:
        changed[NESTED] = {**changed[NESTED], VOCABULARY: size}
    return changed


def token_axes(checkpoint: Checkpoint, family: Family) -> dict[str, int]:
    """Return the tensors with a slice for each token: their names in the files, each with the dimension of the tokens.

    Raises UnsupportedError where there is none, or one is not stored with a plain slice for each token.
    """
    config, axes = checkpoint.config, dict[str, int]()
    size = rows_of_vocabulary(config)
    classes = [auto_class(family, config)]
    if family == "encoder" and has_masked_lm(config):
        classes.append(AutoModelForMaskedLM)
    for kind in classes:
        model = meta_model(family, config, kind=kind)
        enlarged = meta_model(family, resized(config, size + 8), kind=kind)
        views = stored_views(model, checkpoint.tensors)
        for name, axis in _differing_axes(model, enlarged).items():
            # Tied tensors are one parameter of the model, but a file may hold each of them.
            names = {*spellings(model, name), *([views[name].tensor] if name in views else [])}
            axes |= {stored: axis for stored in names if stored in checkpoint.tensors}
    for name, axis in axes.items():
        if name not in checkpoint.stored or checkpoint.tensors[name].shape[axis] != size:
            problem = f"{checkpoint.folder}: {name} is not stored with a plain row for each of {size} tokens"
            raise UnsupportedError(problem, "trim the checkpoint that it was made from")
    if not axes:
        raise UnsupportedError(f"{checkpoint.folder}: no tensor depends on `{VOCABULARY}`", "leave the model out")
    return axes


def _differing_axes(model: Any, enlarged: Any) -> dict[str, int]:
    """Return the dimension in which tensors of two models differ, by the tensors' names."""
    shapes = {name: tensor.shape for name, tensor in named_tensors(enlarged)}
    return {
        name: axis
        for name, tensor in named_tensors(model)
        for axis, (length, enlarged_length) in enumerate(zip(tensor.shape, shapes[name], strict=True))
        if length != enlarged_length
    }


def existing_rows(parent: Path, kept_ids: list[int], needed: frozenset[int]) -> list[int]:
    """Return those of the ``kept_ids`` of tokens that have a row in the model, in their order.

    Raises ModelError unless those without a row come last and none of them is ``needed``.
    """
    size = rows_of_vocabulary(Checkpoint(parent).config)
    rows = [token_id for token_id in kept_ids if token_id < size]
    unread = set(kept_ids[len(rows) :])
    if rows != kept_ids[: len(rows)] or unread & needed:
        problem = f"{parent}: a token has the id {max(kept_ids)}, and the model {size} rows"
        raise ModelError(problem, "check the tokenizer")
    return rows


def begin_trimmed(parent: Path, family: Family, rows: list[int], folder: Path) -> CheckpointWriter:
    """Write the model in ``parent`` with these ``rows`` of its vocabulary, in this order; return the open writer.

    All other tensors are copied in pieces; quantized weights stay as they are.
    """
    checkpoint, stored = open_checkpoint(parent), Checkpoint(parent)
    axes = token_axes(checkpoint, family)
    layout = lay_out([(info.name, info.dtype, _shape(info, axes, len(rows))) for info in stored.stored.values()])
    row_indices = torch.tensor(rows)
    writer = CheckpointWriter(folder, layout, parent)
    try:
        for info in layout:
            if info.name in axes:
                writer.write(info.name, stored.load(info.name).index_select(axes[info.name], row_indices))
            else:
                writer.copy(info.name, stored)
    except BaseException:
        writer.abort()
        raise
    return writer


def _shape(info: TensorInfo, axes: Mapping[str, int], rows: int) -> tuple[int, ...]:
    axis = axes.get(info.name)
    return tuple(rows if dim == axis else length for dim, length in enumerate(info.shape))
