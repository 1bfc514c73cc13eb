"""Which weights go: exact counts, ties broken by position, for every granularity and pattern.

A mask is True where a weight is removed. Counts are ``round(s·n)`` per comparison group, as in
``torch.nn.utils.prune``; among equal scores the earlier weight (row by row) goes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sparsebench.manifest.schema import PATTERN
from sparsebench.sparsify.keys import Threshold, thresholds

if TYPE_CHECKING:
    import torch


def count(sparsity: float, size: int) -> int:
    """How many of ``size`` weights to remove: Python's round, so a half goes to the even number."""
    return round(sparsity * size)


def lowest(keys: torch.Tensor, threshold: Threshold) -> torch.Tensor:
    """Mask of the keys below the threshold and of the first ``ties`` equal to it, in row-major order."""
    mask = keys < threshold.key
    if threshold.ties:
        equal = (keys == threshold.key).reshape(-1).nonzero().reshape(-1)
        mask.view(-1)[equal[: threshold.ties]] = True
    return mask


def by_layer(keys: torch.Tensor, sparsities: Sequence[float]) -> list[torch.Tensor]:
    """One mask per sparsity; all weights of the matrix compete."""
    ranks = [count(sparsity, keys.numel()) for sparsity in sparsities]
    return [lowest(keys, threshold) for threshold in thresholds([[keys], [keys]], ranks)]


def by_row(keys: torch.Tensor, sparsities: Sequence[float]) -> list[torch.Tensor]:
    """One mask per sparsity; the weights of each output row (dimension 0) compete."""
    rank = _ranks(keys)
    return [rank < count(sparsity, keys.shape[1]) for sparsity in sparsities]


def by_pattern(keys: torch.Tensor, pattern: str) -> torch.Tensor:
    """N:M along the input (dimension 1): of every M, the M−N lowest go.

    Columns beyond the last whole group of M stay, as no kernel could use them.
    """
    import torch

    match = PATTERN.match(pattern)
    assert match, pattern
    keep, group = int(match[1]), int(match[2])
    rows, whole = keys.shape[0], keys.shape[1] // group * group
    mask = torch.zeros_like(keys, dtype=torch.bool)
    if whole:
        ranked = _ranks(keys[:, :whole].reshape(-1, group))
        mask[:, :whole] = (ranked < group - keep).reshape(rows, whole)
    return mask


def _ranks(keys: torch.Tensor) -> torch.Tensor:
    """Each key's position in its row's order, ties by position: int32 of the same shape."""
    import torch

    order = torch.argsort(keys, dim=1, stable=True)
    rank = torch.empty_like(order, dtype=torch.int32)
    places = torch.arange(keys.shape[1], dtype=torch.int32).expand_as(rank)
    return rank.scatter_(1, order, places)
