"""A smaller model, the student, described by its dimensions; it starts with weights taken from the teacher.

Its block i starts as the teacher's block ``layers[i]``. A tensor of the same shape is taken whole. From a larger tensor
evenly spaced rows and columns are taken (weight selection, Xu et al., 2311.18823), in whole heads and groups where
heads are fewer. A tensor that the teacher lacks is drawn. The vocabulary stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from operator import gt
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from sparsebench import bounded
from sparsebench.errors import UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import PER_LAYER, dimensions, has_masked_lm, transformers_config
from sparsebench.models.modules.build import meta_model, stored_views
from sparsebench.models.random_weights import write_model
from sparsebench.models.shape.axes import POSITION_TABLE, ModelShape, head_sizes, shape_of
from sparsebench.models.shape.topology import Part, View, part, with_block_number
from sparsebench.steps import cut_model

_POOLED = ("word_embedding_dimension", "embedding_dimension")
"""What sentence-transformers calls the hidden size beside its pooling."""
Levels = tuple[int, ...]
"""Sizes of nested runs of rows, the outermost first: groups of heads, heads in a group, entries in a head."""
_FUSED = ("qkv", "kv", "gate_up")
"""Kinds of tensors whose rows belong to several matrices, so that choosing among them needs their order."""


def write_student(teacher: Checkpoint, family: Family, settings: Mapping[str, Any], seed: int, folder: Path) -> str:
    """Write the untrained student of a ``teacher`` into ``folder``; return a description of it in words.

    ``settings`` are those of ``settings.Student`` that were given. Raises UnsupportedError for an architecture
    that is not declared, a setting without a key in its config.json, a shape that transformers refuses, or one larger
    than the teacher's.
    """
    shape = shape_of(teacher, family)
    if teacher.config.get(PER_LAYER) or dimensions(teacher.config).experts > 1:
        problem = f"{teacher.folder}: its blocks differ in width, or it is a mixture of experts"
        raise UnsupportedError(problem, "a plain model as the teacher")
    blocks = {
        stack: _teacher_blocks(settings.get("layers"), count, stack if len(shape.blocks) > 1 else "")
        for stack, count in shape.blocks.items()
    }
    config = _config(shape, settings, blocks)
    kind = _auto_class(teacher, family)
    student_model = cut_model.stock_model(family, config, kind)
    teacher_model = cut_model.stock_model(family, teacher.config, kind)
    selection = _WeightSelection(shape, config, blocks, family)
    tensors, copied, total = selection.tensors(student_model, teacher_model)
    write_model(student_model, config, folder, "auto", seed, teacher.folder, tensors)
    if "hidden" in settings:
        _write_pooling(folder, settings["hidden"])
    fewer_blocks = [
        f"blocks {', '.join(map(str, numbers))}"
        for stack, numbers in blocks.items()
        if len(numbers) < shape.blocks[stack]
    ]
    sizes = [f"{key} {value}" for key, value in settings.items() if key != "layers"]
    changes = ", ".join([*dict.fromkeys(fewer_blocks), *sizes])
    drawn = f", {total - copied:,} were drawn" if copied < total else ""
    return f"a student of {changes}: {copied:,} of its {total:,} parameters began as the teacher's{drawn}"


def _write_pooling(folder: Path, width: int) -> None:
    """Write the hidden size ``width`` into the sentence-transformers configurations of a folder that state it."""
    for path in folder.glob("*/config.json"):
        pooling = bounded.read_object(path)
        if changed := {key: width for key in _POOLED if key in pooling}:
            path.write_text(json.dumps({**pooling, **changed}, indent=2))


def _teacher_blocks(layers: int | Sequence[int] | None, count: int, stack: str) -> list[int]:
    """Return the teacher's blocks that the student's start as: those named, or evenly spaced ones from the first on."""
    of_stack = f" of the {stack}" if stack else ""
    if layers is None:
        return list(range(count))
    if isinstance(layers, int):
        if layers > count:
            problem = f"student: {layers} blocks, where the teacher{of_stack} has {count}"
            raise UnsupportedError(problem, "fewer `layers`")
        return [number * count // layers for number in range(layers)]
    if layers[-1] >= count:
        problem = f"student: block {layers[-1]}, where the teacher{of_stack} has {count}"
        raise UnsupportedError(problem, f"numbers from 0 to {count - 1}")
    return list(layers)


def _config(shape: ModelShape, settings: Mapping[str, Any], blocks: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return the teacher's config.json with the student's dimensions, under every key that the config has for them."""
    config, architecture = shape.checkpoint.config, shape.architecture
    removed = {}
    for stack, numbers in blocks.items():
        if removed_blocks := [block for block in range(shape.blocks[stack]) if block not in numbers]:
            removed[stack] = removed_blocks
    changed = cut_model.without_blocks(shape, removed).config
    hidden = dict(type(transformers_config(config)).attribute_map).get("hidden_size", "hidden_size")
    heads = architecture.heads
    if heads and heads.groups and settings.keys() & {"heads", "key_heads"}:
        teacher_sizes = head_sizes(config, architecture)
        head_count = settings.get("heads", teacher_sizes.heads)
        settings = {"key_heads": max(1, head_count * teacher_sizes.groups // teacher_sizes.heads), **settings}
        if head_count % settings["key_heads"]:
            problem = f"student: {head_count} heads do not divide into {settings['key_heads']} groups"
            raise UnsupportedError(problem, "`key_heads` that divides them")
    neurons = architecture.neurons
    keys = {
        "hidden": [hidden],
        "neurons": sorted({architecture.key(neurons, stack) for stack in blocks} - {""}) if neurons else [],
        "heads": [heads.count] if heads else [],
        "key_heads": [heads.groups] if heads and heads.groups else [],
        "head_size": [heads.size] if heads and heads.size else [],
    }
    for setting, names in keys.items():
        if setting not in settings:
            continue
        if not names:
            problem = f"student: `{setting}`: the config.json of a {config.get('model_type')} has no key for it"
            raise UnsupportedError(problem, "leave it out")
        changed |= dict.fromkeys(names, settings[setting])
    size = config.get(hidden) or getattr(transformers_config(config), "hidden_size", None)
    for key in ("word_embed_proj_dim", "embedding_size"):
        if "hidden" in settings and size is not None and config.get(key) == size:
            changed[key] = settings["hidden"]
    return {**config, **changed, **cut_model.aliased_keys(config, changed)}


def _auto_class(teacher: Checkpoint, family: Family) -> Any:
    """Return AutoModelForMaskedLM for an encoder whose files hold all of the masked-LM head; else None."""
    if family != "encoder" or not has_masked_lm(teacher.config):
        return None
    model = meta_model(family, teacher.config, kind=AutoModelForMaskedLM)
    views = stored_views(model, teacher.tensors)
    complete = all(name in views for name, _ in model.named_parameters())
    return AutoModelForMaskedLM if complete else None


class _WeightSelection:
    """Where each tensor of a student comes from."""

    def __init__(
        self, shape: ModelShape, config: Mapping[str, Any], blocks: Mapping[str, list[int]], family: Family
    ) -> None:
        self.teacher, self.architecture = shape.checkpoint, shape.architecture
        self.config, self.blocks, self.family = config, blocks, family
        configs = (config, self.teacher.config) if self.architecture.heads else ()
        self.head_sizes = [head_sizes(config, self.architecture) for config in configs]

    def tensors(
        self, student_model: PreTrainedModel, teacher_model: PreTrainedModel
    ) -> tuple[dict[str, Callable[[], torch.Tensor] | None], int, int]:
        """Return the tensors to take from the teacher, how many parameters these are, and how many there are.

        None in place of a tensor's function leaves the tensor out: the teacher's files lack it, though its class has
        it.
        """
        views = stored_views(teacher_model, self.teacher.tensors)
        teacher_tensors = teacher_model.state_dict()
        tensors: dict[str, Callable[[], torch.Tensor] | None] = {}
        copied = total = 0
        for name, tensor in student_model.state_dict().items():
            dims = tuple(tensor.shape)
            source = self._source(name, dims, teacher_tensors)
            if source in teacher_tensors and source not in views:
                tensors[name] = None  # the teacher's files lack it: an untrained head or pooler
                continue
            parameters = 0 if name in student_model.all_tied_weights_keys else tensor.numel()
            total += parameters
            if source not in teacher_tensors:
                continue
            indices = self._indices(name, dims, tuple(teacher_tensors[source].shape))
            if indices is not None:
                copied += parameters
                tensors[name] = partial(_select, self.teacher, views[source], indices)
        return tensors, copied, total

    def _part(self, name: str, dims: tuple[int, ...]) -> Part:
        return part(TensorInfo(name, "F32", dims), self.config, self.family)

    def _source(self, name: str, dims: tuple[int, ...], teacher_tensors: Mapping[str, Any]) -> str:
        """Return the teacher's name for a tensor of the student."""
        described = self._part(name, dims)
        if described.block is None or described.stack not in self.blocks:
            return name
        source = with_block_number(name, self.blocks[described.stack][described.block])
        # T5 has its table of positions in the first block alone, whichever block of the teacher that starts as.
        return name if name.endswith(POSITION_TABLE) and source not in teacher_tensors else source

    def _indices(
        self, name: str, student_dims: tuple[int, ...], teacher_dims: tuple[int, ...]
    ) -> list[torch.Tensor] | None:
        """Return the indices of the teacher's tensor to take along each dimension; None where the tensor is drawn.

        Raises UnsupportedError where the student's tensor would be larger.
        """
        if len(student_dims) != len(teacher_dims) or any(map(gt, student_dims, teacher_dims)):
            problem = f"student: {name} would be {student_dims}, where the teacher's is {teacher_dims}"
            raise UnsupportedError(problem, "smaller numbers")
        if student_dims == teacher_dims:
            return [torch.arange(size, device="cpu") for size in student_dims]
        weight = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
        is_matrix = len(student_dims) == 2
        described = self._part(weight, student_dims if is_matrix else (*student_dims, 2))
        output_dim = 1 if described.transposed and is_matrix else 0
        indices = []
        for dim, (student_size, teacher_size) in enumerate(zip(student_dims, teacher_dims, strict=True)):
            levels = None
            if len(student_dims) <= 2:
                levels = self._levels(described.kind.removeprefix("cross_"), dim == output_dim)
            if levels is None or [sum(map(prod, runs)) for runs in levels] != [student_size, teacher_size]:
                if dim == output_dim and described.kind in _FUSED and student_size != teacher_size:
                    return None
                levels = [[(student_size,)], [(teacher_size,)]]
            indices.append(_entries_to_take(*levels))
        return indices

    def _levels(self, kind: str, outputs: bool) -> list[list[Levels]] | None:
        """Return how a kind of matrix divides its outputs or inputs into runs, in student and teacher, if it does."""
        if kind == "gate_up":
            halves = [dimensions(config).inner for config in (self.config, self.teacher.config)]
            return [[(half,), (half,)] for half in halves] if outputs else None
        heads = self.architecture.heads
        if kind not in ("q", "k", "v", "qkv", "o") or heads is None or outputs != (kind != "o"):
            return None
        levels: list[list[Levels]] = []
        for count, groups, size in self.head_sizes:
            queries, keys = (groups, count // groups, size), (groups, size)
            if kind == "qkv":
                levels.append([(groups, 3, size)] if heads.interleaved else [queries, keys, keys])
            else:
                levels.append([keys if kind in ("k", "v") else queries])
        return levels


def _select(teacher: Checkpoint, view: View, indices: Sequence[torch.Tensor]) -> torch.Tensor:
    tensor = view.to_matrix(view.cut(teacher.load(view.tensor)))
    for dim, index in enumerate(indices):
        if len(index) < tensor.shape[dim]:
            tensor = tensor.index_select(dim, index)
    return tensor


def _entries_to_take(student_runs: Sequence[Levels], teacher_runs: Sequence[Levels]) -> torch.Tensor:
    """Return the entries to take from consecutive runs: at each level evenly spaced ones, from the first on."""
    entries, start = [], 0
    for student_levels, teacher_levels in zip(student_runs, teacher_runs, strict=True):
        index = torch.zeros(1, dtype=torch.int64, device="cpu")
        for count, available in zip(student_levels, teacher_levels, strict=True):
            spaced = torch.arange(count, device="cpu")[None] * available // count
            index = (index[:, None] * available + spaced).flatten()
        entries.append(start + index)
        start += prod(teacher_levels)
    return torch.cat(entries)
