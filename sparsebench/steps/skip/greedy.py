"""TEAL's greedy allocation (2408.14690, algorithm 1): spreads a block's target share of skipped weights over its
layers.

    until Σ share_i size_i / Σ size_i reaches the target: raise the share of one layer i by STEP · Σ size / size_i, the
    layer for which ‖Y - Ŷ‖ is then least; Y is the block's output as it is, Ŷ with all layers masked

Each raise is the same number of weights, whatever the layer. A layer whose share would exceed `MOST` is raised no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from sparsebench.models.modules.skipping import hooked, masked

if TYPE_CHECKING:
    from sparsebench.models.replay.blockwise import Block
    from sparsebench.steps.skip.magnitudes import SkipSite

STEP, MOST = 0.02, 0.95


def allocated(block: Block, places: Sequence[SkipSite], targets: Sequence[float]) -> dict[float, list[float]]:
    """Return, for each target, the share of each site in ``places``; costs are measured on the first group of samples.

    A target beyond what the layers may skip gets the largest shares that were reached.
    """
    whole = sum(place.weights for place in places)
    growths = [STEP * whole / place.weights for place in places]
    shares, found = [0.0] * len(places), {}
    cost = _Cost(block, places)
    for target in sorted(targets):
        while sum(share * place.weights for share, place in zip(shares, places, strict=True)) < (target - 1e-9) * whole:
            tried = [
                [*shares[:number], shares[number] + growth, *shares[number + 1 :]]
                for number, growth in enumerate(growths)
                if shares[number] + growth <= MOST
            ]
            if not tried:
                break
            shares = min(tried, key=cost)
        found[target] = list(shares)
    return found


class _Cost:
    """The distance of a block's output from its output as it is, by the shares of its sites."""

    def __init__(self, block: Block, places: Sequence[SkipSite]) -> None:
        self.block, self.places = block, places
        self.weights, self.kept = block.weights(), block.mask(block.samples[0])
        self.limits = [0.0] * len(places)
        self.whole = self._output()

    def __call__(self, shares: Sequence[float]) -> float:
        self.limits = [place.magnitudes.threshold(share)[0] for place, share in zip(self.places, shares, strict=True)]
        with self._masks():
            return float((self._output() - self.whole).norm())

    def _output(self) -> torch.Tensor:
        """Return the block's output for all tokens but padding, in float32."""
        with torch.no_grad():
            return self.block.forward(0, 0, self.weights)[self.kept].float()

    def _masks(self) -> ExitStack:
        def cut(number: int) -> Any:
            return lambda _, args: (masked(args[0], self.limits[number]), *args[1:])

        paths = [place.path.removeprefix(f"{self.block.path}.") for place in self.places]
        modules = map(self.block.module.get_submodule, paths)
        return hooked(module.register_forward_pre_hook(cut(number)) for number, module in enumerate(modules))
