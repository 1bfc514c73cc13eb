"""Weights with their masks beside them, as ``torch.nn.utils.prune`` leaves them in a state dict.

While a module is pruned, its ``weight`` is not a parameter: the state dict has ``weight_orig``, which is trained, and
``weight_mask``, and the weight is their product. Here an entry whose mask is 0 becomes +0; torch's product keeps the
sign.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.safety import NOTES
from sparsebench.models.files.writing import CheckpointWriter, lay_out
from sparsebench.sources.cache import read_json

if TYPE_CHECKING:
    import torch

ORIGINAL, MASK = "_orig", "_mask"
MASKED_COUNT = "masked"
"""The key in a prepared folder's ``sparsebench.json`` for the number of weights that were stored with masks."""
_PARAMETERS = ("weight", "bias")
"""Parameters whose ``_mask`` can only come from pruning. Others that end in ``_mask`` may be a model's own buffers."""


def masked_names(names: Collection[str], folder: Path) -> list[str]:
    """Return the weights that a checkpoint holds as ``NAME_orig`` and ``NAME_mask``.

    Raises ModelError, by name, for one without the other, and where the weight itself is stored as well.
    """
    originals = [name.removesuffix(ORIGINAL) for name in names if name.endswith(ORIGINAL)]
    masks = [name.removesuffix(MASK) for name in names if name.endswith(MASK)]
    for name in (*originals, *(name for name in masks if name.rpartition(".")[2] in _PARAMETERS)):
        for stored, missing in ((ORIGINAL, MASK), (MASK, ORIGINAL)):
            if name + stored in names and name + missing not in names:
                raise ModelError(
                    f"{folder}: tensor {name}{stored} without {name}{missing}",
                    "torch's prune saves both: save the state dict again, or call prune.remove first",
                )
        if name in names:
            raise ModelError(f"{folder}: tensor {name} beside {name}{ORIGINAL}", "keep the one or the other")
    return originals


def masks_note(folder: Path) -> str:
    """Return a note of the masked weights that were read when ``folder`` was prepared; empty where there were none."""
    count = (read_json(folder / NOTES) or {}).get(MASKED_COUNT)
    if not isinstance(count, int):
        return ""
    return f"the checkpoint has {count} weights with masks beside them, read as their products"


def boolean_mask(mask: torch.Tensor, label: str) -> torch.Tensor:
    """Return a mask of any dtype as bool, True where weights stay. Raises ModelError for values other than 0 and 1."""
    kept = mask == 1
    unknown = ~(kept | (mask == 0))
    if bool(unknown.any()):
        problem = f"{label} has the value {mask[unknown][0].item():g}"
        raise ModelError(problem, "a mask is 1 where a weight stays, and 0 elsewhere")
    return kept


class MergedTensors:
    """The tensors of a checkpoint, with its masked weights ``names`` (stored in two parts) under their own names."""

    def __init__(
        self, folder: Path, names: Collection[str], infos: Mapping[str, TensorInfo], load: Callable[[str], torch.Tensor]
    ) -> None:
        self.folder, self.masked, self._load = folder, frozenset(names), load
        self.infos: dict[str, TensorInfo] = {}
        for name, info in infos.items():
            weight = name.removesuffix(ORIGINAL)
            if weight in self.masked and name.endswith(ORIGINAL):
                shape = infos[weight + MASK].shape
                if shape != info.shape:
                    problem = f"{folder}: {name} is {info.shape} and {weight}{MASK} {shape}"
                    raise ModelError(problem, "save the model again")
                self.infos[weight] = info
            elif name.removesuffix(MASK) not in self.masked:
                self.infos[name] = info

    def load(self, name: str) -> torch.Tensor:
        """Load one tensor; a masked weight with its mask applied."""
        if name not in self.masked:
            return self._load(name)
        mask = boolean_mask(self._load(name + MASK), f"{self.folder}: tensor {name}{MASK}")
        return self._load(name + ORIGINAL).masked_fill(~mask, 0)

    def drop_ties(self, ties: Mapping[str, str]) -> None:
        """Remove masked tensors that repeat a tied one. Raises ModelError where their masks make the two differ."""
        import torch

        for name, original in ties.items():
            if {name, original} <= self.infos.keys() and {name, original} & self.masked:
                if not torch.equal(self.load(name), self.load(original)):
                    problem = f"{self.folder}: {name} and {original} are tied, and their masks make them differ"
                    raise ModelError(problem, "prune both by one mask, or set tie_word_embeddings to false")
                del self.infos[name]


def write_masked(pruned: Path, dense: Path, out: Path, names: Collection[str]) -> Path:
    """Write a pruned folder with the weights ``names`` as ``NAME_orig`` and ``NAME_mask``: floats and booleans.

    ``NAME_orig`` has the pruned weights where the mask is 1, and those of the folder ``dense`` elsewhere.
    """
    import torch

    pruned_checkpoint, dense_checkpoint = Checkpoint(pruned), Checkpoint(dense)
    layout: list[tuple[str, str, tuple[int, ...]]] = []
    for info in pruned_checkpoint.tensors.values():
        parts = ((ORIGINAL, info.dtype), (MASK, "BOOL")) if info.name in names else (("", info.dtype),)
        layout += [(info.name + suffix, dtype, info.shape) for suffix, dtype in parts]
    with CheckpointWriter(out, lay_out(layout), pruned) as writer:
        for info, weights in pruned_checkpoint.items():
            if info.name not in names:
                writer.write(info.name, weights)
                continue
            # -0 counts as kept, so that reading the folder again gives the same bits.
            mask = (weights != 0) | torch.signbit(weights)
            writer.write(info.name + ORIGINAL, torch.where(mask, weights, dense_checkpoint.load(info.name)))
            writer.write(info.name + MASK, mask)
        return writer.close(read_json(pruned / NOTES))
