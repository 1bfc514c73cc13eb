"""TEAL's greedy allocation (2408.14690, algorithm 1): spreads a block's target share of skipped weights over its
layers.

    until Σ share_i size_i / Σ size_i reaches the target: raise the share of one layer i by STEP · Σ size / size_i, the
    layer for which ‖Y - Ŷ‖ is then least; Y is the block's output as it is, Ŷ with all layers masked

Each raise is the same number of weights, whatever the layer. A layer whose share would exceed `MOST` is raised no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from sparsebench.models.modules.hooks import removing_hooks
from sparsebench.models.modules.skipping import masked
from sparsebench.models.replay.blockwise import Block
from sparsebench.steps.skip.magnitudes import SkipSite

STEP, MOST = 0.02, 0.95


def allocated(block: Block, sites: Sequence[SkipSite], targets: Sequence[float]) -> dict[float, list[float]]:
    """Return, for each target, the share of each site in ``sites``; costs are measured on the first group of samples.

    A target beyond what the layers may skip gets the largest shares that were reached.
    """
    whole = sum(site.weights for site in sites)
    growths = [STEP * whole / site.weights for site in sites]
    shares, allocations = [0.0] * len(sites), {}
    cost = _Cost(block, sites)
    for target in sorted(targets):
        while sum(share * site.weights for share, site in zip(shares, sites, strict=True)) < (target - 1e-9) * whole:
            tried = [
                [*shares[:number], shares[number] + growth, *shares[number + 1 :]]
                for number, growth in enumerate(growths)
                if shares[number] + growth <= MOST
            ]
            if not tried:
                break
            shares = min(tried, key=cost)
        allocations[target] = list(shares)
    return allocations


class _Cost:
    """The distance of a block's output from its output as it is, by the shares of its sites."""

    def __init__(self, block: Block, sites: Sequence[SkipSite]) -> None:
        self.block, self.sites = block, sites
        self.weights, self.kept = block.weights(), block.mask(block.samples[0])
        self.limits = [0.0] * len(sites)
        self.whole = self._output()

    def __call__(self, shares: Sequence[float]) -> float:
        self.limits = [site.magnitudes.threshold(share)[0] for site, share in zip(self.sites, shares, strict=True)]
        with self._masks():
            return float((self._output() - self.whole).norm())

    def _output(self) -> torch.Tensor:
        with torch.no_grad():
            return self.block.forward(0, 0, self.weights)[self.kept].float()

    def _masks(self) -> ExitStack:
        def cut(number: int) -> Any:
            return lambda _, args: (masked(args[0], self.limits[number]), *args[1:])

        paths = [site.path.removeprefix(f"{self.block.path}.") for site in self.sites]
        modules = map(self.block.module.get_submodule, paths)
        return removing_hooks(module.register_forward_pre_hook(cut(number)) for number, module in enumerate(modules))
