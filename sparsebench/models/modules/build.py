"""The one way to a model: transformers' own code, built without storage and filled from the files tensor by tensor.

transformers' own loader holds the whole dense model. Here at most one tensor exists beside those that the layers keep,
so that layers can be replaced by sparse or quantized ones on the way. Weights are never made up, and no code of a model's
own runs. Buffers that no checkpoint holds get the values that transformers itself gives them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel

from sparsebench import bounded
from sparsebench.errors import ModelError, UnsupportedError, library_errors
from sparsebench.manifest.names import Family
from sparsebench.models.files import precision
from sparsebench.models.files.checkpoint import Checkpoint, TensorInfo
from sparsebench.models.files.families import DECODER_LAYERS, LAYERS, auto_class, transformers_config
from sparsebench.models.modules.experts import Experts, fuse_experts, split_experts
from sparsebench.models.modules.per_layer import cut_to_block_widths
from sparsebench.models.shape.topology import EXPERT_LAYERS, LINEAR_TYPES, View, spellings, stored_apart

MOST_BLOCKS = 10_000
"""The most blocks of a model: all are built before anything else is checked."""
_HALF_PRECISIONS = (torch.float16, torch.bfloat16)


class StoredWeights(Protocol):
    """A folder of stored tensors, dense or packed."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """The model's config.json."""

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor by name."""

    def load(self, name: str, expert: int | None = None) -> torch.Tensor:
        """Load one tensor as dense floats, or its slice ``expert``."""


Replace = Callable[[View, Any, Any], Any]
"""Maps where a weight is stored, its linear module (meta) and its dtype at run time to another module, or None."""


def build_model(
    weights: StoredWeights,
    family: Family,
    dtype: str = "auto",
    prepare: Callable[[Any], object] = lambda model: None,
    replace: Replace | None = None,
    kind: Any = None,
) -> PreTrainedModel:
    """Return the model in eval mode on the CPU; ``prepare`` may cut the empty model, ``replace`` its linear layers.

    ``kind`` is transformers' auto class where it is not the family's own. ``replace`` is called for linear layers
    (`topology.LINEAR_TYPES`), those of experts too, whose weight is not tied to another; their biases are kept. Large
    tensors of dense files stay pages of these files, which the system may drop. Raises ModelError when tensors are
    missing or have another shape, UnsupportedError for state that no file holds and transformers does not set.
    """
    config = precision.with_dtype(weights.config, precision.resolve(dtype, weights.config, weights.tensors))
    model = meta_model(family, config, kind).eval()
    prepare(model)
    if replace or stored_apart(weights.tensors):
        split_experts(model, weights.tensors)
    views = stored_views(model, weights.tensors)
    # Tied names have one view. A name that the files hold gets its own, in case their tensors differ.
    views |= {name: View(name) for name in views if name in weights.tensors}
    initialize_buffers(model, views)
    fill(model, weights, views, views, replace)
    fuse_experts(model)
    missing = {name for name, parameter in model.named_parameters() if parameter.is_meta}
    if missing := without_pooler(model, missing, kind or auto_class(family, weights.config)):
        raise ModelError(
            f"{weights.folder}: {len(missing)} weights are missing ({min(missing)})",
            "the files are incomplete, or the family or `architectures` in config.json is not the checkpoint's",
        )
    check_buffers(model)
    if model.can_generate():
        model.generation_config = _generation_config(weights)
    return model


def _generation_config(weights: StoredWeights) -> GenerationConfig:
    """Return the settings of generation beside the weights; old checkpoints have them in config.json."""
    path = weights.folder / "generation_config.json"
    if path.is_file():
        return GenerationConfig.from_dict(bounded.read_object(path))
    return GenerationConfig.from_model_config(dict(weights.config))


def meta_model(family: Family, config: Mapping[str, Any], kind: Any = None) -> PreTrainedModel:
    """Build the model without storage, on torch's meta device, with its true names, shapes and ties.

    ``kind`` is an auto class to use instead of the family's. Blocks get their widths in ``per_layer_config``
    (``per_layer``). Raises ModelError when transformers does not know the architecture, or its auto class does not fit
    the family.
    """
    settings = transformers_config(config)
    block_counts = [config[name] for name in (*LAYERS, *DECODER_LAYERS) if isinstance(config.get(name), int)]
    if max(block_counts, default=0) > MOST_BLOCKS:
        problem = f"config.json: more than {MOST_BLOCKS:,} blocks"
        raise ModelError(problem, "correct the architecture, or fetch the file again")
    failure = f"transformers cannot build model type {config.get('model_type')!r} as {family}"
    with library_errors(failure, "correct the family or the architecture"), torch.device("meta"):
        model: PreTrainedModel = (kind or auto_class(family, config)).from_config(settings, trust_remote_code=False)
    cut_to_block_widths(model, config, family)
    return model


def without_pooler(model: Any, missing: set[str], kind: Any) -> set[str]:
    """Remove an encoder's pooler from the model if its weights are ``missing``, and return what else is missing.

    ``kind`` is the auto class that made the model. Hidden states do not depend on a pooler; without it no made-up number
    can leave the model.
    """
    poolers = {name for name in missing if "pooler" in name.split(".")}
    if not poolers or kind.__name__ != "AutoModel":
        return missing
    model.pooler = None
    return missing - poolers


def named_tensors(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    """Return the parameters, tied ones under each of their names, and the persistent buffers."""
    parameters = list(model.named_parameters(remove_duplicate=False))
    saved = model.state_dict()
    return parameters + [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def stored_views(model: PreTrainedModel, stored: Mapping[str, TensorInfo]) -> dict[str, View]:
    """Return where the checkpoint has each tensor of the model (fused experts taken apart); absent ones are left out.

    Some checkpoints have older names and forms, which transformers converts on loading. For a tied tensor the checkpoint
    may use any of its names.
    """
    aliases: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        aliases.setdefault(id(tensor), []).append(name)

    def stored_spelling(tied: Collection[str], names: Collection[str]) -> str | None:
        candidates = (spelling for alias in tied for spelling in spellings(model, alias))
        return next((spelling for spelling in candidates if spelling in names), None)

    views: dict[str, View] = {}
    for tied in aliases.values():
        if spelling := stored_spelling(tied, stored):
            views |= dict.fromkeys(tied, View(spelling))
    absent = [tied for tied in aliases.values() if tied[0] not in views]
    if absent:
        used = {view.tensor for view in views.values()}
        converted = _converted(model, [info for info in stored.values() if info.name not in used])
        for tied in absent:
            if spelling := stored_spelling(tied, converted):
                views |= dict.fromkeys(tied, converted[spelling])
    return views


def _converted(model: PreTrainedModel, stored: Collection[TensorInfo]) -> dict[str, View]:
    """Return views of stored tensors by the model's names for them, following transformers' own table of conversions.

    It covers renamed tensors, fused matrices that the model holds apart (rows of one tensor) and experts (slices of
    one).
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, apply_renamings

    rules: list[Any] = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
    chunks = [rule for rule in rules if _is_split(rule, Chunk)]
    experts = {path: module for path, module in model.named_modules() if isinstance(module, Experts)}
    views: dict[str, View] = {}
    for info in stored:
        name = apply_renamings(info.name, renamings)
        views[name] = View(info.name)
        for rule in chunks:
            renamed, pattern = rule.rename_source_key(name)
            if pattern:
                height = info.shape[0] // len(rule.target_patterns)
                for number, target in enumerate(rule.target_patterns):
                    rows = (number * height, (number + 1) * height)
                    views[renamed.replace(rule.target_patterns[0], target)] = View(info.name, rows=rows)
        views |= _expert_views(name, info, experts)
    return views


def _is_split(rule: Any, chunk: type) -> bool:
    """Return whether a conversion is exactly one split along the first dimension."""
    operations = getattr(rule, "operations", [])
    return len(operations) == 1 and type(operations[0]) is chunk and vars(operations[0]) == vars(chunk(0))


def _expert_views(name: str, info: TensorInfo, experts: Mapping[str, Experts]) -> dict[str, View]:
    """Return by its name in the model the layer of one expert, or from a fused tensor that layer of every expert."""
    path, _, inner = name.rpartition("experts.")
    path += "experts"
    number, _, layer = inner.partition(".")
    if number.isdigit():
        layer, _, kind = layer.partition(".")
        return {f"{path}.{number}.{EXPERT_LAYERS.get(layer, layer)}.{kind}": View(info.name)}
    if path not in experts:
        return {}
    layer, kind = (inner.removesuffix("_bias"), "bias") if inner.endswith("_bias") else (inner, "weight")
    transposed = experts[path].transposed and kind == "weight"
    return {f"{path}.{expert}.{layer}.{kind}": View(info.name, expert, transposed) for expert in range(info.shape[0])}


def initialize_buffers(model: PreTrainedModel, stored: Collection[str]) -> None:
    """Give all buffers storage and the values that transformers sets (rotary frequencies, position ids).

    Parameters that transformers never saves are treated alike, unless they are among the names ``stored`` in a file.
    """
    unsaved = set(getattr(model, "_keys_to_ignore_on_save", None) or ()) - set(stored)
    for name, parameter in list(model.named_parameters()):
        if name in unsaved:
            path, _, attribute = name.rpartition(".")
            empty = torch.full(parameter.shape, torch.nan, dtype=parameter.dtype, device="cpu")
            model.get_submodule(path)._parameters[attribute] = nn.Parameter(empty, requires_grad=False)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            persistent = name not in module._non_persistent_buffers_set
            empty = torch.full(buffer.shape, _unset_mark(buffer.dtype), dtype=buffer.dtype, device="cpu")
            module.register_buffer(name, empty, persistent=persistent)
    for parameter in model.parameters():
        if parameter.is_meta:  # transformers' mark of what a file holds: else it draws its values, though in no memory
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    model.initialize_weights()


def _unset_mark(dtype: torch.dtype) -> Any:
    """Return a value that marks an entry as not yet written."""
    if dtype.is_floating_point:
        return torch.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).max


def fill(
    model: PreTrainedModel,
    weights: StoredWeights,
    views: Mapping[str, View],
    names: Collection[str],
    replace: Replace | None = None,
) -> None:
    """Give the tensors ``names`` of the model the values of their ``views``, a tied one once."""
    tensors = [(name, tensor) for name, tensor in named_tensors(model) if name in names]
    owners = Counter(id(tensor) for _, tensor in tensors)
    load = weights.mapped if isinstance(weights, Checkpoint) else weights.load
    parameters: dict[View, nn.Parameter] = {}
    # The slices of a fused tensor come one after another: a packed one is decoded whole.
    fused_tensors = {name: "" if views[name].expert is None else views[name].tensor for name, _ in tensors}
    for name, tensor in sorted(tensors, key=lambda pair: fused_tensors[pair[0]]):
        view = views[name]
        dtype = run_dtype(model, name, tensor)
        check_shape(name, tensor, view, weights.tensors)
        path, _, attribute = name.rpartition(".")
        module = model.get_submodule(path)
        linear = attribute == "weight" and type(module).__name__ in LINEAR_TYPES
        if replace and linear and owners[id(tensor)] == 1:
            replacement = replace(view, module, dtype)
            if replacement is not None:
                replacement.register_parameter("bias", module._parameters.get("bias"))
                model.set_submodule(path, replacement)
                continue
        if view not in parameters:
            loaded = view.to_matrix(load(view.tensor, view.expert)).to(dtype)
            parameters[view] = _shared_parameter(loaded, parameters.values() if owners[id(tensor)] > 1 else ())
        if attribute in module._parameters:
            module._parameters[attribute] = parameters[view]
        else:
            module._buffers[attribute] = parameters[view].data


def _shared_parameter(tensor: torch.Tensor, tied: Iterable[nn.Parameter]) -> nn.Parameter:
    """Return ``tensor`` as a parameter, or an equal one of those ``tied`` with it: files may store both.

    It needs a gradient, as after transformers' own loader. Of a weight that needs none torch 2.13 copies the transpose
    in each product with a slice of the hidden states, as the head's with those of the last token.
    """
    for twin in tied:
        if twin.shape == tensor.shape and twin.dtype == tensor.dtype and torch.equal(twin, tensor):
            return twin
    return nn.Parameter(tensor, requires_grad=tensor.is_floating_point())


def check_shape(name: str, tensor: torch.Tensor, view: View, stored: Mapping[str, TensorInfo]) -> None:
    """Raise ModelError where a view of a stored tensor has another shape than the model's tensor."""
    empty = torch.empty(stored[view.tensor].shape, device="meta")
    shape = tuple(view.to_matrix(view.cut(empty)).shape)
    if shape != tuple(tensor.shape):
        shapes = f"{shape} where the model's {name} is {tuple(tensor.shape)}"
        raise ModelError(f"{view.name}: the file has {shapes}", "check config")


def run_dtype(model: PreTrainedModel, name: str, tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype that transformers runs a tensor in: its own, or float32 in modules that it keeps in float32."""
    float32_modules: set[str] = set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if tensor.dtype == torch.float16:
        float32_modules |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    keeps_float32 = tensor.dtype in _HALF_PRECISIONS and float32_modules & set(name.split("."))
    return torch.float32 if keeps_float32 else tensor.dtype


def _is_unset(buffer: torch.Tensor) -> bool:
    """Return whether every element is the mark of a buffer that nobody has set; mostly the first one tells."""

    def marked(part: torch.Tensor) -> bool:
        return bool((part.isnan() if part.is_floating_point() else part == _unset_mark(part.dtype)).all())

    return buffer.numel() > 0 and marked(buffer[(0,) * buffer.ndim]) and marked(buffer)


def check_buffers(model: nn.Module, prefix: str = "") -> None:
    """Raise UnsupportedError for a buffer that transformers left unset, or a plain attribute without storage."""
    for path, module in model.named_modules(prefix=prefix):
        for name, buffer in module.named_buffers(recurse=False):
            if _is_unset(buffer):
                raise UnsupportedError(f"{path}.{name}: no file has this buffer, and transformers does not set it")
        for name, value in vars(module).items():
            if name != "weight" and getattr(value, "is_meta", False):  # a replaced layer keeps its weight for its shape
                raise UnsupportedError(f"{path}.{name}: transformers sets this tensor only in its own loader")
