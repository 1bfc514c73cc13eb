"""Methods that look at weights alone: one pass over a checkpoint makes every version, tensor by tensor.

The weights are read once (twice or three times for a global threshold, which must be known before the first
tensor is written); at any moment one tensor is in memory, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sparsebench.errors import UnsupportedError
from sparsebench.models.anatomy import Part
from sparsebench.models.checkpoint import Checkpoint
from sparsebench.sparsify import masks
from sparsebench.sparsify.contract import Layer, Quota, Score, Target
from sparsebench.sparsify.keys import Threshold, keys, thresholds
from sparsebench.sparsify.outputs import Outputs, Progress
from sparsebench.sparsify.registry import methods

if TYPE_CHECKING:
    import torch


class TensorSweep:
    """Random, magnitude and their like over one checkpoint; ``places`` tells what each tensor is."""

    def __init__(self, checkpoint: Checkpoint, places: dict[str, Part], targets: list[Target], seed: int) -> None:
        self.checkpoint = checkpoint
        self.places = places
        self.seed = seed
        self.sweeps = {
            name: [t for t in targets if t.method == name] for name in dict.fromkeys(t.method for t in targets)
        }
        self.scores: dict[str, Score] = {name: methods()[name].load_score() for name in self.sweeps}
        if any(t.granularity == "global" and t.pattern != "unstructured" for t in targets):
            raise UnsupportedError("a pattern has no global form", "use granularity: layer with a pattern")

    def run(self, outputs: Outputs, progress: Progress | None = None) -> None:
        """Write every tensor of every version."""
        limits = self._global_thresholds()
        for done, (info, tensor) in enumerate(self.checkpoint.items()):
            # A tied repeat is treated like the tensor that it repeats.
            part = self.places[self.checkpoint.ties.get(info.name, info.name)]
            if part.prunable:
                self._prune(part, info.name, tensor, limits, outputs)
            else:
                outputs.same(info.name, tensor)
            if progress:
                progress(done + 1, len(self.checkpoint.tensors))

    def _prune(
        self, part: Part, name: str, tensor: torch.Tensor, limits: dict[Target, Threshold], outputs: Outputs
    ) -> None:
        """All versions of one tensor. The tie budgets in ``limits`` are spent here."""
        import torch

        weights = tensor.T if part.rows_last else tensor
        for method, targets in self.sweeps.items():
            scores = self.scores[method](Layer(part.name, weights, self.seed))
            local = [target for target in targets if target.granularity != "global"]
            quotas = [Quota(target.sparsity, target.granularity, target.pattern) for target in local]
            chosen = masks.choose(scores, quotas, part.name)
            ranked = keys(scores, part.name) if len(local) < len(targets) else None
            for target in targets:
                if target in limits:
                    assert ranked is not None
                    mask, limits[target] = _spend(ranked, limits[target])
                    choice = masks.Choice(mask)
                else:
                    choice = next(chosen)
                removed = int(torch.count_nonzero(choice.mask))
                version = tensor.masked_fill(choice.mask.T if part.rows_last else choice.mask, 0)
                outputs.write(target, name, version, removed, choice.notes)

    def _keys(self, method: str, name: str, weights: torch.Tensor) -> torch.Tensor:
        """The method's scores of a tensor (out, in) as keys."""
        return keys(self.scores[method](Layer(name, weights, self.seed)), name)

    def _global_thresholds(self) -> dict[Target, Threshold]:
        """One exact threshold per global target over all prunable weights."""
        total = sum(self.checkpoint.tensors[name].numel for name, part in self.places.items() if part.prunable)
        found: dict[Target, Threshold] = {}
        for method, targets in self.sweeps.items():
            whole = [target for target in targets if target.granularity == "global"]
            if whole:
                ranks = [masks.count(target.sparsity, total) for target in whole]
                passes = (self._all_keys(method) for _ in range(2))
                found |= zip(whole, thresholds(passes, ranks), strict=True)
        return found

    def _all_keys(self, method: str) -> Iterator[torch.Tensor]:
        for name, part in self.places.items():
            if part.prunable:
                tensor = self.checkpoint.load(name)
                yield self._keys(method, name, tensor.T if part.rows_last else tensor)


def _spend(found: torch.Tensor, limit: Threshold) -> tuple[torch.Tensor, Threshold]:
    """A tensor's mask under a global threshold, and the threshold with what is left of its ties."""
    spent = min(limit.ties, int((found == limit.key).sum())) if limit.ties else 0
    return masks.lowest(found, limit), Threshold(limit.key, limit.ties - spent)
