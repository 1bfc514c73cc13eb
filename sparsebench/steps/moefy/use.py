"""A grouped part's activity on text: how often experts are chosen, and how often their neurons are active together."""

from __future__ import annotations

import torch

from sparsebench.models.modules.moefied import ExpertRouter
from sparsebench.steps.contract import Activity
from sparsebench.steps.moefy.routers import NeuronStatistics

ROWS = 512
"""Tokens that are routed at once."""


def activity(router: ExpertRouter, statistics: NeuronStatistics, side: str, layer: int, module: str) -> Activity:
    """Return one part's row of the ledger's table, from its inputs and neurons' values in the unchanged model."""
    uses = chosen(router, torch.cat(statistics.inputs), torch.cat(statistics.neurons))
    near_zero = statistics.magnitudes.near_zero
    pairs = inside(statistics.gram("coactivation"), router.assignment)
    return Activity(
        side, layer, module, near_zero, uses=uses, together=together(statistics.counts, router.assignment), inside=pairs
    )


def chosen(router: ExpertRouter, inputs: torch.Tensor, neurons: torch.Tensor) -> tuple[float, ...]:
    """Return the share of the tokens for which each expert is computed; experts that all tokens share are left out.

    Tokens are the rows of ``inputs`` (tokens, in) and ``neurons`` (tokens, neurons).
    """
    counts = torch.zeros(router.experts_config.experts)
    for x, h in zip(inputs.split(ROWS), neurons.split(ROWS), strict=True):
        counts += router.experts(x, h).sum(0)
    return tuple((counts / len(inputs)).tolist()[router.experts_config.shared :])


def together(counts: torch.Tensor | None, assignment: torch.Tensor) -> float | None:
    """Return how often two neurons of one expert are active for the same token, over how often any two neurons are.

    ``counts`` (neurons, neurons) is how often two are active together, ``assignment`` (neurons,) each neuron's expert.
    None where there are no counts, no two neurons are ever active together, or every expert has only one neuron.
    """
    if counts is None:
        return None
    pairs = ~torch.eye(len(counts), dtype=torch.bool)
    same = pairs & (assignment[:, None] == assignment)
    usual = float(counts[pairs].mean())
    return float(counts[same].mean()) / usual if usual and bool(same.any()) else None


def inside(gram: torch.Tensor, assignment: torch.Tensor) -> float | None:
    """Return the share of all pairs' co-activation, ``gram`` (neurons, neurons), inside experts: 1 minus the cut.

    ``assignment`` (neurons,) is each neuron's expert. None where no two neurons are ever active together.
    """
    pairs = gram.clone().fill_diagonal_(0)
    whole = float(pairs.sum())
    return float(pairs[assignment[:, None] == assignment].sum()) / whole if whole else None
