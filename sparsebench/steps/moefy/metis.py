"""Neurons into groups of equal size by METIS, which cuts a graph into parts such that the edges between them weigh little.

MoEfication (2110.01786) cuts the graph of neurons that are active together. METIS wants whole numbers and a sparse graph: a
neuron keeps its ``EDGES`` heaviest edges, and those that others keep to it, in thousandths of the heaviest of all. An edge takes
16 bytes in each direction, so that a graph of 8,192 neurons takes at most 25 MB, where its matrix takes 268 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsebench.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

EDGES = 96
"""With 20 less co-activation stayed inside groups, in each of five blocks of SmolLM2-135M; with 128 no more than 2% more."""
UNIT = 1000


def partitioned(gram: torch.Tensor, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Groups of equal size between which little of ``gram`` (neurons, neurons), float32 and symmetric, lies: (neurons,) int64.

    Raises UserError where pymetis cannot be imported.
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
    # METIS seeds the C library's generator, for which 0 and 1 are the same seed: so that a recipe's are not, one is drawn.
    options = pymetis.Options(seed=int(torch.randint(2**31 - 1, (), generator=generator)))
    # In halves of halves: METIS's other way, all parts at once, left less inside and needed more moves afterwards.
    cut = pymetis.part_graph(groups, adjacency, eweights=graph.data.astype(whole), recursive=True, options=options)
    return evened(pairs, torch.tensor(cut.vertex_part), groups)


def evened(pairs: torch.Tensor, assignment: torch.Tensor, groups: int) -> torch.Tensor:
    """``assignment`` (neurons,) int64 with groups of equal size, by as few moves as that takes. ``pairs`` (neurons, neurons) has
    0 on its diagonal.

    Each goes from a group that has too many to one that has too few. Of all such moves the next is the one for which what the
    neuron has of ``pairs`` with its old group exceeds least what it has with the new one; of equal ones the first.
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
    """The heaviest edges, in whole numbers; symmetric, and without loops as ``pairs`` is."""
    from scipy.sparse import coo_array

    neurons = len(pairs)
    weights, others = pairs.topk(min(EDGES, neurons - 1), 1)
    rows = torch.arange(neurons)[:, None].expand_as(others)
    kept = weights > 0
    whole = (weights[kept] / weights.max() * UNIT).round().clamp_min(1).long()
    half = coo_array((whole.numpy(), (rows[kept].numpy(), others[kept].numpy())), shape=(neurons, neurons)).tocsr()
    return half.maximum(half.T).tocsr()
