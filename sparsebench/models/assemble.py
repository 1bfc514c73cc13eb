"""A model put together from stored tensors one at a time, some of its linear layers replaced on the way.

transformers' own loader builds the whole dense model first; here no more than one dense tensor exists beside what the
layers keep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sparsebench.errors import ModelError, UnsupportedError
from sparsebench.models import precision
from sparsebench.models.checkpoint import TensorInfo
from sparsebench.models.families import auto_class, meta_model
from sparsebench.models.filling import checkpoint_names, make_buffers, named_tensors, run_dtype

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from sparsebench.manifest.schema import Family


class Weights(Protocol):
    """A folder of stored tensors, dense or packed."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name."""

    def load(self, name: str) -> torch.Tensor:
        """One dense tensor."""


Replace = Callable[[str, Any, Any], Any]
"""From a stored weight's name, its linear module (meta) and the dtype it runs in to another module, or None."""


def assemble(
    weights: Weights,
    family: Family,
    dtype: str = "auto",
    prepare: Callable[[Any], object] = lambda model: None,
    replace: Replace = lambda name, module, dtype: None,
    kind: Any = None,
) -> PreTrainedModel:
    """The model in eval mode on the CPU; ``prepare`` may cut the empty model, ``replace`` offers other linear layers.

    ``kind`` is transformers' auto class where it is not the family's own.

    ``nn.Linear`` and GPT-2's ``Conv1D`` whose weight belongs to nobody else are offered; their biases are kept.
    Raises ModelError when tensors are missing or have another shape, UnsupportedError when transformers makes state
    that no file holds.
    """
    config = precision.stated(weights.config, precision.resolve(dtype, weights.config))
    model = meta_model(family, config, kind=kind).eval().requires_grad_(False)
    prepare(model)
    names = checkpoint_names(model, weights.tensors)
    make_buffers(model)
    tensors = named_tensors(model)
    owners = Counter(id(tensor) for _, tensor in tensors)
    filled: dict[str, Any] = {}
    for name, tensor in tensors:
        # Tied tensors are one; a name that the files hold is its own, in case they differ.
        stored = name if name in weights.tensors else names.get(name)
        if stored is None:
            continue
        info, precise = weights.tensors[stored], run_dtype(model, name, tensor)
        if info.shape != tuple(tensor.shape):
            raise ModelError(f"{stored}: the file has {info.shape} where the model's {name} is {tuple(tensor.shape)}")
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        if attribute == "weight" and _is_linear(module) and owners[id(tensor)] == 1:
            made = replace(stored, module, precise)
            if made is not None:
                made.register_parameter("bias", module._parameters.get("bias"))
                model.set_submodule(path, made)
                continue
        if stored not in filled:
            filled[stored] = _shared(weights.load(stored).to(precise), filled, owners[id(tensor)] > 1)
        if attribute in module._parameters:
            module._parameters[attribute] = filled[stored]
        else:
            module._buffers[attribute] = filled[stored].data
    _check_whole(model, family, weights.config)
    return model


def _is_linear(module: Any) -> bool:
    """Exactly these: a subclass may read its weight in another way."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return type(module) in (torch.nn.Linear, Conv1D)


def _shared(tensor: torch.Tensor, filled: Mapping[str, Any], tied: bool) -> torch.nn.Parameter:
    """An equal parameter that is there already, where the model ties this one: files may store both."""
    import torch

    twins = [one for one in filled.values() if one.shape == tensor.shape and one.dtype == tensor.dtype] if tied else []
    twin = next((one for one in twins if torch.equal(one, tensor)), None)
    return torch.nn.Parameter(tensor, requires_grad=False) if twin is None else twin


def _check_whole(model: PreTrainedModel, family: Family, config: Mapping[str, Any]) -> None:
    """Nothing may be left without a value, but the pooler of an encoder that has none."""
    missing = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    poolers = {name for name in missing if "pooler" in name.split(".")}
    if poolers and auto_class(family, config).__name__ == "AutoModel":
        model.pooler = None  # type: ignore[assignment]
        missing -= poolers
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing (the first is {min(missing)})",
            "the files are incomplete, or config.json is not the checkpoint's",
        )
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.numel() and bool(buffer.isnan().all()):
                raise UnsupportedError(f"{path}.{name}: transformers does not say what it holds")
        for name, value in vars(module).items():
            if name != "weight" and getattr(value, "is_meta", False):  # a replaced layer says its shape so
                raise UnsupportedError(f"{path}.{name}: it has no value before the model is loaded")
