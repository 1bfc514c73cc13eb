"""Assembling a model from stored tensors one at a time, replacing some of its linear layers on the way.

transformers' own loader builds the whole dense model first. Here at most one dense tensor exists beside those that the
layers keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sparsebench.errors import ModelError
from sparsebench.models import precision
from sparsebench.models.checkpoint import TensorInfo
from sparsebench.models.families import auto_class, drop_pooler, meta_model
from sparsebench.models.filling import (
    check_set,
    check_shape,
    make_buffers,
    named_tensors,
    run_dtype,
    stored_views,
)
from sparsebench.models.topology import LINEAR_TYPES, View

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family


class StoredWeights(Protocol):
    """A folder of stored tensors, dense or packed."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name."""

    def load(self, name: str, index: int | None = None) -> torch.Tensor:
        """Load one tensor as dense floats, or its slice ``index``."""


Replace = Callable[[View, Any, Any], Any]
"""Maps where a weight is stored, its linear module (meta) and its dtype at run time to another module, or None."""


def assemble(
    weights: StoredWeights,
    family: Family,
    dtype: str = "auto",
    prepare: Callable[[Any], object] = lambda model: None,
    replace: Replace = lambda name, module, dtype: None,
    kind: Any = None,
) -> PreTrainedModel:
    """Return the model in eval mode on the CPU; ``prepare`` may cut the empty model, ``replace`` its linear layers.

    ``kind`` is transformers' auto class where it is not the family's own. ``replace`` is called for linear layers
    (`topology.LINEAR_TYPES`), those of experts too, whose weight is not tied to another; their biases are kept.
    Raises ModelError when tensors are missing or have another shape, UnsupportedError for state that no file holds and
    transformers does not set.
    """
    from sparsebench.models.experts import put_together, take_apart

    config = precision.stated(weights.config, precision.resolve(dtype, weights.config))
    model = meta_model(family, config, kind=kind).eval()
    prepare(model)
    take_apart(model, weights.tensors)
    names = stored_views(model, weights.tensors)
    # Tied names have one view. A name that the files hold gets its own, in case their tensors differ.
    names |= {name: View(name) for name in names if name in weights.tensors}
    make_buffers(model, names)
    tensors = [(name, tensor) for name, tensor in named_tensors(model) if name in names]
    owners = Counter(id(tensor) for _, tensor in tensors)
    filled: dict[View, Any] = {}
    # Load a fused tensor's slices one after another: a packed one is decoded whole.
    tensors.sort(key=lambda one: names[one[0]].tensor if names[one[0]].expert is not None else "")
    for name, tensor in tensors:
        view, precise = names[name], run_dtype(model, name, tensor)
        check_shape(name, tensor, view, weights.tensors)
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if attribute == "weight" and _is_linear(module) and owners[id(tensor)] == 1:
            made = replace(view, module, precise)
            if made is not None:
                made.register_parameter("bias", module._parameters.get("bias"))
                model.set_submodule(path, made)
                continue
        if view not in filled:
            loaded = view.shaped(weights.load(view.tensor, view.expert)).to(precise)
            filled[view] = _shared(loaded, filled, owners[id(tensor)] > 1)
        if attribute in module._parameters:
            module._parameters[attribute] = filled[view]
        else:
            module._buffers[attribute] = filled[view].data
    filled.clear()
    put_together(model)
    _check_whole(model, kind or auto_class(family, weights.config))
    return model


def _is_linear(module: Any) -> bool:
    return type(module).__name__ in LINEAR_TYPES


def _shared(tensor: torch.Tensor, filled: Mapping[View, Any], tied: bool) -> torch.nn.Parameter:
    """Return ``tensor`` as a parameter; for a tied one, an equal parameter filled before (files may store both).

    It needs a gradient, as after transformers' own loader. Of a weight that needs none torch 2.13 copies the transpose
    in each product with a slice of the hidden states, as the head's with those of the last token.
    """
    import torch

    twins = [one for one in filled.values() if one.shape == tensor.shape and one.dtype == tensor.dtype] if tied else []
    twin = next((one for one in twins if torch.equal(one, tensor)), None)
    return torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()) if twin is None else twin


def _check_whole(model: PreTrainedModel, kind: Any) -> None:
    """Raise where a parameter or buffer has no value, but remove an encoder's pooler if its weights are missing."""
    missing = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if missing := drop_pooler(model, missing, kind):
        raise ModelError(
            f"{len(missing)} weights are missing (the first is {min(missing)})",
            "the files are incomplete, or config.json is not the checkpoint's",
        )
    for path, module in model.named_modules():
        check_set(path, module, apart="weight")  # a replaced layer keeps its weight for its shape
