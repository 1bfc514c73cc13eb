"""Wanda (Sun et al. 2023): a weight matters as much as it is large and as what it is multiplied with is large.

    S_ij = |W_ij| · ‖x_j‖₂        compared within each output row i

‖x_j‖₂ runs over all calibration tokens; the authors divide by their number, which changes no order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsebench.errors import ModelError
from sparsebench.steps.prune.contract import Layer

if TYPE_CHECKING:
    import torch


def score(layer: Layer) -> torch.Tensor:
    """S (out, in) in float32."""
    return layer.weights.abs().float().mul_(input_norms(layer))


def input_norms(layer: Layer) -> torch.Tensor:
    """‖x_j‖₂ of the layer's inputs (in,), float32. Raises ModelError, naming the tensor, where one is NaN or infinite."""
    import torch

    if layer.inputs is None:
        raise ValueError(f"{layer.name}: no statistics of what it reads")
    norms = layer.inputs.squares.float().sqrt()
    if not bool(torch.isfinite(norms).all()):
        raise ModelError(
            f"tensor {layer.name}: NaN or infinite activations reach it",
            "calibrate in float32 or bfloat16, or with other text",
        )
    return norms
