"""Neurons into groups of equal size: balanced k-means on a matrix of inner products, or METIS (``metis``) on its graph.

With G_ij the inner product of what stands for neurons i and j, the squared distance of i to the mean of group e is
G_ii - 2/|e| Σ_{j∈e} G_ij + 1/|e|² Σ_{j,k∈e} G_jk, so that nothing but G is needed:

    kmeans        G = Ŵ Ŵᵀ, the rows of the first matrix (gate, without a gate up) at length 1 (MoEfication, 2110.01786)
    coactivation  G_ij = how often both are among the largest tenth of a token's |h|, over √(how often i · how often j)
    cmoe          the counts themselves; neurons that are most often among them are experts that all tokens share (2502.04416)
    random        no G: drawn

A tenth of all neurons counts as active in every way; CMoE itself counts the ten largest of a token, whatever the width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from sparsebench.steps.moefy.metis import partitioned

ROUNDS = 8
LARGEST = 0.1
"""The share of a token's neurons that count as active."""


@dataclass(frozen=True)
class Grouping:
    """``assignment`` (neurons,) int64 gives each neuron's expert, ``representatives`` (experts,) int64 the neuron of each that
    stands nearest to the mean of its own."""

    assignment: torch.Tensor
    representatives: torch.Tensor


def grouped(
    way: str, gram: torch.Tensor, experts: int, shared: int, seed: int, partition: str = "balanced"
) -> Grouping:
    """Group neurons by ``gram`` (neurons, neurons) float32: ``experts`` groups, the first ``shared`` those of the neurons with
    the largest diagonal. Neurons are a multiple of experts. Raises UserError for ``metis`` where that is not installed."""
    neurons = len(gram)
    size = neurons // experts
    generator = torch.Generator().manual_seed(seed)
    assignment = torch.empty(neurons, dtype=torch.int64)
    order = gram.diagonal().argsort(descending=True, stable=True)
    assignment[order[: shared * size]] = torch.arange(shared).repeat_interleave(size)
    rest = order[shared * size :].sort().values
    if way == "random":
        drawn = torch.randperm(len(rest), generator=generator)
        assignment[rest[drawn]] = torch.arange(shared, experts).repeat_interleave(size)
    elif len(rest):
        cut = partitioned if partition == "metis" else balanced
        assignment[rest] = shared + cut(gram[rest][:, rest], experts - shared, generator)
    distance = _distances(gram, assignment, experts) + gram.diagonal()[:, None]
    distance[assignment[:, None] != torch.arange(experts)] = torch.inf
    return Grouping(assignment, distance.argmin(0))


def balanced(gram: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Groups of equal size whose members stand near to their mean: (neurons,) int64."""
    start = torch.randperm(len(gram), generator=generator)[:groups]
    found = _nearest(gram.diagonal()[start] - 2 * gram[:, start])
    for _ in range(ROUNDS):
        last, found = found, _nearest(_distances(gram, found, groups))
        if torch.equal(last, found):
            break
    return found


def _distances(gram: torch.Tensor, assignment: torch.Tensor, groups: int) -> torch.Tensor:
    """Squared distances of neurons to the means of groups, (neurons, groups), each less the neuron's own inner product."""
    share = torch.nn.functional.one_hot(assignment, groups).to(gram.dtype) * (groups / len(gram))
    across = gram @ share
    return (share * across).sum(0) - 2 * across


def _nearest(cost: torch.Tensor) -> torch.Tensor:
    """The assignment of rows to columns, as many to each, with the least cost."""
    size = len(cost) // cost.shape[1]
    _, columns = linear_sum_assignment(np.repeat(cost.double().numpy(), size, axis=1))
    return torch.from_numpy(columns // size)
