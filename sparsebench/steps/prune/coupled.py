"""Sets whole neurons or heads to zero: every row, column and bias that makes or reads one. Shapes stay.

``shrink`` by the norm of the same order chooses the same neurons or heads and cuts them out, with the same outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.schema import Family
from sparsebench.models.axes import AxisKind, Cut, shape
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.models.topology import Part, View
from sparsebench.steps.contract import Progress, reported
from sparsebench.steps.prune.contract import Target
from sparsebench.steps.prune.masks import count
from sparsebench.steps.prune.outputs import VariantWriters
from sparsebench.steps.prune.zeroing import zeroed
from sparsebench.steps.shrink.choosing import best
from sparsebench.steps.shrink.scores import Scores, drawn, norms

if TYPE_CHECKING:
    import torch

Marks = dict[str, "list[tuple[Cut, torch.Tensor]]"]
"""By tensor: the positions of an axis's elements in it, and a mask of the elements to remove, (units,) bool."""


class CoupledSweep:
    """The sweep that zeroes neurons and heads: round(s · units) of every block, for T5's heads of every stack."""

    def __init__(
        self, checkpoint: Checkpoint, places: dict[str, Part], family: Family, targets: list[Target], seed: int
    ) -> None:
        self.checkpoint = checkpoint
        self.places = places
        self.targets = targets
        self.seed = seed
        self.shape = shape(checkpoint, family)
        self.scores: dict[tuple[str, int], Scores] = {}
        """The scores by pattern and norm (0: random draws), for all targets that share them."""

    def run(self, outputs: VariantWriters, progress: Progress | None = None) -> None:
        """Write every tensor of every variant, with one tensor in memory at a time."""
        marks: dict[Target, Marks] = {}
        for target in self.targets:
            try:
                marks[target] = self._marks(target, outputs)
            except UnsupportedError as error:  # the type lacks this target's axis
                outputs.fail([target], error)
        for name in reported([*self.checkpoint.tensors], progress):
            if not any(name in own for own in marks.values()):
                outputs.copy(name)
                continue
            tensor = self.checkpoint.load(name)
            for target, own in marks.items():
                mask = _mask(tensor, own.get(name, []))
                removed = int(mask.count_nonzero()) if self.places[name].prunable else 0
                outputs.write(target, View(name), zeroed(tensor, mask), removed)

    def _marks(self, target: Target, outputs: VariantWriters) -> Marks:
        """Choose the elements to remove, and return their positions in the tensors that hold them.

        Raises UnsupportedError for a model type without the axis.
        """
        import torch

        axes = self.shape.of(cast(AxisKind, target.pattern))
        norm = int(dict(target.options).get("norm") or 0)
        key = (target.pattern, norm)
        if key not in self.scores:
            self.scores[key] = norms(self.shape, axes, norm) if norm else drawn(axes, self.seed)
        scores = self.scores[key]
        found: Marks = {}
        for axis in axes:
            gone = count(target.sparsity, axis.units)
            going = torch.ones(axis.units, dtype=torch.bool, device="cpu")
            going[best(scores[axis], axis.units - gone)] = False
            what = "groups of heads" if target.pattern == "heads" else target.pattern
            outputs.notes[target].add(f"{gone} of {axis.units} {what} of a block are zero")
            for cut in axis.cuts:
                found.setdefault(cut.tensor, []).append((cut, going))
        return found


def _mask(tensor: torch.Tensor, marks: list[tuple[Cut, torch.Tensor]]) -> torch.Tensor:
    """Return a mask that is True at the entries of all elements to remove."""
    import torch

    mask = torch.zeros(tensor.shape, dtype=torch.bool, device="cpu")
    for cut, going in marks:
        part, dim = cut.of(mask)
        part.movedim(dim, 0)[cut.marks(going, part.shape[dim])] = True
    return mask
