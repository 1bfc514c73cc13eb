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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsebench import bounded
from sparsebench.errors import UnsupportedError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import PER_LAYER, dimensions, has_masked_lm, transformers_config
from sparsebench.models.modules.build import meta_model, stored_views
from sparsebench.models.random_weights import write_model
from sparsebench.models.shape.axes import POSITIONS, ModelShape, shape, sizes
from sparsebench.models.shape.topology import View, moved, part
from sparsebench.steps import cut_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family

_POOLED = ("word_embedding_dimension", "embedding_dimension")
"""What sentence-transformers calls the hidden size beside its pooling."""
Levels = tuple[int, ...]
"""Sizes of nested runs of rows, the outermost first: groups of heads, heads in a group, entries in a head."""


def write(teacher: Checkpoint, family: Family, described: Mapping[str, Any], seed: int, folder: Path) -> str:
    """Write the untrained student of a ``teacher`` into ``folder``; return a description of it in words.

    ``described`` are the settings of ``step.Student`` that were given. Raises UnsupportedError for an architecture that
    is not declared, a setting without a key in its config.json, a shape that transformers refuses, or one larger than
    the teacher's.
    """
    found = shape(teacher, family)
    if teacher.config.get(PER_LAYER) or dimensions(teacher.config).experts > 1:
        raise UnsupportedError(
            f"{teacher.folder}: its blocks differ in width, or it is a mixture of experts",
            "a plain model as the teacher",
        )
    blocks = {
        side: _blocks(described.get("layers"), count, side if len(found.blocks) > 1 else "")
        for side, count in found.blocks.items()
    }
    config = _config(found, described, blocks)
    kind = _kind(teacher, family)
    own, theirs = (cut_model.stock_model(family, one, kind) for one in (config, teacher.config))
    draft = _Draft(teacher, found, config, blocks, family)
    given, taken, total = draft.given(own, theirs)
    write_model(own, config, folder, "auto", seed, teacher.folder, given)
    if "hidden" in described:
        _write_pooling(folder, described["hidden"])
    kept = [f"blocks {', '.join(map(str, stay))}" for side, stay in blocks.items() if len(stay) < found.blocks[side]]
    words = [f"{key} {value}" for key, value in described.items() if key != "layers"]
    what = ", ".join([*dict.fromkeys(kept), *words])
    drawn = f", {total - taken:,} were drawn" if taken < total else ""
    return f"a student of {what}: {taken:,} of its {total:,} parameters began as the teacher's{drawn}"


def _write_pooling(folder: Path, width: int) -> None:
    """Write the hidden size ``width`` into the sentence-transformers configurations of a folder that state it."""
    for path in folder.glob("*/config.json"):
        stated = bounded.read_object(path)
        if changed := {key: width for key in _POOLED if key in stated}:
            path.write_text(json.dumps({**stated, **changed}, indent=2))


def _blocks(layers: int | Sequence[int] | None, count: int, side: str) -> list[int]:
    """Return the teacher's blocks that the student's start as: those named, or evenly spaced ones from the first on."""
    where = f" of the {side}" if side else ""
    if layers is None:
        return list(range(count))
    if isinstance(layers, int):
        if layers > count:
            raise UnsupportedError(f"student: {layers} blocks, where the teacher{where} has {count}", "fewer `layers`")
        return [number * count // layers for number in range(layers)]
    if layers[-1] >= count:
        raise UnsupportedError(
            f"student: block {layers[-1]}, where the teacher{where} has {count}", f"numbers from 0 to {count - 1}"
        )
    return list(layers)


def _config(found: ModelShape, described: Mapping[str, Any], blocks: Mapping[str, list[int]]) -> dict[str, Any]:
    """Return the teacher's config.json with the student's dimensions, under every key that the config has for them."""
    config, how = found.checkpoint.config, found.how
    gone = {side: [one for one in range(found.blocks[side]) if one not in stay] for side, stay in blocks.items()}
    changed = cut_model.without(found, {side: some for side, some in gone.items() if some}).config
    hidden = dict(type(transformers_config(config)).attribute_map).get("hidden_size", "hidden_size")
    heads = how.heads
    if heads and heads.groups and described.keys() & {"heads", "key_heads"}:
        all_heads, groups, _ = sizes(config, how)
        own = described.get("heads", all_heads)
        described = {"key_heads": max(1, own * groups // all_heads), **described}
        if own % described["key_heads"]:
            raise UnsupportedError(
                f"student: {own} heads do not divide into {described['key_heads']} groups",
                "`key_heads` that divides them",
            )
    keys = {
        "hidden": [hidden],
        "neurons": sorted({how.key(how.neurons, side) for side in blocks} - {""}) if how.neurons else [],
        "heads": [heads.count] if heads else [],
        "key_heads": [heads.groups] if heads and heads.groups else [],
        "head_size": [heads.size] if heads and heads.size else [],
    }
    for setting, names in keys.items():
        if setting not in described:
            continue
        if not names:
            raise UnsupportedError(
                f"student: `{setting}`: the config.json of a {config.get('model_type')} has no key for it",
                "leave it out",
            )
        changed |= dict.fromkeys(names, described[setting])
    size = config.get(hidden) or getattr(transformers_config(config), "hidden_size", None)
    for key in ("word_embed_proj_dim", "embedding_size"):
        if "hidden" in described and size is not None and config.get(key) == size:
            changed[key] = described["hidden"]
    return {**config, **changed, **cut_model.aliases(config, changed)}


def _kind(teacher: Checkpoint, family: Family) -> Any:
    """Return AutoModelForMaskedLM for an encoder whose files hold all of the masked-LM head; else None."""
    from transformers import AutoModelForMaskedLM

    if family != "encoder" or not has_masked_lm(teacher.config):
        return None
    model = meta_model(family, teacher.config, kind=AutoModelForMaskedLM)
    views = stored_views(model, teacher.tensors)
    whole = all(name in views for name, _ in model.named_parameters())
    return AutoModelForMaskedLM if whole else None


class _Draft:
    """Where each tensor of a student comes from."""

    def __init__(
        self,
        teacher: Checkpoint,
        found: ModelShape,
        config: Mapping[str, Any],
        blocks: Mapping[str, list[int]],
        family: Family,
    ) -> None:
        self.teacher, self.how, self.blocks = teacher, found.how, blocks
        self.config, self.family = config, family
        self.heads: list[Levels] = []
        if self.how.heads:
            counted = (sizes(one, self.how) for one in (config, teacher.config))
            self.heads = [(groups, count // groups, size) for count, groups, size in counted]

    def given(
        self, own: PreTrainedModel, theirs: PreTrainedModel
    ) -> tuple[dict[str, Callable[[], torch.Tensor] | None], int, int]:
        """Return the tensors to take from the teacher, how many parameters these are, and how many there are.

        None in place of a tensor's function leaves the tensor out: the teacher's files lack it, though its class has
        it.
        """
        views = stored_views(theirs, self.teacher.tensors)
        there = theirs.state_dict()
        given: dict[str, Callable[[], torch.Tensor] | None] = {}
        taken = total = 0
        for name, tensor in own.state_dict().items():
            source = self._source(name, tensor, there)
            if source in there and source not in views:
                given[name] = None  # the teacher's files lack it: an untrained head or pooler
                continue
            if name not in own.all_tied_weights_keys:
                total += tensor.numel()
            if source not in there:
                continue
            where = self._where(name, tuple(tensor.shape), tuple(there[source].shape))
            if where is not None:
                taken += tensor.numel() if name not in own.all_tied_weights_keys else 0
                given[name] = partial(self._cut, views[source], where)
        return given, taken, total

    def _source(self, name: str, tensor: torch.Tensor, there: Mapping[str, Any]) -> str:
        """Return the teacher's name for a tensor of the student."""
        place = part(self._info(name, tuple(tensor.shape)), self.config, self.family)
        if place.layer is None or place.side not in self.blocks:
            return name
        found = moved(name, self.blocks[place.side][place.layer])
        # T5 has its table of positions in the first block alone, whichever block of the teacher that starts as.
        return name if name.endswith(POSITIONS) and found not in there else found

    def _info(self, name: str, dims: tuple[int, ...]) -> TensorInfo:
        return TensorInfo(name, "F32", dims, "", 0, 0)

    def _cut(self, view: View, where: Sequence[torch.Tensor]) -> torch.Tensor:
        tensor = view.shaped(view.cut(self.teacher.load(view.tensor)))
        for dim, index in enumerate(where):
            if len(index) < tensor.shape[dim]:
                tensor = tensor.index_select(dim, index)
        return tensor

    def _where(self, name: str, new: tuple[int, ...], old: tuple[int, ...]) -> list[torch.Tensor] | None:
        """Return the indices of the teacher's tensor to take along each dimension; None where the tensor is drawn.

        Raises UnsupportedError where the student's tensor would be larger.
        """
        import torch

        if len(new) != len(old) or any(one > other for one, other in zip(new, old, strict=True)):
            raise UnsupportedError(f"student: {name} would be {new}, where the teacher's is {old}", "smaller numbers")
        if new == old:
            return [torch.arange(size, device="cpu") for size in new]
        weight = name.removesuffix("bias") + "weight" if name.endswith(".bias") else name
        dims = new if len(new) == 2 else (*new, 2)
        place = part(self._info(weight, dims), self.config, self.family)
        outward = 1 if place.rows_last and len(new) == 2 else 0
        found = []
        for dim, (one, other) in enumerate(zip(new, old, strict=True)):
            runs = self._runs(place.kind.removeprefix("cross_"), (dim == outward) if len(new) < 3 else None)
            if runs is None or [sum(map(prod, some)) for some in runs] != [one, other]:
                if self._grouped(place.kind, dim == outward) and one != other:
                    return None
                runs = [[(one,)], [(other,)]]
            found.append(_index(*runs))
        return found

    def _grouped(self, kind: str, outward: bool) -> bool:
        """Whether the rows belong to several matrices in one tensor, so that choosing among them needs their order."""
        return outward and kind in ("qkv", "kv", "gate_up")

    def _runs(self, kind: str, outward: bool | None) -> list[list[Levels]] | None:
        """Return how a kind of matrix divides its outputs or inputs into runs, in student and teacher, if it does."""
        if outward is None or kind not in ("q", "k", "v", "qkv", "o", "gate_up"):
            return None
        if kind == "gate_up":
            halves = [dimensions(one).inner for one in (self.config, self.teacher.config)]
            return [[(half,), (half,)] for half in halves] if outward else None
        if not self.heads or outward != (kind != "o"):
            return None
        found: list[list[Levels]] = []
        for groups, each, size in self.heads:
            queries, keys = (groups, each, size), (groups, size)
            assert self.how.heads is not None
            fused: list[Levels] = [(groups, 3, size)] if self.how.heads.mixed else [queries, keys, keys]
            runs: dict[str, list[Levels]] = {"qkv": fused, "k": [keys], "v": [keys]}
            found.append(runs.get(kind, [queries]))
        return found


def _index(new: Sequence[Levels], old: Sequence[Levels]) -> torch.Tensor:
    """Return the entries to take from consecutive runs: at each level evenly spaced ones, from the first on."""
    import torch

    found, start = [], 0
    for wanted, there in zip(new, old, strict=True):
        index = torch.zeros(1, dtype=torch.int64, device="cpu")
        for one, other in zip(wanted, there, strict=True):
            place = torch.arange(one, device="cpu")[None]
            index = (index[:, None] * other + place * other // one).flatten()
        found.append(start + index)
        start += prod(there)
    return torch.cat(found)
