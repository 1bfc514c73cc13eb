"""RIA (Zhang et al. 2024): a weight's shares of its row and of its column, times the square root of the input's norm.

    RIA_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖x_j‖₂^a,   a = 1/2

No channel is removed altogether, as its last weights have a large share of it. The authors' code compares within
the layer by default; within the row, as Wanda does, is an option.
"""

from __future__ import annotations

import torch

from sparsebench.steps.prune.contract import Layer
from sparsebench.steps.prune.methods.wanda import input_norms

EXPONENT = 0.5


def ria_scores(layer: Layer) -> torch.Tensor:
    """Return RIA, (out, in), float32; the weights of a row or column of zeros get a score of zero."""
    size = layer.weights.abs().float()
    columns, rows = size.sum(0, keepdim=True), size.sum(1, keepdim=True)
    share = size / columns.masked_fill_(columns == 0, 1)
    share += size / rows.masked_fill_(rows == 0, 1)
    return share.mul_(input_norms(layer) ** EXPONENT)
