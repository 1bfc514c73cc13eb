"""Fused experts taken apart: each linear layer of a model's experts becomes a module of its own.

Hooks, sparse kernels and code that replaces weights can then treat an expert's layers like any other. Experts run one
after another, each on the tokens that the model's own router chose it for.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsebench.models.shape.topology import stored_apart

GATE, UP, GATE_UP, DOWN = "gate_proj", "up_proj", "gate_up_proj", "down_proj"


class Expert(nn.Module):
    """One expert: its linear layers ``names``, then ``down_proj``, all without storage until they are given weights."""

    fused: Any
    names: tuple[str, ...]

    def __init__(self, fused: Any, names: tuple[str, ...], sizes: tuple[int, int, int]) -> None:
        super().__init__()
        width, inner, out = sizes
        bias = getattr(fused, "has_bias", False)
        with torch.device("meta"):
            for name in names:
                self.add_module(name, nn.Linear(width, inner // len(names), bias, dtype=fused.down_proj.dtype))
            self.down_proj = nn.Linear(out, width, bias, dtype=fused.down_proj.dtype)
        self.requires_grad_(False)
        self.names = names
        self.__dict__["fused"] = fused  # not as a submodule: its parameters were removed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, width) to (tokens, width)."""
        inner = torch.cat([getattr(self, name)(x) for name in self.names], -1)
        return self.down_proj(_activation(self.fused, inner))


class Experts(nn.ModuleList):
    """All experts of a layer, replacing the ``fused`` module; ``split`` where gate and up are stored separately.

    While an expert runs, ``tokens`` (n,) are the indices of the rows of the layer's input that are routed to it.
    """

    fused: Any
    transposed: bool
    tokens: Any

    def __init__(self, fused: Any, split: bool) -> None:
        gated = hasattr(fused, GATE_UP)
        transposed = is_transposed(fused)
        experts, inner, width = getattr(fused, GATE_UP if gated else UP).shape
        if transposed:
            inner, width = width, inner
        names: tuple[str, ...] = (UP,)
        if gated:
            names = (GATE, UP) if split else (GATE_UP,)
        out = inner // 2 if gated else inner
        super().__init__(Expert(fused, names, (width, inner, out)) for _ in range(experts))
        self.transposed, self.tokens = transposed, None
        self.__dict__["fused"] = fused
        for name in list(fused._parameters):
            fused._parameters[name] = None

    def share_weights(self, weights: Mapping[str, Any]) -> None:
        """Set the layers' weights and biases to views of the fused parameters ``weights``."""
        for attribute, names in self._layers_of_parameters():
            biases = weights.get(f"{attribute}_bias")
            for number, expert in enumerate(self):
                matrix = weights[attribute][number]
                parts = {"weight": (matrix.T if self.transposed else matrix).chunk(len(names))}
                if biases is not None:
                    parts["bias"] = biases[number].chunk(len(names))
                for kind, tensors in parts.items():
                    for name, tensor in zip(names, tensors, strict=True):
                        setattr(getattr(expert, name), kind, nn.Parameter(tensor, requires_grad=False))

    def _layers_of_parameters(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Return the fused module's parameters, each with the names of the layers of an expert that it holds."""
        names: tuple[str, ...] = self[0].names  # type: ignore[assignment]
        return (GATE_UP if len(names) == 2 else names[0], names), (DOWN, (DOWN,))

    def forward(self, hidden: torch.Tensor, chosen_experts: Any = None, weights: Any = None) -> torch.Tensor:
        """Map (tokens, width) to the outputs of ``chosen_experts`` (tokens, k), summed with ``weights`` of that shape."""
        if chosen_experts is None:
            return self._run_scaled(hidden)
        total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        for number in chosen_experts.unique().tolist():
            self.tokens, rank = torch.where(chosen_experts == number)
            outputs = self[number](hidden[self.tokens]) * weights[self.tokens, rank, None]
            total.index_add_(0, self.tokens, outputs.float())
        return total.to(hidden.dtype)

    def _run_scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Run Llama 4's experts, which all get every token, scaled by its score: zero where it did not choose them."""
        by_expert = hidden.view(len(self), -1, hidden.shape[-1])
        total = torch.zeros_like(by_expert)
        for number, rows in enumerate(by_expert):
            self.tokens = rows.any(-1).nonzero().flatten()
            if len(self.tokens):
                total[number, self.tokens] = self[number](rows[self.tokens])
        return total.view(hidden.shape)

    def to_fused(self) -> Any:
        """Return the fused module with the experts' weights moved back into it."""
        fused = self.fused
        for attribute, names in self._layers_of_parameters():
            for kind, suffix in (("weight", ""), ("bias", "_bias")):
                if getattr(self[0].down_proj, kind) is None:
                    continue
                stack = torch.stack(
                    [torch.cat([getattr(getattr(expert, name), kind) for name in names]) for expert in self]
                )
                if self.transposed and kind == "weight":
                    stack = stack.mT.contiguous()
                fused._parameters[attribute + suffix] = nn.Parameter(stack)
                for layer in (getattr(expert, name) for expert in self for name in names):
                    layer._parameters[kind] = None
        return fused


def _activation(fused: Any, inner: torch.Tensor) -> torch.Tensor:
    """Apply the activation between an expert's layers by the model's own code; Llama 4 has it inside its forward."""
    activated: torch.Tensor
    if not getattr(fused, "has_gate", True):
        activated = fused.act_fn(inner)
    elif hasattr(fused, "_apply_gate"):
        activated = fused._apply_gate(inner)
    else:
        gate, up = inner.chunk(2, -1)
        activated = up * fused.act_fn(gate)
    return activated


def is_fused(module: Any) -> bool:
    """Return whether a module holds experts in a known form: one activation between two layers, nothing after them."""
    is_known = hasattr(module, "is_transposed") or type(module).__name__ == "Llama4TextExperts"
    return is_known and hasattr(module, DOWN) and not getattr(module, "has_post_expert_norm", False)


def still_fused(model: nn.Module) -> list[str]:
    """Return the paths of modules that hold several experts' matrices in one parameter, in any form."""
    paths = []
    for path, module in model.named_modules():
        fused = any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))
        if fused and "conv" not in type(module).__name__.lower():
            paths.append(path)
    return paths


def is_transposed(fused: Any) -> bool:
    """Return whether a fused module's weights are (experts, in, out)."""
    return bool(getattr(fused, "is_transposed", type(fused).__name__ == "Llama4TextExperts"))


def split_experts(model: PreTrainedModel, stored: Collection[str]) -> None:
    """Replace every fused experts module of ``model``; the ``stored`` names tell whether gate and up are apart."""
    for path, module in list(model.named_modules()):
        if is_fused(module):
            model.set_submodule(path, Experts(module, stored_apart(stored)))


def split_with_weights(model: PreTrainedModel, stored: Collection[str]) -> bool:
    """Split the experts of a model with weights, which their layers then share; return whether there are any."""
    fused = {path: dict(module._parameters) for path, module in model.named_modules() if is_fused(module)}
    split_experts(model, stored)
    for path, weights in fused.items():
        model.get_submodule(path).share_weights(weights)  # type: ignore[operator]
    return bool(fused)


def fuse_experts(model: PreTrainedModel) -> None:
    """Fuse again those experts whose layers are all plain ``nn.Linear``."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Experts) and all(
            type(layer) is nn.Linear for expert in module for layer in expert.children()
        ):
            model.set_submodule(path, module.to_fused())
