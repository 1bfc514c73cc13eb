"""Checks that tensors are finite; each names the tensor, what is wrong with it, and the way out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparsebench.errors import ModelError
from sparsebench.steps.prune.contract import Layer


def check_finite(
    tensor: torch.Tensor,
    name: str,
    problem: str = "NaN or infinite values",
    hint: str = "repair or fetch the checkpoint again",
) -> None:
    """Raise ModelError "tensor NAME: WHAT" where an element is NaN or infinite."""
    if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor)):
        raise ModelError(f"tensor {name}: {problem}", hint)


def check_weights(layers: Sequence[Layer]) -> None:
    """Raise ModelError, naming the tensor, for NaN or infinite weights."""
    for layer in layers:
        check_finite(layer.weights, layer.name)


def check_range(weights: torch.Tensor, name: str) -> None:
    """Raise ModelError, naming the tensor, for updated weights beyond the range of their dtype."""
    problem = f"the updated weights exceed the range of {str(weights.dtype).removeprefix('torch.')}"
    check_finite(weights, name, problem, "convert the checkpoint to bfloat16")


def check_gram(gram: torch.Tensor, name: str) -> None:
    """Raise ModelError, naming the tensor, for NaN or infinite statistics of its inputs."""
    hint = "calibrate in float32 or bfloat16, or with other text"
    check_finite(gram, name, "NaN or infinite activations reach it", hint)
