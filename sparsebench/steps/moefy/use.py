"""What a text shows of a grouped part: how often its router chooses each expert, and whether an expert's neurons go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsebench.steps.contract import Activity

if TYPE_CHECKING:
    from sparsebench.models.moefied import ExpertRouter
    from sparsebench.steps.moefy.routers import NeuronStatistics

ROWS = 512
"""Tokens that are routed at once."""


def activity(chooser: ExpertRouter, seen: NeuronStatistics, side: str, layer: int, module: str) -> Activity:
    """One part's row of the ledger's table, from what the unchanged model read and gave."""
    uses = chosen(chooser, torch.cat(seen.inputs), torch.cat(seen.neurons))
    near_zero = seen.magnitudes.near_zero
    pairs = inside(seen.gram("coactivation"), chooser.assignment)
    return Activity(
        side, layer, module, near_zero, uses=uses, together=together(seen.counts, chooser.assignment), inside=pairs
    )


def chosen(chooser: ExpertRouter, inputs: torch.Tensor, neurons: torch.Tensor) -> tuple[float, ...]:
    """The share of the tokens, rows of ``inputs`` (tokens, in) and ``neurons`` (tokens, neurons), for which each expert is
    computed; those that all tokens share are left out."""
    counts = torch.zeros(chooser.how.experts)
    for x, h in zip(inputs.split(ROWS), neurons.split(ROWS), strict=True):
        counts += chooser.experts(x, h).sum(0)
    return tuple((counts / len(inputs)).tolist()[chooser.how.shared :])


def together(counts: torch.Tensor | None, assignment: torch.Tensor) -> float | None:
    """How often two neurons of one expert are active for the same token, over how often any two are; None where no two ever are.

    ``counts`` (neurons, neurons) says how often, ``assignment`` (neurons,) is each neuron's expert.
    """
    if counts is None:
        return None
    pairs = ~torch.eye(len(counts), dtype=torch.bool)
    same = pairs & (assignment[:, None] == assignment)
    usual = float(counts[pairs].mean())
    return float(counts[same].mean()) / usual if usual and bool(same.any()) else None


def inside(gram: torch.Tensor, assignment: torch.Tensor) -> float | None:
    """The share of all pairs' co-activation ``gram`` (neurons, neurons) that is of two neurons of one expert, 1 less the cut;
    None where no two are ever active together. ``assignment`` (neurons,) is each neuron's expert."""
    pairs = gram.clone().fill_diagonal_(0)
    whole = float(pairs.sum())
    return float(pairs[assignment[:, None] == assignment].sum()) / whole if whole else None
