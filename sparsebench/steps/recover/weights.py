"""The weights of a whole model that is trained: where masks hold them, and how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from sparsebench.errors import UnsupportedError
from sparsebench.manifest.names import Family
from sparsebench.models.files.checkpoint import Checkpoint, torch_dtype
from sparsebench.models.modules.build import stored_views
from sparsebench.models.shape.topology import View, parts


@dataclass(frozen=True)
class MaskedParameter:
    """A prunable parameter whose entries stay zero where ``zeros`` is true; ``transposed`` where its layout is (in, out).

    ``dtype`` is the precision in which the checkpoint stores it.
    """

    name: str
    parameter: nn.Parameter
    zeros: torch.Tensor
    transposed: bool
    dtype: torch.dtype

    def matrices(self, like: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield views of a tensor of the parameter's shape, (out, in) each: one, or one for each expert."""
        stacked = like if like.ndim == 3 else like[None]
        return (matrix.T if self.transposed else matrix for matrix in stacked)


class TrainedWeights:
    """A model's parameters that are trained (``leaves``), the view of a stored tensor that each holds, and their masks."""

    def __init__(self, model: PreTrainedModel, parent: Checkpoint, family: Family) -> None:
        """Raise UnsupportedError for a prunable tensor that has another form in the model."""
        self.model, self.parent = model, parent
        model_parts = parts(parent, family)
        views = stored_views(model, parent.tensors)
        claimed = {view.tensor for view in views.values()}
        unmatched = [name for name, part in model_parts.items() if part.prunable and name not in claimed]
        if unmatched:
            raise UnsupportedError(
                f"{unmatched[0]}: transformers merges or renames these weights, so they cannot be trained in a whole model",
                "recover it block by block: {recover: reconstruct}",
            )
        model.requires_grad_(False)
        self.leaves: list[nn.Parameter] = []
        self.views: list[View] = []
        self.masked: list[MaskedParameter] = []
        for name, parameter in list(model.named_parameters()):
            if name not in views or not parameter.is_floating_point():
                continue
            view = views[name]
            part = model_parts[view.tensor]
            parameter.requires_grad_(True)
            self.leaves.append(parameter)
            self.views.append(view)
            if part.prunable:
                zeros, transposed = parameter.detach() == 0, part.transposed != view.transposed
                dtype = torch_dtype(parent.tensors[view.tensor].dtype)
                self.masked.append(MaskedParameter(view.name, parameter, zeros, transposed, dtype))

    def mask_gradients(self) -> None:
        """Set the gradients of masked entries to zero: AdamW then leaves a weight that is zero exactly at zero."""
        for masked in self.masked:
            if masked.parameter.grad is not None:
                masked.parameter.grad.masked_fill_(masked.zeros, 0)

    def as_stored(self) -> dict[str, torch.Tensor]:
        """Return the trained tensors with the checkpoint's names, shapes and precisions."""
        tensors: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for leaf, view in zip(self.leaves, self.views, strict=True):
                value = leaf.detach().to("cpu", torch_dtype(self.parent.tensors[view.tensor].dtype), copy=True)
                if view.rows is not None:
                    if view.tensor not in tensors:
                        tensors[view.tensor] = self.parent.load(view.tensor)
                    tensors[view.tensor][slice(*view.rows)] = view.to_stored(value)
                else:
                    tensors[view.tensor] = view.to_stored(value)
        for name, twin in self.parent.ties.items():  # tied: stored twice, but one parameter of the model
            if (name in tensors) != (twin in tensors):
                tensors[name] = tensors[twin] = tensors[name if name in tensors else twin]
        return tensors
