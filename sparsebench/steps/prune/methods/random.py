"""Random pruning: every weight draws a number, and the weights with the lowest draws are removed.

The draws depend on the seed and the tensor's name only. So the variants of a sweep are nested, and a tensor's draws do
not depend on its position in the checkpoint.
"""

from __future__ import annotations

import zlib

import torch

from sparsebench.steps.finite import check_weights
from sparsebench.steps.prune.contract import Layer


def random_scores(layer: Layer) -> torch.Tensor:
    """Return uniform int32 draws in [0, 2^31 - 1), with the weights' shape and device.

    Raises ModelError for NaN or infinite weights.
    """
    check_weights([layer])

    # torch's generator uses 32 bits of its seed, so the seed and the name are hashed to 32 bits.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{layer.seed}:{layer.name}".encode()))
    drawn = torch.randint(0, 2**31 - 1, layer.weights.shape, generator=generator, dtype=torch.int32)
    # Drawn on the CPU on every device, so that a seed gives the same mask everywhere.
    return drawn.to(layer.weights.device)
