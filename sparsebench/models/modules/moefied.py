"""Feed-forward parts whose neurons are grouped into experts, of which a router chooses some for each token.

The weights are the dense model's, in their order. Under ``sparsebench_moe``, config.json names each part's layers.
Stored under the path of the part's last layer are ``moe.assignment`` (neurons,) I32, the expert of each neuron, and the
router's tensors. Neurons of experts that were not chosen count as zero; the arithmetic stays dense here. Stock
transformers ignores the key and these tensors, and computes with all neurons.

    oracle          score of an expert = Σ |h_i| ‖column i of W_out‖ over its neurons: what they give, known only afterwards
    centroid        x · c, c (experts, in) being unit vectors
    representative  |σ(g · x + a) (u · x + b)|, the gate and up rows of one neuron of the expert; |σ(u · x + b)| without gate
    learned         W₂ tanh(W₁ x)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sparsebench.errors import ModelError
from sparsebench.models.files.checkpoint import Checkpoint
from sparsebench.models.modules.skipping import EXPERTS_KEY, ExpertsConfig, FeedForward, experts_of, module_at

_ROUTER_TENSORS = {
    "centroid": ("router.weight",),
    "representative": ("router.up",),
    "learned": ("router.first", "router.second"),
}
"""The tensors that each router needs, by their names after ``moe.``; the first dimension of each is the experts."""


class ExpertRouter(nn.Module):
    """The router of one part. ``tables`` are its tensors by their names after ``moe.``, without the assignment."""

    assignment: torch.Tensor

    def __init__(
        self, config: ExpertsConfig, assignment: torch.Tensor, tables: Mapping[str, torch.Tensor], activation: nn.Module
    ) -> None:
        super().__init__()
        self.experts_config, self.neurons = config, len(assignment)
        self.__dict__["activation"] = activation  # the model's own module, not a submodule here
        self.register_buffer("assignment", assignment.long(), persistent=False)
        for name, table in tables.items():
            self.register_buffer(name.replace(".", "_"), table, persistent=False)
        self.inputs_read: torch.Tensor | None = None
        self.neuron_mask: torch.Tensor | None = None

    def scores(self, inputs: torch.Tensor, neurons: torch.Tensor | None) -> torch.Tensor:
        """Return scores (…, experts) of the ``inputs`` (…, in); the oracle's are of the ``neurons`` (…, neurons)."""
        tables: dict[str, Any] = self._buffers
        match self.experts_config.router:
            case "oracle":
                assert neurons is not None
                return self._expert_outputs(neurons, tables["norms"])
            case "centroid":
                return F.linear(inputs, tables["router_weight"])
            case "learned":
                return F.linear(torch.tanh(F.linear(inputs, tables["router_first"])), tables["router_second"])
            case _:
                return self._representative_values(inputs).abs()

    def _expert_outputs(self, neurons: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
        """Return what the neurons of each expert give (…, experts)."""
        shape = (*neurons.shape[:-1], self.experts_config.experts)
        scores = torch.zeros(shape, dtype=torch.float32, device=neurons.device)
        return scores.index_add_(-1, self.assignment, neurons.abs().float() * norms)

    def _representative_values(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the value of one neuron of each expert (…, experts)."""
        tables: dict[str, Any] = self._buffers
        activation: Any = self.__dict__["activation"]
        up = F.linear(inputs, tables["router_up"], tables.get("router_bias"))
        if "router_gate" not in tables:
            return activation(up)
        return activation(F.linear(inputs, tables["router_gate"], tables.get("router_gate_bias"))) * up

    def keep_inputs(self, inputs: torch.Tensor) -> None:
        """Keep the part's input x (…, in) for ``chosen_neurons``."""
        self.inputs_read, self.neuron_mask = inputs, None

    def chosen_experts(self, inputs: torch.Tensor, neurons: torch.Tensor | None = None) -> torch.Tensor:
        """Return which experts are computed for the part's ``inputs``: bool (…, experts); the oracle needs ``neurons``."""
        scores = self.scores(inputs, neurons)
        scores[..., : self.experts_config.shared] = torch.inf
        expert_mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        return expert_mask.scatter_(-1, scores.topk(self.experts_config.active, -1).indices, True)

    def chosen_neurons(self, neurons: torch.Tensor | None = None) -> torch.Tensor:
        """Return which neurons are computed for the kept input, bool (…, neurons); the oracle needs ``neurons``."""
        if self.neuron_mask is None:
            assert self.inputs_read is not None, "a part's last layer runs before its first"
            self.neuron_mask = self.chosen_experts(self.inputs_read, neurons)[..., self.assignment]
            self.inputs_read = None
        return self.neuron_mask


def install_routers(model: Any, checkpoint: Checkpoint) -> None:
    """Mask the neurons of ``model`` as the checkpoint's config.json says, in place.

    Raises ModelError where a layer or tensor that it names is missing or does not fit.
    """
    config = experts_of(checkpoint.config)
    if config is None:
        return
    for part in config.parts:
        first, down, activation = (
            module_at(model, path, EXPERTS_KEY) for path in (part.first, part.down, part.activation)
        )
        router = _build_router(config, part, checkpoint, (first, down, activation))
        hook_router(router, first, down)


def hook_router(router: ExpertRouter, first: nn.Module, down: nn.Module) -> None:
    """Have a part's first layer pass its input to the router, and its last layer mask the neurons not chosen."""
    down.add_module("moe", router)
    first.register_forward_pre_hook(lambda module, args: router.keep_inputs(args[0]))
    down.register_forward_pre_hook(lambda module, args: (args[0] * router.chosen_neurons(args[0]), *args[1:]))


def _build_router(
    config: ExpertsConfig, part: FeedForward, checkpoint: Checkpoint, modules: tuple[nn.Module, nn.Module, nn.Module]
) -> ExpertRouter:
    """Build a part's router from the checkpoint's tensors; ``modules`` are its first layer, last layer and activation.

    Raises ModelError where the assignment or a tensor of the router is missing or does not fit.
    """
    first, down, activation = modules
    weight: Any = down.weight
    dtype: Any = first.weight.dtype
    input_dim = 0 if type(down).__name__ == "Conv1D" else 1
    prefix = part.name("")
    tables = {
        name.removeprefix(prefix): checkpoint.load(name).to(dtype)
        for name in checkpoint.tensors
        if name.startswith(prefix) and not name.endswith(".assignment")
    }
    name = part.name("assignment")
    assignment = checkpoint.load(name) if name in checkpoint.tensors else torch.empty(0, device="cpu")
    neurons = weight.shape[input_dim]
    if assignment.shape != (neurons,) or not 0 <= int(assignment.min()) <= int(assignment.max()) < config.experts:
        problem = f"{checkpoint.folder}: {name} does not say the expert of {neurons} neurons"
        raise ModelError(problem, "make the variant again")
    for required in _ROUTER_TENSORS.get(config.router, ()):
        if required not in tables or tables[required].shape[:1] != (config.experts,):
            problem = f"{checkpoint.folder}: {part.name(required)} has no row for each of {config.experts} experts"
            raise ModelError(problem, "make the variant again")
    if config.router == "oracle":
        tables["norms"] = weight.detach().float().norm(dim=1 - input_dim)
    return ExpertRouter(config, assignment, tables, activation)
