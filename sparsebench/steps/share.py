"""The share of a model's weights that one token reads where neurons are grouped, counted in the written files."""

from __future__ import annotations

from typing import Any

from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.skipping import experts_of
from sparsebench.models.shape.topology import prunable_parts


def read_share(checkpoint: Checkpoint, family: Any) -> float:
    """Return the weights that a token reads, router tables included, over the blocks' prunable weights.

    The share is 1 for a model without grouped neurons.
    """
    config = experts_of(checkpoint.config)
    if config is None:
        return 1.0
    sizes: dict[str, int] = {}
    for name, part in prunable_parts(checkpoint, family).items():
        if part.prunable:
            sizes[part.kind] = sizes.get(part.kind, 0) + checkpoint.tensors[name].numel
    # An oracle needs the values of all neurons: only the last matrix is read in part.
    chosen = ("down",) if config.router == "oracle" else ("gate", "up", "gate_up", "down")
    unread = sum(sizes.get(kind, 0) for kind in chosen) * (1 - config.active / config.experts)
    tables = sum(info.numel for info in checkpoint.tensors.values() if ".moe.router." in info.name)
    whole = sum(sizes.values())
    return (whole - unread + tables) / whole
