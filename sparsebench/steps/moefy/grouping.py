"""Group neurons into groups of equal size, by balanced k-means on a matrix of inner products or by METIS on its graph.

G_ij is the inner product of the vectors that represent neurons i and j. The squared distance of i to the mean of group
e is G_ii - 2/|e| Σ_{j∈e} G_ij + 1/|e|² Σ_{j,k∈e} G_jk, so that G is all that is needed:

    kmeans        G = Ŵ Ŵᵀ, the rows of the first matrix (gate, without a gate up) at length 1 (MoEfication, 2110.01786)
    coactivation  G_ij = how often both are among the largest tenth of a token's |h|, over √(how often i · how often j)
    cmoe          the counts themselves; the neurons active most often make experts that all tokens share (2502.04416)
    random        groups are drawn; G only decides which neuron represents an expert

Wherever activity is counted, the largest tenth of a token's neurons is active; CMoE itself counts the ten largest at
any width.

METIS cuts a graph into parts with little edge weight between them, as MoEfication does with the graph of neurons that are
active together. METIS needs integer weights and a sparse graph. So a neuron keeps its ``EDGES`` heaviest edges and those
that other neurons keep to it, in thousandths of the heaviest edge of all. An edge takes 16 bytes in each direction: a
graph of 8,192 neurons takes at most 25 MB, its matrix 268 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array

from sparsebench.errors import UserError

KMEANS_ROUNDS = 8
"""The most rounds of k-means."""
EDGES = 96
"""Chosen on five blocks of SmolLM2-135M: with 20 edges, less co-activation stayed inside groups in each of them; with
128 at most 2% more."""
UNIT = 1000
"""The integer weight of the heaviest edge."""


@dataclass(frozen=True)
class Grouping:
    """A partition of neurons: ``assignment`` (neurons,) int64 is each neuron's expert, ``representatives`` (experts,)
    int64 the neuron of each expert that is nearest to the expert's mean."""

    assignment: torch.Tensor
    representatives: torch.Tensor


def group_neurons(
    method: str, gram: torch.Tensor, experts: int, shared: int, seed: int, partition: str = "balanced"
) -> Grouping:
    """Group neurons into ``experts`` groups by ``gram`` (neurons, neurons) float32.

    The first ``shared`` groups hold the neurons with the largest diagonal. The number of neurons must be a multiple of
    ``experts``. Raises UserError for ``metis`` where pymetis cannot be imported.
    """
    neurons = len(gram)
    size = neurons // experts
    generator = torch.Generator().manual_seed(seed)
    assignment = torch.empty(neurons, dtype=torch.int64)
    order = gram.diagonal().argsort(descending=True, stable=True)
    assignment[order[: shared * size]] = torch.arange(shared).repeat_interleave(size)
    routed = order[shared * size :].sort().values
    if method == "random":
        drawn = torch.randperm(len(routed), generator=generator)
        assignment[routed[drawn]] = torch.arange(shared, experts).repeat_interleave(size)
    elif len(routed):
        divide = metis_groups if partition == "metis" else kmeans_groups
        assignment[routed] = shared + divide(gram[routed][:, routed], experts - shared, generator)
    distance = _distances(gram, assignment, experts) + gram.diagonal()[:, None]
    distance[assignment[:, None] != torch.arange(experts)] = torch.inf
    return Grouping(assignment, distance.argmin(0))


def kmeans_groups(gram: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Return each neuron's group by balanced k-means, (neurons,) int64: groups of equal size around their means."""
    start = torch.randperm(len(gram), generator=generator)[:groups]
    groups_of = _cheapest_assignment(gram.diagonal()[start] - 2 * gram[:, start])
    for _ in range(KMEANS_ROUNDS):
        last = groups_of
        groups_of = _cheapest_assignment(_distances(gram, groups_of, groups))
        if torch.equal(last, groups_of):
            break
    return groups_of


def _distances(gram: torch.Tensor, assignment: torch.Tensor, groups: int) -> torch.Tensor:
    """Return squared distances of neurons to the means of groups, (neurons, groups), each less the neuron's G_ii."""
    share = torch.nn.functional.one_hot(assignment, groups).to(gram.dtype) * (groups / len(gram))
    across = gram @ share
    return (share * across).sum(0) - 2 * across


def _cheapest_assignment(cost: torch.Tensor) -> torch.Tensor:
    """Return the assignment of rows to columns with the least cost and equally many rows to a column."""
    size = len(cost) // cost.shape[1]
    _, columns = linear_sum_assignment(np.repeat(cost.double().numpy(), size, axis=1))
    return torch.from_numpy(columns // size)


def metis_groups(gram: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Return each neuron's group, (neurons,) int64: groups of equal size with little of ``gram`` between them.

    ``gram`` (neurons, neurons) is float32 and symmetric. Raises UserError where pymetis cannot be imported.
    """
    try:
        import pymetis
    except ImportError as error:
        problem = f"partition: metis: pymetis cannot be imported ({error})"
        raise UserError(problem, "pip install 'pymetis>=2025.2'") from error
    pairs = gram.clone().fill_diagonal_(0)
    graph, dtype = _heaviest_edges(pairs), pymetis.zero_copy_dtype()
    adjacency = pymetis.CSRAdjacency(graph.indptr.astype(dtype), graph.indices.astype(dtype))
    # METIS seeds the C library's generator, for which 0 and 1 are the same seed. A drawn seed keeps a recipe's 0 and 1
    # apart.
    options = pymetis.Options(seed=int(torch.randint(2**31 - 1, (), generator=generator)))
    # Recursive bisection: METIS's direct k-way cut left less weight inside groups and needed more moves afterwards.
    cut = pymetis.part_graph(groups, adjacency, eweights=graph.data.astype(dtype), recursive=True, options=options)
    return even_groups(pairs, torch.tensor(cut.vertex_part), groups)


def even_groups(pairs: torch.Tensor, assignment: torch.Tensor, groups: int) -> torch.Tensor:
    """Return ``assignment`` (neurons,) int64 with groups of equal size, made so by as few moves as possible.

    ``pairs`` (neurons, neurons) has 0 on its diagonal. Each move takes a neuron from a group with too many to one with
    too few. The next move is always the one with the least loss: the neuron's sum of ``pairs`` with its old group less
    that with its new group. Of equal moves the first is taken.
    """
    size, assignment = len(pairs) // groups, assignment.clone()
    ties = pairs @ torch.nn.functional.one_hot(assignment, groups).to(pairs.dtype)
    while (sizes := assignment.bincount(minlength=groups)).max() > size:
        loss = ties.gather(1, assignment[:, None]) - ties
        loss[sizes[assignment] <= size] = torch.inf
        loss[:, sizes >= size] = torch.inf
        neuron, group = divmod(int(loss.argmin()), groups)
        ties[:, assignment[neuron]] -= pairs[neuron]
        ties[:, group] += pairs[neuron]
        assignment[neuron] = group
    return assignment


def _heaviest_edges(pairs: torch.Tensor) -> csr_array:
    """Return the symmetric graph of the heaviest edges, in whole numbers; like ``pairs`` it has no loops."""
    neurons = len(pairs)
    weights, neighbours = pairs.topk(min(EDGES, neurons - 1), 1)
    rows = torch.arange(neurons)[:, None].expand_as(neighbours)
    positive = weights > 0
    edge_weights = (weights[positive] / weights.max() * UNIT).round().clamp_min(1).long()
    ends = rows[positive].numpy(), neighbours[positive].numpy()
    half = coo_array((edge_weights.numpy(), ends), shape=(neurons, neurons)).tocsr()
    return half.maximum(half.T).tocsr()
