"""Group neurons into groups of equal size by METIS, which cuts a graph into parts with little edge weight between them.

MoEfication (2110.01786) cuts the graph of neurons that are active together. METIS needs integer weights and a sparse
graph. So a neuron keeps its ``EDGES`` heaviest edges and those that other neurons keep to it, in thousandths of the
heaviest edge of all. An edge takes 16 bytes in each direction: a graph of 8,192 neurons takes at most 25 MB, its matrix
268 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsebench.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

EDGES = 96
"""Chosen on five blocks of SmolLM2-135M: with 20 edges, less co-activation stayed inside groups in each of them; with
128 at most 2% more."""
UNIT = 1000


def partitioned(gram: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Return each neuron's group, (neurons,) int64: groups of equal size with little of ``gram`` between them.

    ``gram`` (neurons, neurons) is float32 and symmetric. Raises UserError where pymetis cannot be imported.
    """
    try:
        import pymetis
    except ImportError as error:
        raise UserError(
            f"partition: metis: pymetis cannot be imported ({error})", "pip install 'pymetis>=2025.2'"
        ) from error
    pairs = gram.clone().fill_diagonal_(0)
    graph, whole = _graph(pairs), pymetis.zero_copy_dtype()
    adjacency = pymetis.CSRAdjacency(graph.indptr.astype(whole), graph.indices.astype(whole))
    # METIS seeds the C library's generator, for which 0 and 1 are the same seed. A drawn seed keeps a recipe's 0 and 1
    # apart.
    options = pymetis.Options(seed=int(torch.randint(2**31 - 1, (), generator=generator)))
    # Recursive bisection: METIS's direct k-way cut left less weight inside groups and needed more moves afterwards.
    cut = pymetis.part_graph(groups, adjacency, eweights=graph.data.astype(whole), recursive=True, options=options)
    return evened(pairs, torch.tensor(cut.vertex_part), groups)


def evened(pairs: torch.Tensor, assignment: torch.Tensor, groups: int) -> torch.Tensor:
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


def _graph(pairs: torch.Tensor) -> csr_array:
    """Return the symmetric graph of the heaviest edges, in whole numbers; like ``pairs`` it has no loops."""
    from scipy.sparse import coo_array

    neurons = len(pairs)
    weights, others = pairs.topk(min(EDGES, neurons - 1), 1)
    rows = torch.arange(neurons)[:, None].expand_as(others)
    kept = weights > 0
    whole = (weights[kept] / weights.max() * UNIT).round().clamp_min(1).long()
    half = coo_array((whole.numpy(), (rows[kept].numpy(), others[kept].numpy())), shape=(neurons, neurons)).tocsr()
    return half.maximum(half.T).tocsr()
