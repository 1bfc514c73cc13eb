"""Wanda (Sun et al. 2023): the score of a weight is its magnitude times the norm of its input.

    S_ij = |W_ij| · ‖x_j‖₂        compared within each output row i

‖x_j‖₂ runs over all calibration tokens. The authors divide by the number of tokens, which does not change the order.
"""

from __future__ import annotations

import torch

from sparsebench.steps.finite import check_gram
from sparsebench.steps.prune.contract import Layer


def wanda_scores(layer: Layer) -> torch.Tensor:
    """Return S, (out, in), float32."""
    return layer.weights.abs().float().mul_(input_norms(layer))


def input_norms(layer: Layer) -> torch.Tensor:
    """Return ‖x_j‖₂ of the layer's inputs, (in,), float32. Raises ModelError, naming the tensor, if not finite."""
    if layer.inputs is None:
        raise ValueError(f"{layer.name}: no statistics of what it reads")
    norms = layer.inputs.squares.float().sqrt()
    check_gram(norms, layer.name)
    return norms
