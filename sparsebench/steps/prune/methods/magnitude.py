"""Magnitude pruning (Han et al. 2015): the weights of smallest |w| are removed.

The score is |w| itself, exact in every dtype, so that scores are tied only where weights are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.steps.prune.contract import Layer

if TYPE_CHECKING:
    import torch


def score(layer: Layer) -> torch.Tensor:
    """Return |w|, in the weights' dtype and shape."""
    return layer.weights.abs()
