"""Quantization-aware training: the forward pass has the weights that ``quantize`` will make (Jacob et al. 1712.05877).

What is trained and stored are the weights before rounding. Each gets the gradient of its rounded value, as if rounding
changed nothing (the straight-through estimator, Bengio et al. 1308.3432). Zero is a point of every grid, so masked
weights stay zero in both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization

from sparsebench.errors import UnsupportedError
from sparsebench.models.files.quantized import Scheme
from sparsebench.steps.grid import nearest
from sparsebench.steps.recover.weights import MaskedParameter, TrainedWeights


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return gradient, None


class RoundedWeight(nn.Module):
    """A parametrization that gives a weight the values to which ``quantize`` rounds it (``rounding: nearest``).

    The weight is first cast to the precision of its checkpoint, as it will be stored. So the stored weights, quantized
    in the same ``scheme``, are bit for bit those of the forward pass.
    """

    def __init__(self, masked: MaskedParameter, scheme: Scheme) -> None:
        super().__init__()
        self.masked, self.scheme = masked, scheme

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the rounded weight, of the same shape and precision; its gradient goes to ``weight`` unchanged."""
        rounded = torch.empty_like(weight)
        for matrix, target in zip(self.masked.matrices(weight.detach()), self.masked.matrices(rounded), strict=True):
            stored = matrix.to(self.masked.dtype)
            target.copy_(nearest(stored, self.scheme).expanded(stored.dtype))
        return _StraightThrough.apply(weight, rounded)


def round_forward(weights: TrainedWeights, scheme: Scheme) -> None:
    """Make every forward pass of the model use its prunable weights as rounded in ``scheme``.

    Raises UnsupportedError for experts fused in one tensor, which cannot be quantized.
    """
    masked_by_id = {id(masked.parameter): masked for masked in weights.masked}
    for module in [*weights.model.modules()]:
        for attribute, parameter in [*module.named_parameters(recurse=False)]:
            masked = masked_by_id.get(id(parameter))
            if masked is None:
                continue
            if parameter.ndim == 3:
                problem = f"qat: {masked.name} holds several experts, and no layout of integers is known for it"
                raise UnsupportedError(problem, "leave `qat` out")
            register_parametrization(module, attribute, RoundedWeight(masked, scheme))
