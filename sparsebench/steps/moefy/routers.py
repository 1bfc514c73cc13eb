"""The routers' tables, made from a part's weights and groups; the learned router is trained on text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from sparsebench.steps.moefy.grouping import Grouping
from sparsebench.steps.skip.magnitudes import Magnitudes

SAMPLES = 8192
"""Tokens that the learned router is trained on."""
EPOCHS, RATE, BATCH = 30, 0.01, 512
ACTIVE_SHARE = 0.1
"""The share of a token's neurons that counts as active."""


@dataclass(frozen=True)
class FeedForwardWeights:
    """A feed-forward part's weights, float32.

    ``gate`` and ``up`` are (neurons, in). ``gate`` is the input of the activation function; None where ``up`` is.
    ``gate_bias`` and ``up_bias`` are those of ``gate`` and ``up``. ``norms`` is the length of each neuron's column in the
    last matrix.
    """

    gate: torch.Tensor | None
    up: torch.Tensor
    gate_bias: torch.Tensor | None
    up_bias: torch.Tensor | None
    norms: torch.Tensor

    def unit_rows(self) -> torch.Tensor:
        """Return the matrix whose rows represent neurons (gate, without a gate up), rows at length 1."""
        return F.normalize(self.up if self.gate is None else self.gate, dim=1)

    def gram(self) -> torch.Tensor:
        """Return the inner products of the rows that represent neurons, (neurons, neurons)."""
        rows = self.unit_rows()
        return rows @ rows.T


@dataclass
class NeuronStatistics:
    """Statistics of a part's neurons on a text.

    ``counts`` (neurons, neurons) is how often two neurons are active together. ``inputs`` and ``values`` keep the
    part's inputs and its neurons' values for the first ``SAMPLES`` tokens. ``magnitudes`` are of the neurons' values
    for all tokens. ``function`` is the part's activation function.
    """

    function: torch.nn.Module
    counts: torch.Tensor | None = None
    magnitudes: Magnitudes = field(default_factory=Magnitudes)
    inputs: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)

    def add_inputs(self, rows: torch.Tensor) -> None:
        """Take the part's inputs for some tokens, (tokens, in)."""
        self._keep(self.inputs, rows)

    def add_values(self, rows: torch.Tensor) -> None:
        """Take the neurons' values for some tokens, (tokens, neurons), and count which are active together."""
        self._keep(self.values, rows)
        self.magnitudes.add(rows)
        sizes = rows.float().abs()
        largest = sizes.topk(max(1, int(ACTIVE_SHARE * sizes.shape[1])), 1)
        active = torch.zeros_like(sizes).scatter_(1, largest.indices, (largest.values > 0).float())
        if self.counts is None:
            self.counts = torch.zeros(sizes.shape[1], sizes.shape[1], device=sizes.device)
        self.counts += active.T @ active

    def on_cpu(self) -> NeuronStatistics:
        """Return a copy on the CPU after the last token: neurons are grouped and routers trained there."""
        counts = None if self.counts is None else self.counts.cpu()
        inputs, values = ([rows.cpu() for rows in kept] for kept in (self.inputs, self.values))
        return replace(self, counts=counts, inputs=inputs, values=values)

    def gram(self, method: str) -> torch.Tensor:
        """Return the Gram matrix for a ``method`` of grouping: counts, for ``coactivation`` over each one's frequency."""
        assert self.counts is not None
        if method == "cmoe":
            return self.counts
        frequency = self.counts.diagonal().clamp_min(1).sqrt()
        return self.counts / frequency / frequency[:, None]

    @staticmethod
    def _keep(collected: list[torch.Tensor], rows: torch.Tensor) -> None:
        room = SAMPLES - sum(map(len, collected))
        if room > 0:
            collected.append(rows[:room].float())


def router_tables(
    router: str,
    weights: FeedForwardWeights,
    grouping: Grouping,
    experts: int,
    statistics: NeuronStatistics | None,
    seed: int,
) -> Mapping[str, torch.Tensor]:
    """Return a router's tensors, float32, by their names after ``moe.``; none for the oracle."""
    if router == "oracle":
        return {}
    centroids = F.normalize(F.one_hot(grouping.assignment, experts).float().T @ weights.unit_rows(), dim=1)
    if router == "centroid":
        return {"router.weight": centroids}
    if router == "representative":
        matrices = {
            "router.up": weights.up,
            "router.bias": weights.up_bias,
            "router.gate": weights.gate,
            "router.gate_bias": weights.gate_bias,
        }
        return {name: table[grouping.representatives] for name, table in matrices.items() if table is not None}
    assert statistics is not None
    return _train_router(centroids, grouping.assignment, weights.norms, statistics, seed)


def _train_router(
    centroids: torch.Tensor, assignment: torch.Tensor, norms: torch.Tensor, statistics: NeuronStatistics, seed: int
) -> dict[str, torch.Tensor]:
    """Train MoEfication's network (linear, tanh, linear), and return its two matrices.

    It starts from the centroids and the identity. Its targets are the oracle's scores over the largest score of each
    token.
    """
    inputs = torch.cat(statistics.inputs)
    values = torch.cat(statistics.values)
    experts = len(centroids)
    targets = torch.zeros(len(inputs), experts).index_add_(1, assignment, values.abs() * norms)
    targets /= targets.amax(1, keepdim=True).clamp_min(1e-30)
    scale = (inputs @ centroids.T).std().clamp_min(1e-6)
    first = (centroids / scale).requires_grad_()
    second = torch.eye(experts).requires_grad_()
    optimizer = torch.optim.Adam([first, second], lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(inputs), generator=generator).split(BATCH):
                optimizer.zero_grad()
                scores = F.linear(torch.tanh(F.linear(inputs[rows], first)), second)
                F.binary_cross_entropy_with_logits(scores, targets[rows]).backward()
                optimizer.step()
    return {"router.first": first.detach(), "router.second": second.detach()}
