"""Compensation for what went: a bias with its mean output (FLAP), or the columns that stay, refitted to the text."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models.shape.axes import Axis, ModelShape
from sparsebench.steps.factor import DAMPING
from sparsebench.steps.finite import check_gram

_BIASED_TOGETHER = {"o": ("q", "k", "v", "o"), "down": ("gate", "up", "gate_up", "down")}
"""By kind of output matrix, the matrices that one switch in config.json gives biases together."""


def missing_biases(shape: ModelShape, axes: Iterable[Axis]) -> tuple[dict[str, bool], list[str]]:
    """Return the config.json switches that give every output matrix a bias, and the biases that the checkpoint lacks.

    Raises UnsupportedError, by name, where an output matrix cannot have one.
    """
    switches: dict[str, bool] = {}
    bias_names: list[str] = []
    tensors, parts = shape.checkpoint.tensors, shape.parts
    for axis in axes:
        for cut in axis.outputs:
            if _bias_name(cut.tensor) in tensors:
                continue
            part = parts[cut.tensor]
            if part.kind not in shape.architecture.biases:
                model_type = shape.checkpoint.config.get("model_type")
                problem = f"{model_type} has no bias beside {cut.tensor}, and stock transformers would ignore one"
                if (fused := f"{cut.tensor}_bias") in tensors:
                    problem = f"{fused} holds the biases of all experts, which are not adjusted here"
                raise UnsupportedError(f"compensation: bias: {problem}", "`compensation: least_squares` or `none`")
            switches[shape.architecture.biases[part.kind]] = True
            for name, sibling in parts.items():
                in_block = (sibling.stack, sibling.block) == (part.stack, part.block)
                if in_block and sibling.kind in _BIASED_TOGETHER[part.kind] and _bias_name(name) not in tensors:
                    bias_names.append(_bias_name(name))
    return switches, list(dict.fromkeys(bias_names))


def _bias_name(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def mean_output(weights: torch.Tensor, mean: torch.Tensor, kept_columns: torch.Tensor) -> torch.Tensor:
    """Return W·(mean ⊙ gone), (out,) float32: the mean output of the columns that go (FLAP)."""
    removed_means = mean.clone()
    removed_means[kept_columns] = 0
    return (weights.double() @ removed_means).float()


def refit(weights: torch.Tensor, gram: torch.Tensor, kept_columns: torch.Tensor, name: str) -> torch.Tensor:
    """Refit the columns that stay, (out, kept) float32, so that alone they give what all columns gave on the text.

    With G = Σ x xᵀ, S what stays and D what goes, the minimum over Ŵ of ‖(W - Ŵ)X‖² + λ‖Ŵ - W_S‖² is
    Ŵ = W_S + W_D G_DS (G_SS + λI)⁻¹. λ is 0.01 times the mean of G_SS's diagonal, raised where that is not enough.
    Raises ModelError for statistics that no damping makes positive definite, naming the tensor.
    """
    check_gram(gram, name)
    removed = torch.ones(weights.shape[1], dtype=torch.bool)
    removed[kept_columns] = False
    gram_kept = gram[kept_columns][:, kept_columns].double()
    wide_weights = weights.double()
    target = wide_weights[:, removed] @ gram[removed][:, kept_columns].double()
    diagonal = gram_kept.diagonal().clone()
    for share in DAMPING:
        gram_kept.diagonal().copy_(diagonal + share * diagonal.mean().clamp(min=1e-30))
        lower, failed = torch.linalg.cholesky_ex(gram_kept)
        if not int(failed):
            return (wide_weights[:, kept_columns] + torch.cholesky_solve(target.T, lower).T).float()
    problem = f"tensor {name}: the Gram matrix of its inputs is not positive definite, damped by {DAMPING[-1]:g}"
    raise ModelError(problem, "calibrate with more or other text")
