"""A part's activity on the text: how often experts are chosen, how often their neurons are active together."""

from __future__ import annotations

import torch

from sparsebench.models.modules.moefied import ExpertRouter
from sparsebench.steps.contract import Activity
from sparsebench.steps.moefy.routers import NeuronStatistics

ROWS = 512
"""Tokens that are routed at once."""


def activity_of(stack: str, layer: int, path: str, router: ExpertRouter, statistics: NeuronStatistics) -> Activity:
    """Return one part's row of the ledger's table, from its inputs and neurons' values in the unchanged model.

    ``path`` is that of the part's last matrix.
    """
    return Activity(
        stack,
        layer,
        path,
        statistics.magnitudes.near_zero,
        uses=expert_uses(router, torch.cat(statistics.inputs), torch.cat(statistics.values)),
        together=coactivation_inside(statistics.counts, router.assignment),
        inside=share_inside(statistics.gram("coactivation"), router.assignment),
    )


def expert_uses(router: ExpertRouter, inputs: torch.Tensor, neurons: torch.Tensor) -> tuple[float, ...]:
    """Return the share of the tokens for which each expert is computed; experts that all tokens share are left out.

    Tokens are the rows of ``inputs`` (tokens, in) and ``neurons`` (tokens, neurons).
    """
    config = router.experts_config
    counts = torch.zeros(config.experts)
    for input_rows, neuron_rows in zip(inputs.split(ROWS), neurons.split(ROWS), strict=True):
        counts += router.chosen_experts(input_rows, neuron_rows).sum(0)
    return tuple((counts / len(inputs)).tolist()[config.shared :])


def coactivation_inside(counts: torch.Tensor | None, assignment: torch.Tensor) -> float | None:
    """Return how often two neurons of one expert are active for the same token, over how often any two neurons are.

    ``counts`` (neurons, neurons) is how often two are active together, ``assignment`` (neurons,) each neuron's expert.
    None where there are no counts, no two neurons are ever active together, or every expert has only one neuron.
    """
    if counts is None:
        return None
    pairs = ~torch.eye(len(counts), dtype=torch.bool)
    same = pairs & (assignment[:, None] == assignment)
    mean = float(counts[pairs].mean())
    return float(counts[same].mean()) / mean if mean and bool(same.any()) else None


def share_inside(gram: torch.Tensor, assignment: torch.Tensor) -> float | None:
    """Return the share of all pairs' co-activation, ``gram`` (neurons, neurons), inside experts: 1 minus the cut.

    ``assignment`` (neurons,) is each neuron's expert. None where no two neurons are ever active together.
    """
    pairs = gram.clone().fill_diagonal_(0)
    total = float(pairs.sum())
    return float(pairs[assignment[:, None] == assignment].sum()) / total if total else None
