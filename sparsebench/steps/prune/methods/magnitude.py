"""Magnitude pruning (Han et al. 2015): the weights of smallest |w| are removed.

The score is |w| itself, exact in every dtype, so that scores are tied only where weights are.
"""

from __future__ import annotations

import torch

from sparsebench.steps.prune.contract import Layer


def magnitude_scores(layer: Layer) -> torch.Tensor:
    """Return |w|, in the weights' dtype and shape."""
    return layer.weights.abs()
