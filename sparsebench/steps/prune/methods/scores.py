"""The methods that only rank: magnitude, Wanda, RIA, and random numbers as the floor. The lowest scores are removed."""

from __future__ import annotations

import zlib

import torch

from sparsebench.steps.finite import check_gram, check_weights
from sparsebench.steps.prune.contract import Layer

RIA_EXPONENT = 0.5
"""RIA's a."""


def magnitude_scores(layer: Layer) -> torch.Tensor:
    """Return |w|, in the weights' dtype and shape (Han et al. 2015): scores are tied only where weights are."""
    return layer.weights.abs()


def random_scores(layer: Layer) -> torch.Tensor:
    """Return uniform int32 draws in [0, 2^31 - 1), with the weights' shape and device.

    They depend on the seed and the tensor's name only. So the variants of a sweep are nested, and a tensor's draws do
    not depend on its position in the checkpoint. Raises ModelError for NaN or infinite weights.
    """
    check_weights([layer])
    # torch's generator uses 32 bits of its seed, so the seed and the name are hashed to 32 bits.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{layer.seed}:{layer.name}".encode()))
    drawn = torch.randint(0, 2**31 - 1, layer.weights.shape, generator=generator, dtype=torch.int32)
    # Drawn on the CPU on every device, so that a seed gives the same mask everywhere.
    return drawn.to(layer.weights.device)


def wanda_scores(layer: Layer) -> torch.Tensor:
    """Return S_ij = |W_ij| · ‖x_j‖₂, (out, in), float32 (Wanda, Sun et al. 2023); compared within each output row i.

    The authors divide by the number of tokens, which does not change the order.
    """
    return layer.weights.abs().float().mul_(input_norms(layer))


def ria_scores(layer: Layer) -> torch.Tensor:
    """Return RIA_ij = (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖x_j‖₂^a, (out, in), float32 (Zhang et al. 2024).

    The weights of a row or column of zeros get a score of zero. No channel is removed altogether, as its last weights
    have a large share of it. The authors' code compares within the layer by default, optionally within the row.
    """
    magnitudes = layer.weights.abs().float()
    column_sums, row_sums = magnitudes.sum(0, keepdim=True), magnitudes.sum(1, keepdim=True)
    share = magnitudes / column_sums.masked_fill_(column_sums == 0, 1)
    share += magnitudes / row_sums.masked_fill_(row_sums == 0, 1)
    return share.mul_(input_norms(layer) ** RIA_EXPONENT)


def input_norms(layer: Layer) -> torch.Tensor:
    """Return ‖x_j‖₂ of the layer's inputs over all calibration tokens, (in,), float32.

    Raises ModelError, naming the tensor, if not finite.
    """
    norms = layer.statistics().squares.float().sqrt()
    check_gram(norms, layer.name)
    return norms
