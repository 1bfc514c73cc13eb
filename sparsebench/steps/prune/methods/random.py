"""Random pruning: every weight draws a number; the lowest draws go.

The draws depend on the seed and the tensor's name only, so that the versions of a sweep are nested
and a tensor is treated alike wherever it lies in the checkpoint.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from sparsebench.steps.prune.contract import Layer
from sparsebench.steps.prune.factor import check_weights

if TYPE_CHECKING:
    import torch


def score(layer: Layer) -> torch.Tensor:
    """Uniform int32 draws of the weights' shape and device, in [0, 2^31 - 1). Raises ModelError for NaN or infinite weights."""
    import torch

    check_weights([layer])

    # torch's generator looks at 32 bits of its seed: both go into the hash.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{layer.seed}:{layer.name}".encode()))
    drawn = torch.randint(0, 2**31 - 1, layer.weights.shape, generator=generator, dtype=torch.int32)
    # Drawn on the CPU wherever the weights lie, so that a seed has the same mask everywhere.
    return drawn.to(layer.weights.device)
